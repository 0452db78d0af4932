//! The table of C functions through which the VMOD reaches the storage engine (`objmapper-abi`, where each is documented).
//!
//! Every function may be called by any thread. A pointer is one of varnishd's, which the VMOD passes on.

use std::ffi::{c_int, c_void};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;

use objmapper_abi::{
    Adoption, BodyLocation, Bytes, Copied, Delivered, Delivery, Engine as Table, Extended, MAGIC, OnBan, OnIterate,
    Outage, Publication, Published, Record, Span, Store, VERSION,
};
use objmapper_engine::adopt::{NotAdopted, Wanted};
use objmapper_engine::counters;
use objmapper_engine::options::ZeroCopy;
use objmapper_engine::record::{self, Fence};
use varnishd::objcore::{Objcore, ObjcoreId};
use varnishd::storage::Storage;
use varnishd::worker::Worker;

use crate::BOUNDARY;
use crate::object::object_of;
use crate::register::METHODS;
use crate::storage::{self, connect_in_process, engine_of};
use crate::{announcement, bans, reload, spans};

/// The table, under the name by which the VMOD looks for it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub(crate) static objmapper_engine: Extended = Extended {
    engine: Table {
        magic: MAGIC,
        version: VERSION,
        size: size_of::<Extended>(),
        is_ours,
        default_storage,
        store,
        connect,
        adopt,
        cancel_adoption,
        adopted,
        publish,
        on_ban,
        has_reloaded,
    },
    delivery: Delivery { location, on_iterate, span, delivered, unpaced, unreadable, is_unreadable },
};

/// Returns the storage at an address, if it is an open one of ours.
///
/// # Safety
/// `stv` must be null or a storage of varnishd's.
unsafe fn ours<'a>(stv: *const c_void) -> Option<Storage<'a>> {
    // SAFETY: by contract.
    unsafe { Storage::with_methods(stv, &METHODS) }
}

/// Returns the object at an address, and its storage, if that is one of ours.
///
/// # Safety
/// `oc` must be null or an objcore that the caller references.
pub(crate) unsafe fn object_of_ours<'a>(oc: *const c_void) -> Option<(Objcore<'a>, Storage<'a>)> {
    if oc.is_null() {
        return None;
    }
    // SAFETY: by contract; an object's storage is written when it is made, by the thread that fetches it.
    unsafe {
        let oc = Objcore::new(oc.cast());
        ours(oc.storage().cast()).map(|storage| (oc, storage))
    }
}

/// Returns the bytes.
///
/// # Safety
/// There must be such bytes, for as long as the result is used.
unsafe fn slice<'a>(bytes: Bytes) -> &'a [u8] {
    if bytes.len == 0 || bytes.ptr.is_null() {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(bytes.ptr, bytes.len) }
}

unsafe extern "C" fn is_ours(stv: *const c_void) -> bool {
    // SAFETY: the table's contract.
    BOUNDARY.fallible("is_ours", false, || unsafe { ours(stv) }.is_some())
}

unsafe extern "C" fn default_storage() -> *const c_void {
    storage::first().cast()
}

unsafe extern "C" fn store(stv: *const c_void, store: *mut Store) -> bool {
    BOUNDARY.fallible("store", false, || {
        // SAFETY: the table's contract.
        let Some(stv) = (unsafe { ours(stv) }) else { return false };
        // SAFETY: an open stevedore of ours.
        let engine = unsafe { engine_of(stv) };
        let socket = engine.options.socket.as_ref().map_or(&b""[..], |path| path.as_os_str().as_bytes());
        let told = Store {
            instance: engine.backing().instance().unwrap_or_default(),
            socket: Bytes { ptr: socket.as_ptr(), len: socket.len() },
        };
        // SAFETY: the caller's own variable.
        unsafe { store.write(told) };
        true
    })
}

unsafe extern "C" fn connect(stv: *const c_void) -> c_int {
    const ENOTSUP: c_int = 95;
    const EIO: c_int = 5;
    BOUNDARY.fallible("connect", -EIO, || {
        // SAFETY: the table's contract.
        let Some(stv) = (unsafe { ours(stv) }) else { return -ENOTSUP };
        // SAFETY: an open stevedore of ours.
        match unsafe { connect_in_process(stv) } {
            None => -ENOTSUP,
            Some(Ok(fd)) => fd.into_raw_fd(),
            Some(Err(error)) => -error.raw_os_error().unwrap_or(EIO),
        }
    })
}

unsafe extern "C" fn adopt(stv: *const c_void, oc: *const c_void, record: *const Record) -> Adoption {
    BOUNDARY.fallible("adopt", Adoption::Outage(Outage::Io), || {
        announcement::cancel_adoption();
        // SAFETY: the table's contract: a stevedore or null, and a record whose URI lives during the call.
        let (stv, record) = unsafe { (ours(stv), &*record) };
        let Some(stv) = stv else { return Adoption::Elsewhere };
        // SAFETY: an open stevedore of ours; the URI as above.
        let (engine, uri) = unsafe { (engine_of(stv), slice(record.uri)) };
        let Record { instance, object, body_len, file_len, .. } = *record;
        match engine.adopt(&Wanted { instance, uri, object, body_len, file_len }) {
            Ok(announced) => {
                announcement::announce(ObjcoreId::of(oc), engine, announced);
                Adoption::Adopted
            }
            Err(NotAdopted::Elsewhere) => Adoption::Elsewhere,
            Err(NotAdopted::Small) => Adoption::Small,
            Err(NotAdopted::Gone) => Adoption::Gone,
            Err(NotAdopted::Outage(outage)) => Adoption::Outage(outage),
        }
    })
}

unsafe extern "C" fn cancel_adoption() {
    BOUNDARY.fallible("cancel_adoption", (), announcement::cancel_adoption);
}

unsafe extern "C" fn adopted(oc: *const c_void, ptr: *const u8, len: usize) -> usize {
    BOUNDARY.fallible("adopted", 0, || {
        // SAFETY: the table's contract: an objcore that the caller, its fetch, references.
        let Some((oc, _)) = (unsafe { object_of_ours(oc) }) else { return 0 };
        // SAFETY: as above, and its object is ours.
        let (_, object) = unsafe { object_of(oc) };
        object.body.adopted(ptr, len)
    })
}

unsafe extern "C" fn publish(oc: *const c_void, publication: *const Publication) -> Published {
    BOUNDARY.fallible("publish", Published::Outage(Outage::Io), || {
        // SAFETY: the table's contract: an objcore that the caller, its fetch, references, and a publication whose
        // bytes live during the call.
        let (found, publication) = unsafe { (object_of_ours(oc), &*publication) };
        let Some((oc, storage)) = found else { return Published::Elsewhere };
        // SAFETY: as above, and its object is ours.
        let (engine, object) = unsafe { object_of(oc) };
        // SAFETY: as above.
        let (uri, tail) = unsafe { (slice(publication.uri), slice(publication.tail)) };
        let fence = Fence { shard: publication.shard, value: publication.fence };
        let record = record::NewRecord { uri, tail, expires: publication.expires, fence };
        // SAFETY: not used beyond this call.
        let wrk = unsafe { Worker::current() };
        // No lock of ours is held here.
        let mut nuke = || wrk.is_some_and(|wrk| storage.lru().evict_one(wrk));
        object.body.publish(engine, &record, &mut nuke)
    })
}

unsafe extern "C" fn has_reloaded() -> bool {
    reload::has_reloaded()
}

unsafe extern "C" fn on_ban(listener: Option<OnBan>) {
    bans::set_listener(listener);
}

unsafe extern "C" fn location(oc: *const c_void) -> BodyLocation {
    BOUNDARY.fallible("location", BodyLocation::Elsewhere, || {
        // SAFETY: the table's contract: an objcore that the caller references.
        let Some((oc, _)) = (unsafe { object_of_ours(oc) }) else { return BodyLocation::Elsewhere };
        // SAFETY: as above, and its object is ours.
        let (engine, object) = unsafe { object_of(oc) };
        match engine.options.zero_copy {
            _ if !oc.has_boc() && object.is_in_heap() => BodyLocation::Heap,
            ZeroCopy::Off => BodyLocation::Off,
            _ => BodyLocation::File,
        }
    })
}

unsafe extern "C" fn on_iterate(listener: Option<OnIterate>) {
    spans::set_listener(listener);
}

unsafe extern "C" fn span(ptr: *const u8, len: usize, span: *mut Span) -> bool {
    BOUNDARY.fallible("span", false, || {
        let Some(found) = spans::lookup(ptr, len) else { return false };
        // SAFETY: the caller's own variable.
        unsafe { span.write(found) };
        true
    })
}

unsafe extern "C" fn delivered(oc: *const c_void, delivered: *const Delivered) {
    BOUNDARY.fallible("delivered", (), || {
        // SAFETY: the table's contract: an objcore that the caller references, and its own variable.
        let (found, delivered) = unsafe { (object_of_ours(oc), *delivered) };
        let Some((_, stv)) = found else { return };
        // SAFETY: an open stevedore of ours.
        let c = unsafe { engine_of(stv) }.counters;
        // All workers share them: not for nothing.
        if delivered.copied > 0 {
            counters::add(&c.b_copy, delivered.copied);
        }
        if delivered.sent > 0 {
            counters::add(&c.b_zero_copy, delivered.sent);
            counters::add(&c.c_zero_copy, 1);
            return;
        }
        let counter = match delivered.why {
            Copied::None => return,
            Copied::Small | Copied::Heap => &c.c_copy_small,
            Copied::Streaming => &c.c_copy_streaming,
            Copied::Http2 => &c.c_copy_http2,
            Copied::Chunked => &c.c_copy_chunked,
            Copied::Filtered => &c.c_copy_filtered,
            Copied::Off => &c.c_copy_off,
            Copied::Other => &c.c_copy_other,
        };
        counters::add(counter, 1);
    });
}

unsafe extern "C" fn unpaced(oc: *const c_void) {
    BOUNDARY.fallible("unpaced", (), || {
        // SAFETY: the table's contract: an objcore that the caller references.
        let Some((oc, _)) = (unsafe { object_of_ours(oc) }) else { return };
        // SAFETY: as above, and its object is ours.
        counters::add(&unsafe { object_of(oc) }.0.counters.c_unpaced, 1);
    });
}

unsafe extern "C" fn unreadable(errno: c_int) {
    spans::unreadable(errno);
}

unsafe extern "C" fn is_unreadable(instance: *const [u8; 16], object: u64) -> bool {
    // SAFETY: the table's contract: the caller's own variable.
    BOUNDARY
        .fallible("is_unreadable", false, || objmapper_engine::unreadable::is_unreadable(unsafe { *instance }, object))
}
