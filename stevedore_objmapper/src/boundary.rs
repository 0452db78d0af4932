//! Where C calls Rust: no panic crosses, and no pointer is trusted before its magic number is checked.

use std::any::Any;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use objmapper_log::RateLimited;
use varnishd_sys::bindings::{OBJCORE_MAGIC, VAS_Fail, VAS_WRONG, WORKER_MAGIC};
use varnishd_sys::stevedore::{STEVEDORE_MAGIC, Stevedore};
use varnishd_sys::{objcore, worker};

/// Panics that were caught, in this process.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// How many panics were caught, in this process.
pub(crate) fn caught() -> u64 {
    CAUGHT.load(Relaxed)
}

/// Runs a callback that can fail: a panic in it becomes `failure`, and a line in the log.
#[inline]
pub(crate) fn fallible<T>(slot: &'static str, failure: T, call: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        report(slot, &*payload);
        failure
    })
}

#[cold]
#[inline(never)]
fn report(slot: &'static str, payload: &(dyn Any + Send)) {
    CAUGHT.fetch_add(1, Relaxed);
    static LINES: RateLimited = RateLimited::new(4, Duration::from_secs(60));
    if let Some(left_out) = LINES.admit() {
        objmapper_engine::log::line(slot, &format!("internal error, please report it: {}{left_out}", text(payload)));
    }
}

/// Runs a callback whose caller does not expect it to fail: a panic in it becomes varnishd's own panic, with the
/// message, so that `varnishadm panic.show` tells.
#[inline]
pub(crate) fn infallible<T>(slot: &'static str, call: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => value,
        Err(payload) => panicked(slot, &*payload),
    }
}

#[cold]
#[inline(never)]
fn panicked(slot: &'static str, payload: &(dyn Any + Send)) -> ! {
    fail(slot, text(payload))
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Ends the child with varnishd's own panic.
#[cold]
#[inline(never)]
fn fail(slot: &'static str, message: &str) -> ! {
    let text = CString::new(message.replace('\0', "?")).unwrap_or_default();
    let slot = CString::new(slot).unwrap_or_default();
    // SAFETY: VAS_Fail (lib/libvarnish/vas.c) takes NUL-terminated strings, which live until it ends the process.
    unsafe { VAS_Fail(slot.as_ptr(), c"stevedore_objmapper".as_ptr(), 0, text.as_ptr(), VAS_WRONG) }
}

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
        fail("checked_objcore", "not an objcore");
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
        _ => fail("worker_ref", "not a worker"),
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
        _ => fail("stevedore_ref", "not a stevedore"),
    }
}
