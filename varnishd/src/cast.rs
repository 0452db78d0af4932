//! No pointer of varnishd's is trusted before its magic number is checked (Varnish: `include/miniobj.h`, CHECK_OBJ_NOTNULL).
//!
//! A pointer that is not what it should be ends the child with varnishd's own panic, which names the caller's line. Where
//! something else may legitimately be there, [`has_magic`] tells.

use std::ffi::c_uint;
use std::mem::offset_of;

use varnishd_sys::ban::{BAN_MAGIC, Ban};
use varnishd_sys::bindings::{
    BUSYOBJ_MAGIC, DIRECTOR_MAGIC, HTTP_MAGIC, OBJCORE_MAGIC, REQ_MAGIC, VDP_CTX_MAGIC, VDP_ENTRY_MAGIC, VRT_CTX_MAGIC,
    WORKER_MAGIC, busyobj, director, http, req, vdp_ctx, vdp_entry, vrt_ctx,
};
use varnishd_sys::stevedore::{STEVEDORE_MAGIC, Stevedore};
use varnishd_sys::{objcore, worker};

use crate::boundary::wrong;

/// A structure of varnishd's that begins with a magic number.
///
/// # Safety
/// The structure's first member must be an `unsigned` that is `MAGIC` from before it is shared until it is freed.
pub(crate) unsafe trait Magic {
    /// The magic number.
    const MAGIC: c_uint;
    /// What the child's panic says of a pointer to something else.
    const MISMATCH: &'static str;
}

macro_rules! magic {
    ($($type:ty, $magic:expr, $name:literal;)*) => {$(
        const _: () = assert!(offset_of!($type, magic) == 0);
        // SAFETY: `magic` is the first member, and varnishd sets it by INIT_OBJ before anything else sees the structure.
        unsafe impl Magic for $type {
            const MAGIC: c_uint = $magic;
            const MISMATCH: &'static str = concat!("not ", $name);
        }
    )*};
}

magic! {
    objcore, OBJCORE_MAGIC, "an objcore";
    worker, WORKER_MAGIC, "a worker";
    Stevedore, STEVEDORE_MAGIC, "a stevedore";
    Ban, BAN_MAGIC, "a ban";
    vrt_ctx, VRT_CTX_MAGIC, "a VRT_CTX";
    busyobj, BUSYOBJ_MAGIC, "a busyobj";
    director, DIRECTOR_MAGIC, "a director";
    http, HTTP_MAGIC, "a struct http";
    req, REQ_MAGIC, "a req";
    vdp_ctx, VDP_CTX_MAGIC, "a vdp_ctx";
    vdp_entry, VDP_ENTRY_MAGIC, "a vdp_entry";
}

/// Returns true if and only if `pointer` is not null and its magic number is right.
///
/// # Safety
/// `pointer` must be null or point to readable memory of the structure's size, which varnishd guarantees for what it hands
/// to a callback.
#[inline]
pub(crate) unsafe fn has_magic<T: Magic>(pointer: *const T) -> bool {
    // SAFETY: by contract; the first member is an unsigned, which nothing writes while the structure is lent.
    !pointer.is_null() && unsafe { pointer.cast::<c_uint>().read() } == T::MAGIC
}

/// Returns the pointer, checked. The child ends if it is null or something else.
///
/// # Safety
/// As for [`has_magic`].
#[inline]
#[track_caller]
unsafe fn checked<T: Magic>(slot: &'static str, pointer: *const T) -> *const T {
    // SAFETY: by contract.
    if !unsafe { has_magic(pointer) } {
        wrong(slot, T::MISMATCH);
    }
    pointer
}

/// Returns varnishd's objcore, checked. A pointer and no reference: other threads change its flags and counts at any time, so that
/// only fields may be read (through the pointer) that no thread writes meanwhile.
///
/// # Safety
/// As for [`has_magic`].
#[inline]
#[track_caller]
pub(crate) unsafe fn checked_objcore(oc: *const objcore) -> *const objcore {
    // SAFETY: by contract.
    unsafe { checked("checked_objcore", oc) }
}

/// Returns varnishd's worker, checked.
///
/// # Safety
/// As for [`has_magic`]; it must be the calling thread's worker, which no other thread writes to.
#[inline]
#[track_caller]
pub(crate) unsafe fn worker_ref<'a>(wrk: *const worker) -> &'a worker {
    // SAFETY: by contract.
    unsafe { &*checked("worker_ref", wrk) }
}

/// Returns varnishd's stevedore, checked.
///
/// # Safety
/// As for [`has_magic`]; varnishd and `open` write to a stevedore before any worker thread runs, and no more.
#[inline]
#[track_caller]
pub(crate) unsafe fn stevedore_ref<'a>(stv: *const Stevedore) -> &'a Stevedore {
    // SAFETY: by contract.
    unsafe { &*checked("stevedore_ref", stv) }
}

/// Returns varnishd's context, checked.
///
/// # Safety
/// `ctx` must be null or what varnishd called with, and is not used after that call.
#[inline]
#[track_caller]
pub(crate) unsafe fn context<'a>(ctx: *const vrt_ctx) -> &'a vrt_ctx {
    // SAFETY: by contract; nothing writes to a context while it is lent to a callback.
    unsafe { &*checked("context", ctx) }
}

/// Returns varnishd's director, checked.
///
/// # Safety
/// `director` must be null or one of varnishd's that lives for `'a`.
#[inline]
#[track_caller]
pub(crate) unsafe fn director_ref<'a>(director: *const director) -> &'a director {
    // SAFETY: by contract; nothing writes to the members of a director that are not behind a pointer.
    unsafe { &*checked("director_ref", director) }
}

/// Returns a head of varnishd's, checked.
///
/// # Safety
/// `head` must be null or a head of the calling thread's transaction that is neither changed nor freed during `'a`.
#[inline]
#[track_caller]
pub(crate) unsafe fn http_ref<'a>(head: *const http) -> &'a http {
    // SAFETY: by contract.
    unsafe { &*checked("http_ref", head) }
}

/// Returns the fetch of a context, checked; null if it is not one of a fetch.
///
/// # Safety
/// `ctx` must be one of varnishd's, whose busyobj is null or the calling thread's own.
#[inline]
#[track_caller]
pub(crate) unsafe fn busyobj_of(ctx: &vrt_ctx) -> *mut busyobj {
    if !ctx.bo.is_null() {
        // SAFETY: by contract.
        unsafe { checked("busyobj_of", ctx.bo) };
    }
    ctx.bo
}
