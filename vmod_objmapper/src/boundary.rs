//! Where C calls Rust: no panic crosses, and no pointer is trusted before its magic number is checked.

use std::any::Any;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use varnishd_sys::bindings::{BUSYOBJ_MAGIC, VAS_Fail, VAS_WRONG, VRT_CTX_MAGIC, VRT_fail, busyobj, vrt_ctx};

use crate::vsl;

/// Runs an entry point of VCL: a message or a panic in it fails the VCL (`VRT_fail`), and it returns `failure`.
///
/// # Safety
/// `ctx` must be the context that varnishd called with.
pub(crate) unsafe fn vcl<T>(
    ctx: *const vrt_ctx,
    name: &'static str,
    failure: T,
    call: impl FnOnce() -> Result<T, String>,
) -> T {
    let message = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return value,
        Ok(Err(message)) => format!("objmapper.{name}: {message}"),
        Err(payload) => format!("objmapper.{name}: internal error, please report it: {}", text(&*payload)),
    };
    // SAFETY: by contract; VRT_fail (cache/cache_vrt.c) takes any context, and copies the text.
    unsafe { VRT_fail(ctx, c"%s".as_ptr(), vsl::c_text(&message).as_ptr()) };
    failure
}

/// Runs a callback that can fail: a panic in it becomes `failure`, and a line in the child's log.
pub(crate) fn fallible<T>(slot: &'static str, failure: T, call: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => value,
        Err(payload) => {
            vsl::operator(slot, &format!("internal error, please report it: {}", text(&*payload)));
            failure
        }
    }
}

/// A table of C's that nobody ever writes to.
#[repr(transparent)]
pub(crate) struct Constant<T>(T);

// SAFETY: only made by `new`, whose caller promises that.
unsafe impl<T> Sync for Constant<T> {}

impl<T> Constant<T> {
    /// # Safety
    /// Whoever is given its address must not write to it, and what it points to must be static.
    pub(crate) const unsafe fn new(table: T) -> Constant<T> {
        Constant(table)
    }

    /// Where it is.
    pub(crate) fn address(&'static self) -> *const T {
        &raw const self.0
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Ends the child with varnishd's own panic.
pub(crate) fn wrong(slot: &'static str, message: &str) -> ! {
    // SAFETY: VAS_Fail (lib/libvarnish/vas.c) takes NUL-terminated strings, which live until it ends the process.
    unsafe {
        VAS_Fail(vsl::c_text(slot).as_ptr(), c"vmod_objmapper".as_ptr(), 0, vsl::c_text(message).as_ptr(), VAS_WRONG)
    }
}

/// varnishd's context, checked.
///
/// # Safety
/// `ctx` must be null or what varnishd called with, and is not used after that call.
pub(crate) unsafe fn context<'a>(ctx: *const vrt_ctx) -> &'a vrt_ctx {
    // SAFETY: by contract; nobody writes to a context while it is lent to us.
    match unsafe { ctx.as_ref() } {
        Some(checked) if checked.magic == VRT_CTX_MAGIC => checked,
        _ => wrong("context", "not a VRT_CTX"),
    }
}

/// The fetch of a context, checked; null if it is not one of a fetch.
pub(crate) fn busyobj_of(ctx: &vrt_ctx) -> *mut busyobj {
    // SAFETY: a context's busyobj is null or the calling thread's own.
    if !ctx.bo.is_null() && unsafe { (*ctx.bo).magic } != BUSYOBJ_MAGIC {
        wrong("busyobj_of", "not a busyobj");
    }
    ctx.bo
}

/// A string of VCL's; null is empty.
///
/// # Safety
/// `string` must be null or a NUL-terminated string that lives as long as the call it came with.
pub(crate) unsafe fn bytes<'a>(string: *const c_char) -> &'a [u8] {
    if string.is_null() {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { CStr::from_ptr(string) }.to_bytes()
}
