//! Fetch filters (VFP): the source of a record's body, and one that only sees that a response becomes an object.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::rc::Rc;

use objmapper_abi::{Adoption, Bytes, Record};
use objmapper_records::{Counters, Hit, Summer};
use varnishd::boundary::Constant;
use varnishd::cast::{busyobj_of, context};
use varnishd::http::View;
use varnishd::text::c_text;
use varnishd::vsl;
use varnishd::{esi, fetch_filters};
use varnishd_sys::bindings::{
    OF_CHGCE, OF_GZIPED, VFP_END, VFP_ERROR, VFP_Error, VFP_NULL, VFP_OK, busyobj, vfp, vfp_ctx, vfp_entry, vfp_status,
    vrt_ctx,
};

use crate::BOUNDARY;
use crate::engine::{self, Storage};
use crate::object;
use crate::om::Om;
use crate::pending::Pending;
use crate::request::Request;

/// A record that is being served.
pub(crate) struct Serving {
    pub(crate) pending: Pending,
    pub(crate) hit: Hit,
    /// Whether the origin has just confirmed it: then its lifetime is what VCL makes of the new head.
    pub(crate) renewed: bool,
    /// How much of the body the object has.
    offset: Cell<u64>,
    /// Whether the storage engine was told to adopt it.
    announced: Cell<bool>,
    /// Whether the object's gzip attribute is still to be set.
    gzip: Cell<bool>,
    sum: RefCell<Option<Summer>>,
}

impl Serving {
    pub(crate) fn new(pending: Pending, hit: Hit, renewed: bool) -> Serving {
        // What has been read already is verified.
        let sum = (hit.record.bytes().is_none() && hit.record.sum().is_some()).then(Summer::new);
        Serving {
            pending,
            hit,
            renewed,
            offset: Cell::new(0),
            announced: Cell::new(false),
            gzip: Cell::new(false),
            sum: RefCell::new(sum),
        }
    }

    fn om(&self) -> &Om {
        self.pending.om()
    }
}

/// The filter that is the source of a record's body.
// SAFETY: varnishd only reads a filter.
pub(crate) static SOURCE: Constant<vfp> =
    unsafe { Constant::new(vfp_of(Some(source_init), Some(source_pull), Some(source_fini))) };
/// The filter that sees what becomes of the origin's response, and lets itself be bypassed.
// SAFETY: varnishd only reads a filter.
pub(crate) static WITNESS: Constant<vfp> =
    unsafe { Constant::new(vfp_of(Some(witness_init), None, Some(witness_fini))) };

type Init = unsafe extern "C" fn(*const vrt_ctx, *mut vfp_ctx, *mut vfp_entry) -> vfp_status;
type Pull = unsafe extern "C" fn(*mut vfp_ctx, *mut vfp_entry, *mut c_void, *mut isize) -> vfp_status;
type Fini = unsafe extern "C" fn(*mut vfp_ctx, *mut vfp_entry);

const fn vfp_of(init: Option<Init>, pull: Option<Pull>, fini: Option<Fini>) -> vfp {
    vfp { name: c"objmapper".as_ptr(), init, pull, fini, priv1: null() }
}

/// Gives a filter what it works on.
///
/// # Safety
/// `entry` must be one that was just pushed, with the filter that `what` is for.
pub(crate) unsafe fn charge<T>(entry: *mut vfp_entry, what: &Rc<T>) {
    // SAFETY: by contract; the filter's fini takes it back.
    unsafe { (*entry).priv1 = Rc::into_raw(what.clone()).cast_mut().cast() };
}

/// # Safety
/// `entry` must be of the filter that was charged with a `T`.
unsafe fn charged<'a, T>(entry: *const vfp_entry) -> Option<&'a T> {
    // SAFETY: by contract; it lives until the filter's fini.
    unsafe { (*entry).priv1.cast::<T>().as_ref() }
}

/// # Safety
/// As for [`charged`], in the filter's fini.
unsafe fn discharge<T>(entry: *mut vfp_entry) {
    // SAFETY: by contract; once, as the pointer is taken away.
    unsafe {
        let what = std::mem::replace(&mut (*entry).priv1, null_mut());
        if !what.is_null() {
            drop(Rc::from_raw(what.cast::<T>()));
        }
    }
}

/// Whether what the filters brought has become the fetch's object. They are closed when its body is complete, or as soon
/// as it turns out that it will not be: before what vcl_backend_error makes is allocated, and before the next try.
///
/// # Safety
/// `vc` must be the calling thread's, in a filter's fini.
unsafe fn is_object(vc: *const vfp_ctx) -> bool {
    // SAFETY: by contract; the fetch's own object, which it alone allocates.
    unsafe { (*vc).failed == 0 && !(*(*vc).oc).stobj[0].stevedore.is_null() }
}

unsafe extern "C" fn witness_init(ctx: *const vrt_ctx, _vc: *mut vfp_ctx, vfe: *mut vfp_entry) -> vfp_status {
    BOUNDARY.fallible("witness_init", VFP_NULL, || {
        // SAFETY: varnishd's own context and our own entry, in the fetch thread, after vcl_backend_response.
        unsafe {
            if let Some(pending) = charged::<Pending>(vfe) {
                pending.refuse_uncacheable(busyobj_of(context(ctx)));
            }
        }
        VFP_NULL
    })
}

unsafe extern "C" fn witness_fini(vc: *mut vfp_ctx, vfe: *mut vfp_entry) {
    BOUNDARY.fallible("witness", (), || {
        // SAFETY: varnishd's own filter context and our own entry.
        unsafe {
            if let Some(pending) = charged::<Pending>(vfe) {
                pending.closed(is_object(vc), (*(*vc).wrk).vsl.cast());
            }
            discharge::<Pending>(vfe);
        }
    });
}

/// Runs after vcl_backend_response, before the object is allocated.
unsafe extern "C" fn source_init(ctx: *const vrt_ctx, vc: *mut vfp_ctx, vfe: *mut vfp_entry) -> vfp_status {
    BOUNDARY.fallible("source_init", VFP_ERROR, || {
        // SAFETY: varnishd's own context, filter context and our entry, in the fetch thread.
        unsafe {
            let Some(serving) = charged::<Serving>(vfe) else { return VFP_ERROR };
            let bo = busyobj_of(context(ctx));
            bound_lifetime(bo, serving);
            serving.pending.refuse_uncacheable(bo);
            if !parse_esi(bo, vc, serving) {
                return VFP_ERROR;
            }
            if keep_gzip(vc, vfe, serving) && (*bo).uncacheable() == 0 {
                adopt(bo, vc, serving);
            }
        }
        VFP_OK
    })
}

/// The object is never fresh for longer than its record; one that was invalidated meanwhile answers the request that asked
/// before that, and no other.
///
/// # Safety
/// `bo` must be the calling thread's busyobj.
unsafe fn bound_lifetime(bo: *mut busyobj, serving: &Serving) {
    // SAFETY: by contract; the object is busy, so that the fetch alone reads and writes its times.
    unsafe {
        let oc = (*bo).fetch_objcore;
        let head = &serving.hit.head;
        let om = serving.om();
        if !serving.hit.still_valid(&om.l2, &Request(View::new((*bo).bereq0))) {
            let vsl = vsl::of_fetch(bo);
            vsl::decision(vsl, &format!("{} invalidated meanwhile", om.name));
            serving.pending.give_up("invalidated meanwhile", vsl);
            ((*oc).ttl, (*oc).grace, (*oc).keep) = (0.0, 0.0, 0.0);
            return;
        }
        if serving.renewed || (*bo).uncacheable() != 0 {
            return;
        }
        let end = ((*oc).t_origin + f64::from((*oc).ttl)).min(head.t_origin + f64::from(head.ttl));
        (*oc).t_origin = (*oc).t_origin.min(head.t_origin);
        (*oc).ttl = ((end - (*oc).t_origin) as f32).min(head.ttl.max(0.0));
    }
}

/// Has the body of a record that was parsed for ESI parsed again. `false`: it cannot be.
///
/// # Safety
/// `bo` and `vc` must be those of [`source_init`].
unsafe fn parse_esi(bo: *mut busyobj, vc: *mut vfp_ctx, serving: &Serving) -> bool {
    if !esi::is_esi(serving.hit.head.flags) || serving.hit.record.body_len() == 0 {
        return true;
    }
    // SAFETY: an entry of the list, whose filter is a static of its library's.
    let ours = |entry: *const vfp_entry| unsafe { [SOURCE.address(), WITNESS.address()].contains(&(*entry).vfp) };
    // SAFETY: by contract; these two are the filters that the director pushes.
    let parser = unsafe { esi::ensure(bo, vc, ours) };
    let why = match parser {
        esi::Parser::There => return true,
        esi::Parser::Unwanted => "ESI instructions stay as they are: beresp.filters has no filter for them",
        esi::Parser::NoRoom => "ESI instructions cannot be parsed: raise workspace_backend",
    };
    // SAFETY: this thread's log.
    unsafe { vsl::decision(vsl::of_fetch(bo), &format!("{} {why}", serving.om().name)) };
    parser == esi::Parser::Unwanted
}

/// Takes the gzip check of a record off that was checked when it was published. Whether every filter that is left hands
/// on what it reads where it was read to.
///
/// # Safety
/// `vc` and `vfe` must be those of [`source_init`].
unsafe fn keep_gzip(vc: *mut vfp_ctx, vfe: *mut vfp_entry, serving: &Serving) -> bool {
    // SAFETY: by contract; the list is of entries in the workspace, ours is its last. VFP_Open walks it from there
    // to its first and takes the next one after we return.
    unsafe {
        // An ETag that was weakened because of it stays weak after varnishd's own 304.
        (*vc).obj_flags |= u32::from(serving.hit.head.flags) & OF_CHGCE;
        let mut in_place = true;
        for entry in fetch_filters::entries(vc).take_while(|entry| !std::ptr::eq(*entry, vfe)) {
            let name = fetch_filters::name(entry);
            let is_next = std::ptr::eq((*entry).list.vtqe_next, vfe);
            if name == b"testgunzip" && serving.hit.head.gzip_bits.is_some() && is_next {
                fetch_filters::remove(vc, entry);
                (*vc).obj_flags |= OF_GZIPED;
                serving.gzip.set(true);
            } else if !matches!(name, b"testgunzip" | b"esi") {
                in_place = false;
            }
        }
        in_place
    }
}

/// Tells the storage engine to make the record the object's body, if it can.
///
/// # Safety
/// `bo` and `vc` must be the calling thread's, before the object is allocated.
unsafe fn adopt(bo: *mut busyobj, vc: *mut vfp_ctx, serving: &Serving) {
    let (om, record) = (serving.om(), &serving.hit.record);
    // SAFETY: by contract.
    let stv = unsafe { (*bo).storage }.cast::<c_void>();
    let (Some(table), Some(storage)) = (engine::table(), Storage::at(stv)) else { return };
    if record.body_len() == 0 || storage.instance() != Some(record.instance()) {
        return;
    }
    let uri = record.uri().as_bytes();
    let announced = Record {
        instance: record.instance(),
        uri: Bytes { ptr: uri.as_ptr(), len: uri.len() },
        object: record.entry().object,
        body_len: record.body_len(),
        file_len: record.entry().length,
    };
    // SAFETY: in the fetch, before the object is allocated; all that the record points to lives during the call.
    let adoption = unsafe { (table.adopt)(storage.address(), (*vc).oc.cast(), &raw const announced) };
    match adoption {
        Adoption::Adopted => serving.announced.set(true),
        Adoption::Elsewhere | Adoption::Small => {}
        Adoption::Gone | Adoption::Outage(_) => {
            if let Adoption::Outage(outage) = adoption {
                om.counters().outage(outage);
            }
            // SAFETY: this thread's log.
            unsafe { vsl::decision(vsl::of_fetch(bo), &format!("{} copies: {adoption:?}", om.name)) };
        }
    }
}

unsafe extern "C" fn source_pull(
    vc: *mut vfp_ctx,
    vfe: *mut vfp_entry,
    ptr: *mut c_void,
    len: *mut isize,
) -> vfp_status {
    BOUNDARY.fallible("source_pull", VFP_ERROR, || {
        // SAFETY: varnishd's own filter context, our entry, and room for `*len` bytes.
        let pulled = unsafe { pull(vc, vfe, ptr.cast(), usize::try_from(*len).unwrap_or(0)) };
        match pulled {
            Ok((done, status)) => {
                // SAFETY: as above.
                unsafe { *len = isize::try_from(done).unwrap_or(0) };
                status
            }
            Err(why) => {
                // SAFETY: as above; a format that takes one string.
                unsafe {
                    *len = 0;
                    VFP_Error(vc, c"objmapper: %s".as_ptr(), c_text(&why).as_ptr())
                }
            }
        }
    })
}

/// # Safety
/// As for [`source_pull`].
unsafe fn pull(
    vc: *mut vfp_ctx,
    vfe: *mut vfp_entry,
    ptr: *mut u8,
    room: usize,
) -> Result<(usize, vfp_status), String> {
    // SAFETY: by contract.
    let Some(serving) = (unsafe { charged::<Serving>(vfe) }) else { return Err("no record".to_owned()) };
    let (om, record, offset) = (serving.om(), &serving.hit.record, serving.offset.get());
    if serving.gzip.replace(false)
        && let Some(bits) = &serving.hit.head.gzip_bits
        // SAFETY: by contract: the object was allocated after `source_init`.
        && !unsafe { object::set_gzip_bits((*vc).wrk, (*vc).oc, bits) }
    {
        return Err("no room for the gzip attribute".to_owned());
    }
    let want = usize::try_from(record.body_len() - offset).unwrap_or(usize::MAX).min(room);
    let mut done = 0;
    if serving.announced.get()
        && let Some(table) = engine::table()
    {
        // SAFETY: the object whose fetch this is, and room that varnishd had from it.
        done = unsafe { (table.adopted)((*vc).oc.cast(), ptr, want) };
        if done > 0 {
            if offset == 0 {
                Counters::add(&om.counters().c_adopted, 1);
            }
            Counters::add(&om.counters().b_adopted, done as u64);
        }
    }
    if done == 0 && want > 0 {
        // SAFETY: by contract: nobody else reads or writes the room; it is written below before it is read.
        let room = unsafe {
            ptr.write_bytes(0, want);
            std::slice::from_raw_parts_mut(ptr, want)
        };
        done = match record.bytes() {
            Some(bytes) => {
                let start = usize::try_from(offset).unwrap_or(bytes.len()).min(bytes.len());
                let piece = &bytes[start..(start + want).min(bytes.len())];
                room[..piece.len()].copy_from_slice(piece);
                piece.len()
            }
            None => record.read_at(room, offset).map_err(|outage| {
                om.l2.discard(record, "file: it cannot be read", om.counters());
                format!("record cannot be read: {outage}")
            })?,
        };
        if done == 0 {
            return Err("record is shorter than it was".to_owned());
        }
        if let Some(sum) = serving.sum.borrow_mut().as_mut() {
            sum.update(&room[..done]);
        }
        Counters::add(&om.counters().b_copied, done as u64);
    }
    let offset = offset + done as u64;
    serving.offset.set(offset);
    if offset < record.body_len() {
        return Ok((done, VFP_OK));
    }
    if !serving.announced.get()
        && let (Some(sum), Some(wanted)) = (serving.sum.borrow().as_ref(), record.sum())
        && sum.sum() != wanted
    {
        om.l2.discard(record, "checksum of the body", om.counters());
        return Err("record is damaged".to_owned());
    }
    Ok((done, VFP_END))
}

unsafe extern "C" fn source_fini(vc: *mut vfp_ctx, vfe: *mut vfp_entry) {
    BOUNDARY.fallible("source_fini", (), || {
        // SAFETY: varnishd's own filter context and our own entry.
        let announced = unsafe { charged::<Serving>(vfe) }.is_some_and(|serving| {
            // SAFETY: as above.
            unsafe { serving.pending.closed(is_object(vc), (*(*vc).wrk).vsl.cast()) };
            serving.announced.get()
        });
        if announced && let Some(table) = engine::table() {
            // SAFETY: the engine's functions may be called by any thread; what an object has taken is not given up.
            unsafe { (table.cancel_adoption)() };
        }
        // SAFETY: our own entry.
        unsafe { discharge::<Serving>(vfe) };
    });
}
