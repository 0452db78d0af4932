//! No pointer of varnishd's is trusted before its magic number is checked.

use varnishd::boundary::wrong;
use varnishd_sys::bindings::{BUSYOBJ_MAGIC, VRT_CTX_MAGIC, busyobj, vrt_ctx};

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
