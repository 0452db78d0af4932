//! The body, while it comes in.

use std::ffi::c_int;

use objmapper_engine::grant::ChunkLimits;
use objmapper_engine::space::NoRoom;
use objmapper_engine::transit::Readers;
use varnishd::boundary::infallible;
use varnishd::cast::{checked_objcore, has_magic, stevedore_ref, worker_ref};
use varnishd::fetch_filters;
use varnishd_sys::OC_F_TRANSIENT;
use varnishd_sys::bindings::{
    BOS_FINISHED, OC_F_FAILED, OC_F_HFM, OC_F_PRIVATE, THR_GetBusyobj, VFP_esi, VFP_testgunzip, VTIM_real, cache_param,
};
use varnishd_sys::functions::{HSH_Kill, LRU_Add, LRU_NukeOne};
use varnishd_sys::{boc, objcore, worker};

use crate::BOUNDARY;
use crate::object::object_of;
use crate::transit;

/// A fetch waits so many times for room that others take before it gives up.
const MOST_WAITS: u32 = 16;

fn chunk_limits() -> ChunkLimits {
    // SAFETY: `cache_param` points to varnishd's parameters for as long as the child runs; another thread may change
    // one at any time, hence volatile reads.
    unsafe {
        let params = cache_param;
        let read = |field: *const isize| usize::try_from(field.read_volatile()).unwrap_or(0).max(1);
        ChunkLimits {
            chunk: read(&raw const (*params).fetch_chunksize),
            max: read(&raw const (*params).fetch_maxchunksize),
        }
    }
}

/// What the filters of a fetch, but for the one at the bottom, do with the room that they are given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filters {
    /// There are none.
    None,
    /// They have the filter below fill it, and look at it.
    Read,
    /// They may write to it.
    Write,
}

/// What the filters of the fetch of `oc` do. The room of an adopted body cannot be written to, nor looked at unless it has the bytes.
fn filters(oc: *const objcore) -> Filters {
    // SAFETY: the busyobj of this thread's fetch, or null (cache_main.c); its filters are this thread's.
    unsafe {
        let bo = THR_GetBusyobj();
        if !has_magic(bo) {
            return Filters::Write;
        }
        let bo = &*bo;
        if !std::ptr::eq(bo.fetch_objcore, oc) || bo.vfc.is_null() {
            return Filters::Write;
        }
        // cache_gzip.c, cache_esi_fetch.c.
        let readers = [&raw const VFP_testgunzip, &raw const VFP_esi];
        let mut found = Filters::None;
        // The last one is the source of the body.
        for entry in fetch_filters::entries(bo.vfc).filter(|entry| !(**entry).list.vtqe_next.is_null()) {
            if !readers.contains(&(*entry).vfp) {
                return Filters::Write;
            }
            found = Filters::Read;
        }
        found
    }
}

pub(crate) unsafe extern "C" fn objgetspace(
    wrk: *mut worker,
    oc: *mut objcore,
    sz: *mut isize,
    ptr: *mut *mut u8,
) -> c_int {
    BOUNDARY.fallible("objgetspace", 0, || {
        // SAFETY: varnishd's objcore of ours; the caller is its fetch, the only writer.
        let (engine, object) = unsafe { object_of(oc) };
        // SAFETY: as above; ObjGetSpace checked that there is a boc, which the fetch holds a reference to and alone
        // changes the `transit_buffer` of.
        let (stv, adopts, transit_buffer) = unsafe {
            let checked = checked_objcore(oc);
            let stobj = &(*checked).stobj[0];
            (stevedore_ref(stobj.stevedore.cast()), stobj.priv2 != 0, (*(*checked).boc).transit_buffer)
        };
        if adopts {
            match filters(oc) {
                Filters::None => {}
                Filters::Read => object.body.adopt_with_bytes(),
                Filters::Write => object.body.give_up_adoption(engine),
            }
        }
        // SAFETY: `sz` and `ptr` are the caller's own variables (ObjGetSpace asserts that they are not null).
        let (sz, ptr) = unsafe { (&mut *sz, &mut *ptr) };
        let limits = chunk_limits();
        let estimated = *sz > 0;
        let mut want = usize::try_from(*sz).ok().filter(|want| *want > 0).unwrap_or(limits.chunk);
        if transit_buffer > 0 {
            want = want.min(usize::try_from(transit_buffer).unwrap_or(want)).max(1);
        }
        let mut waits = 0;
        let mut nuke = || {
            // SAFETY: `wrk` is varnishd's, the list was allocated in `open`; no lock of ours is held here.
            if unsafe { LRU_NukeOne(wrk, stv.lru) } != 0 {
                return true;
            }
            // Our worker's `nuke_limit` is reached, or what is left is in use: the background thread may find more.
            waits += 1;
            waits <= MOST_WAITS
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

pub(crate) unsafe extern "C" fn objextend(_wrk: *mut worker, oc: *mut objcore, l: isize) {
    infallible("objextend", || {
        // SAFETY: varnishd's objcore of ours; the caller is its fetch.
        let (_, object) = unsafe { object_of(oc) };
        object.body.extend(u64::try_from(l).unwrap_or(0));
    });
}

pub(crate) unsafe extern "C" fn objtrimstore(_wrk: *mut worker, oc: *mut objcore) {
    infallible("objtrimstore", || {
        // SAFETY: varnishd's objcore of ours; the caller is its fetch.
        let (engine, object) = unsafe { object_of(oc) };
        object.body.trim(engine);
    });
}

pub(crate) unsafe extern "C" fn objbocdone(wrk: *mut worker, oc: *mut objcore, boc: *mut boc) {
    infallible("objbocdone", || {
        // SAFETY: varnishd's objcore of ours.
        let (engine, object) = unsafe { object_of(oc) };
        // SAFETY: HSH_DerefBoc took the boc off the objcore and hands it to us alone. The flags that we look at do not
        // change any more; DYING, in the same word, may be set meanwhile, hence a volatile read.
        let (state, flags, last_used) = unsafe {
            let flags = (&raw const (*checked_objcore(oc)).flags).read_volatile();
            ((*boc).state, u32::from(flags), worker_ref(wrk).lastused)
        };
        let keep = state == BOS_FINISHED && flags & (OC_F_TRANSIENT | OC_F_FAILED) == 0;
        let settled = object.body.settle(engine, keep, oc.expose_provenance());
        // What marks a response as uncacheable stays for its time, and its body was for one request only. If that is over, or
        // there was none (a fetch in the background), nothing will free the body before.
        let is_marker = flags & OC_F_HFM != 0 && flags & OC_F_PRIVATE == 0;
        // SAFETY: the calling thread holds a reference to the objcore.
        if is_marker && unsafe { transit::readers(oc) } == Readers::Holders(0) {
            object.body.slim(engine);
        }
        object.settled();
        // SAFETY: the calling thread has a reference to the objcore, and its boc is gone, as LRU_Add wants it.
        unsafe {
            LRU_Add(oc, if last_used.is_nan() { VTIM_real() } else { last_used });
            if !settled {
                HSH_Kill(oc);
            }
        }
    });
}
