//! No pointer of varnishd's is trusted before its magic number is checked.

use varnishd::boundary::wrong;
use varnishd_sys::bindings::{OBJCORE_MAGIC, WORKER_MAGIC};
use varnishd_sys::stevedore::{STEVEDORE_MAGIC, Stevedore};
use varnishd_sys::{objcore, worker};

/// varnishd's objcore, checked. A pointer and no reference: other threads change its flags and counts at any time, so
/// that only fields may be read (through the pointer) that nobody writes meanwhile.
///
/// # Safety
/// `oc` must be null or point to readable memory of a struct's size, which varnishd guarantees for what it hands to a
/// callback.
#[inline]
pub(crate) unsafe fn checked_objcore(oc: *const objcore) -> *const objcore {
    // SAFETY: by contract; nobody writes the magic number of an objcore that is referenced.
    if oc.is_null() || unsafe { (*oc).magic } != OBJCORE_MAGIC {
        wrong("checked_objcore", "not an objcore");
    }
    oc
}

/// varnishd's worker, checked.
///
/// # Safety
/// As for [`checked_objcore`]; it must be the calling thread's worker, which no other thread writes to.
pub(crate) unsafe fn worker_ref<'a>(wrk: *const worker) -> &'a worker {
    // SAFETY: by contract.
    match unsafe { wrk.as_ref() } {
        Some(checked) if checked.magic == WORKER_MAGIC => checked,
        _ => wrong("worker_ref", "not a worker"),
    }
}

/// varnishd's stevedore, checked.
///
/// # Safety
/// As for [`checked_objcore`]; varnishd and `open` write to a stevedore before any worker thread runs, and no more.
pub(crate) unsafe fn stevedore_ref<'a>(stv: *const Stevedore) -> &'a Stevedore {
    // SAFETY: by contract.
    match unsafe { stv.as_ref() } {
        Some(checked) if checked.magic == STEVEDORE_MAGIC => checked,
        _ => wrong("stevedore_ref", "not a stevedore"),
    }
}
