//! The body, while it comes in: room for the fetch, and what becomes of the body at its end.
//!
//! ```text
//! objgetspace ─► (the fetch fills the room) ─► objextend ─► … ─► objtrimstore ─► objbocdone
//! ```
//!
//! One thread, the fetch, calls these for an object. Only [`objbocdone`] may be called by another one, when the fetch is over.

use std::ffi::c_int;

use objmapper_engine::grant::ChunkLimits;
use objmapper_engine::space::NoRoom;
use objmapper_engine::transit::Readers;
use varnishd::boundary::infallible;
use varnishd::fetch_filters::{RoomUse, room_use};
use varnishd::objcore::Objcore;
use varnishd::raw::{RawBoc, RawObjcore, RawWorker};
use varnishd::storage::Storage;
use varnishd::worker::Worker;
use varnishd::{lru, parameters};

use crate::BOUNDARY;
use crate::object::object_of;
use crate::persist;
use crate::transit;

/// How often one request for room waits for the background thread before it fails.
const MAX_WAITS: u32 = 16;

fn chunk_limits() -> ChunkLimits {
    let limits = parameters::fetch_chunks();
    ChunkLimits { chunk: limits.chunk, max: limits.max }
}

/// Returns room for more of the body.
pub(crate) unsafe extern "C" fn objgetspace(
    wrk: *mut RawWorker,
    oc: *mut RawObjcore,
    sz: *mut isize,
    ptr: *mut *mut u8,
) -> c_int {
    BOUNDARY.fallible("objgetspace", 0, || {
        // SAFETY: varnishd's own arguments.
        let (oc, wrk) = unsafe { (Objcore::new(oc), Worker::new(wrk)) };
        // SAFETY: an object of ours; the caller is its fetch, the only writer.
        let (engine, object) = unsafe { object_of(oc) };
        // SAFETY: as above.
        let (storage, transit_buffer) = unsafe { (Storage::new(oc.storage()), oc.transit_buffer()) };
        if oc.is_adopting() {
            // The room of an adopted body cannot be written to, nor read unless it has the bytes.
            match room_use(oc) {
                RoomUse::None => {}
                RoomUse::Read => object.body.adopt_with_bytes(),
                RoomUse::Write => object.body.give_up_adoption(engine),
            }
        }
        // SAFETY: `sz` and `ptr` are the caller's own variables, which it asserts not to be null.
        let (sz, ptr) = unsafe { (&mut *sz, &mut *ptr) };
        let limits = chunk_limits();
        let estimated = *sz > 0;
        let mut want = usize::try_from(*sz).ok().filter(|want| *want > 0).unwrap_or(limits.chunk);
        if let Some(limit) = transit_buffer {
            want = want.min(limit).max(1);
        }
        let mut waits = 0;
        let mut nuke = || {
            // No lock of ours is held here.
            if storage.lru().evict_one(wrk) {
                return true;
            }
            // Our worker's `nuke_limit` is reached, or what is left is in use: the background thread may find more.
            waits += 1;
            waits <= MAX_WAITS
                && engine.maintenance.wait_for_room(&engine.account, limits.chunk as u64, engine.options.timeout)
        };
        let room = if object.body.is_in_transit() {
            Err(NoRoom::FallbackHeap)
        } else {
            object.body.space(engine, want, estimated, limits, &mut nuke)
        };
        let room = match room {
            // SAFETY: as above, and the fetch holds a reference to the boc.
            Err(NoRoom::FallbackHeap) => unsafe { transit::space(oc, engine, object, limits, &mut nuke) },
            room => room.ok(),
        };
        let Some((room, size)) = room else { return 0 };
        *ptr = room.as_ptr();
        *sz = isize::try_from(size).unwrap_or(isize::MAX);
        1
    })
}

/// So many bytes of the room are body now.
pub(crate) unsafe extern "C" fn objextend(_wrk: *mut RawWorker, oc: *mut RawObjcore, l: isize) {
    infallible("objextend", || {
        // SAFETY: varnishd's object of ours; the caller is its fetch.
        let (_, object) = unsafe { object_of(Objcore::new(oc)) };
        object.body.extend(u64::try_from(l).unwrap_or(0));
    });
}

/// Nothing more will be written.
pub(crate) unsafe extern "C" fn objtrimstore(_wrk: *mut RawWorker, oc: *mut RawObjcore) {
    infallible("objtrimstore", || {
        // SAFETY: varnishd's object of ours; the caller is its fetch.
        let (engine, object) = unsafe { object_of(Objcore::new(oc)) };
        object.body.trim(engine);
    });
}

/// The fetch has ended, well or not.
pub(crate) unsafe extern "C" fn objbocdone(wrk: *mut RawWorker, oc: *mut RawObjcore, boc: *mut RawBoc) {
    infallible("objbocdone", || {
        // SAFETY: varnishd's own arguments.
        let (oc, wrk) = unsafe { (Objcore::new(oc), Worker::new(wrk)) };
        // SAFETY: varnishd's object of ours, off which the boc was taken: it is ours alone.
        let ((engine, object), keep) = unsafe { (object_of(oc), oc.is_to_be_cached(boc)) };
        if object.kept.is_reloaded() {
            // SAFETY: there was no fetch, and the object was not added before.
            unsafe { lru::add(oc, wrk) };
            return;
        }
        let settled = object.body.settle(engine, keep, oc.expose());
        // What marks a response as uncacheable stays for its time, and its body was for one request only. If that is over, or
        // there was none (a fetch in the background), nothing will free the body before.
        if oc.is_marker() && transit::readers(oc) == Readers::Holders(0) {
            object.body.slim(engine);
        }
        object.settled();
        if keep && settled {
            persist::keep(oc, engine, object);
        }
        // SAFETY: the fetch has ended with this call.
        unsafe { lru::add(oc, wrk) };
        if !settled {
            oc.kill();
        }
    });
}
