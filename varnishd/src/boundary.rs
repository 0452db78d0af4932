//! Where C calls Rust: no panic crosses.
//!
//! A callback has one of three forms. One that can fail returns its failure value and the panic is logged
//! ([`Boundary::fallible`]); the failure value is given at each callback, because Varnish's are not one per type: an `int`
//! fails as -1, 0 or 1. One whose caller does not expect it to fail ends the child with varnishd's own panic
//! ([`infallible`]). One that VCL calls fails the VCL ([`vcl`]).

use std::any::Any;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use objmapper_log::RateLimited;
use varnishd_sys::bindings::{VAS_Fail, VAS_WRONG, VRT_fail, vrt_ctx};

use crate::text::c_text;

/// Panics that are logged a minute, in one library.
const LINES: u32 = 4;

/// One library's boundary.
pub struct Boundary {
    /// Writes a line for the operator: of which callback, and what.
    report: fn(&str, &str),
    rate: RateLimited,
    caught: AtomicU64,
}

impl Boundary {
    /// The boundary of a library that logs by `report`, which is called with the name of a callback and a message. Calls are
    /// bounded in rate.
    #[must_use]
    pub const fn new(report: fn(&str, &str)) -> Boundary {
        Boundary { report, rate: RateLimited::new(LINES, Duration::from_secs(60)), caught: AtomicU64::new(0) }
    }

    /// The number of panics that callbacks which can fail had in this process.
    pub fn caught(&self) -> u64 {
        self.caught.load(Relaxed)
    }

    /// Runs a callback that can fail: a panic in it becomes `failure`, and a line in the log.
    #[inline]
    pub fn fallible<T>(&self, slot: &'static str, failure: T, call: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
            self.report(slot, &*payload);
            failure
        })
    }

    #[cold]
    #[inline(never)]
    fn report(&self, slot: &'static str, payload: &(dyn Any + Send)) {
        self.caught.fetch_add(1, Relaxed);
        if let Some(left_out) = self.rate.admit() {
            (self.report)(slot, &format!("internal error, please report it: {}{left_out}", message_of(payload)));
        }
    }
}

/// Runs a callback whose caller does not expect it to fail: a panic in it becomes varnishd's own panic, with the message,
/// so that `varnishadm panic.show` tells.
#[inline]
#[track_caller]
pub fn infallible<T>(slot: &'static str, call: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => value,
        Err(payload) => panicked(slot, &*payload),
    }
}

/// Runs a function that VCL calls as `function`, which is the VMOD's name and its own: a message or a panic in it fails the
/// VCL (`VRT_fail`), and it returns `failure`.
///
/// # Safety
/// `ctx` must be the context that varnishd called with.
pub unsafe fn vcl<T>(
    ctx: *const vrt_ctx,
    function: &'static str,
    failure: T,
    call: impl FnOnce() -> Result<T, String>,
) -> T {
    let message = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return value,
        Ok(Err(message)) => format!("{function}: {message}"),
        Err(payload) => {
            format!("{function}: internal error, please report it: {}", message_of(&*payload))
        }
    };
    // SAFETY: by contract; VRT_fail (cache/cache_vrt.c) takes any context, and copies the text.
    unsafe { VRT_fail(ctx, c"%s".as_ptr(), c_text(&message).as_ptr()) };
    failure
}

#[cold]
#[inline(never)]
#[track_caller]
fn panicked(slot: &'static str, payload: &(dyn Any + Send)) -> ! {
    wrong(slot, message_of(payload))
}

fn message_of(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Ends the child with varnishd's own panic, which names `slot`, the caller's file and line, and `message`.
#[cold]
#[inline(never)]
#[track_caller]
pub fn wrong(slot: &'static str, message: &str) -> ! {
    let caller = Location::caller();
    let line = i32::try_from(caller.line()).unwrap_or(0);
    let (slot, file, message) = (c_text(slot), c_text(caller.file()), c_text(message));
    // SAFETY: VAS_Fail (lib/libvarnish/vas.c) takes NUL-terminated strings, which live until it ends the process.
    unsafe { VAS_Fail(slot.as_ptr(), file.as_ptr(), line, message.as_ptr(), VAS_WRONG) }
}

/// A table of C's that is never written to.
#[repr(transparent)]
pub struct Constant<T>(T);

// SAFETY: only made by `new`, whose caller promises that.
unsafe impl<T> Sync for Constant<T> {}

impl<T> Constant<T> {
    /// # Safety
    /// What is given its address must not write to it, and what it points to must be static.
    pub const unsafe fn new(table: T) -> Constant<T> {
        Constant(table)
    }

    /// Returns its address.
    pub const fn address(&'static self) -> *const T {
        &raw const self.0
    }
}
