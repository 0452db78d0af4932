//! Room for a body that is delivered and not cached ([`objmapper_engine::transit`]): who holds its object is varnishd's to
//! say.

use std::ptr::NonNull;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::{AtomicI32, AtomicU8};
use std::time::Duration;

use objmapper_engine::engine::Engine;
use objmapper_engine::grant::ChunkLimits;
use objmapper_engine::transit::{Readers, Step};
use varnishd::cast::checked_objcore;
use varnishd_sys::bindings::{BOS_STREAM, OC_EF_REFD, OC_F_CANCEL};
use varnishd_sys::functions::HSH_Kill;
use varnishd_sys::{OC_F_TRANSIENT, objcore};

use crate::object::Object;
use crate::spans::largest_folio;

/// A reader that moves wakes the fetch; a reference that is dropped does not, and is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Room for the next bytes of the body, when its readers have made some.
///
/// # Safety
/// `oc` must be an objcore of ours, and the calling thread its fetch, which holds a reference to it and to its boc.
pub(crate) unsafe fn space(
    oc: *mut objcore,
    engine: &Engine,
    object: &Object,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<(NonNull<u8>, usize)> {
    let body = &object.body;
    // SAFETY: by contract; the state is changed by the fetch alone. Others may set flags meanwhile, but not these.
    let (streams, is_transient) = unsafe {
        let flags = (&raw const (*checked_objcore(oc)).flags).read_volatile();
        ((*(*oc).boc).state >= BOS_STREAM, u32::from(flags) & OC_F_TRANSIENT != 0)
    };
    if body.begin_transit(engine) {
        // A store that answers may be full: what is used least makes room there for the next body.
        if engine.backing().answers() {
            nuke();
        }
        // Look-ups do not find the objects of passes, and do not find a busy object either: that one is killed when it
        // is complete.
        if streams && !is_transient {
            // SAFETY: the calling thread has a reference to the objcore, and holds no lock.
            unsafe { HSH_Kill(oc) };
        }
    }
    loop {
        // SAFETY: by contract.
        let readers = if streams { unsafe { readers(oc) } } else { Readers::Later };
        match body.transit_space(engine, readers, largest_folio(), limits, nuke) {
            Step::Space(ptr, size) => return Some((ptr, size)),
            Step::Wait => body.await_readers(LOOK_AGAIN),
            Step::Fail => return None,
        }
    }
}

/// Who holds references to an object, beside the calling thread and the expiry thread.
///
/// # Safety
/// `oc` must be an objcore of ours to which the calling thread holds a reference.
pub(crate) unsafe fn readers(oc: *mut objcore) -> Readers {
    // SAFETY: the fields of an objcore that is referenced, aligned and valid while it is. Other threads change them under
    // varnishd's locks, by plain stores of the same size.
    let (holders, exp_flags, flags) = unsafe {
        let holders = AtomicI32::from_ptr(&raw mut (*oc).refcnt).load(Acquire);
        // After the count: the expiry thread takes its mark away before it drops its reference, so that the count never
        // lacks a reference which is subtracted below.
        let exp_flags = AtomicU8::from_ptr(&raw mut (*oc).exp_flags).load(Acquire);
        (holders, exp_flags, (&raw const (*oc).flags).read_volatile())
    };
    if u32::from(flags) & OC_F_CANCEL != 0 {
        return Readers::Gone;
    }
    let of_expiry = i32::from(u32::from(exp_flags) & OC_EF_REFD != 0);
    Readers::Holders(u32::try_from(holders - 1 - of_expiry).unwrap_or(0))
}
