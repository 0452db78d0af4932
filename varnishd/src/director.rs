//! A director of ours (Varnish: `cache/cache_director.h`): its table, and what varnishd is asked of directors and backends.
//!
//! varnishd counts the references to a director. Its private lives from [`create`] until varnishd calls `destroy`.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;

use varnishd_sys::bindings::{
    SC_TX_ERROR, VDI_METHODS_MAGIC, VRT_AddDirector, VRT_Assign_Backend, VRT_DelDirector, VRT_Healthy, vdi_methods,
};

use crate::boundary::Constant;
use crate::cast::director_ref;
use crate::context::Context;
use crate::raw::{Backend, CloseReason, RawContext, RawText, VclBool, VclTime};

/// The table of a director.
pub type DirectorMethods = vdi_methods;

/// The callbacks of a director that answers fetches itself.
pub struct DirectorCallbacks {
    /// Makes a response: 0, or -1 for a failed fetch.
    pub get_response: unsafe extern "C" fn(*const RawContext, Backend) -> c_int,
    /// The fetch is done with the response.
    pub finish: unsafe extern "C" fn(*const RawContext, Backend),
    /// Passes a connection through.
    pub pipe: unsafe extern "C" fn(*const RawContext, Backend) -> CloseReason,
    /// Returns whether the director can be asked.
    pub healthy: unsafe extern "C" fn(*const RawContext, Backend, *mut VclTime) -> VclBool,
    /// The director's references to other ones are to be given up.
    pub release: unsafe extern "C" fn(Backend),
    /// The last reference is gone.
    pub destroy: unsafe extern "C" fn(Backend),
    /// Describes the director for a panic message.
    pub panic: unsafe extern "C" fn(Backend, *mut RawText),
    /// Writes the director's part of `backend.list`.
    pub list: unsafe extern "C" fn(*const RawContext, Backend, *mut RawText, c_int, c_int),
}

impl DirectorCallbacks {
    /// Returns the table of these callbacks, for directors that `backend.list` says are of the kind `kind`.
    pub const fn table(self, kind: &'static CStr) -> DirectorMethods {
        vdi_methods {
            magic: VDI_METHODS_MAGIC,
            type_: kind.as_ptr(),
            http1pipe: Some(self.pipe),
            healthy: Some(self.healthy),
            // None: a fetch is the director's own until it has asked its backend, and `backend.list` shows a line and no tree.
            resolve: None,
            gethdrs: Some(self.get_response),
            // Asked for the director's own responses only: there is no peer.
            getip: None,
            finish: Some(self.finish),
            // Nothing runs for one director that should rest while its VCL is cold.
            event: None,
            release: Some(self.release),
            destroy: Some(self.destroy),
            panic: Some(self.panic),
            list: Some(self.list),
        }
    }
}

/// Makes a director of the VCL that is being loaded; `None` if the VCL is being discarded.
///
/// # Safety
/// `ctx` must be the context of vcl_init. The director must be given its private ([`set_private`]) before it is passed on.
pub unsafe fn create(ctx: Context<'_>, methods: &'static Constant<DirectorMethods>, name: &CStr) -> Option<Backend> {
    // SAFETY: by contract; cache/cache_vrt_vcl.c copies the name, for which the format is.
    let dir = unsafe { VRT_AddDirector(ctx.as_ptr(), methods.address(), null_mut(), c"%s".as_ptr(), name.as_ptr()) };
    (!dir.is_null()).then_some(dir)
}

/// Returns the name that varnishd's CLI shows.
///
/// # Safety
/// `dir` must be a director of ours that lives for `'a`.
pub unsafe fn full_name<'a>(dir: Backend) -> &'a CStr {
    // SAFETY: by contract: a live director has a name.
    unsafe { CStr::from_ptr((*director_ref(dir).vdir).cli_name) }
}

/// Sets the director's private.
///
/// # Safety
/// `dir` must be what [`create`] has returned, and not have been passed on.
pub unsafe fn set_private(dir: Backend, private: *mut c_void) {
    // SAFETY: by contract.
    unsafe { (*dir.cast_mut()).priv_ = private };
}

/// Returns the director's private.
///
/// # Safety
/// `dir` must be a director of ours: what varnishd calls one of its callbacks with.
#[track_caller]
pub unsafe fn private(dir: Backend) -> *mut c_void {
    // SAFETY: by contract.
    unsafe { director_ref(dir).priv_ }
}

/// Gives up the VCL's reference to a director of ours.
///
/// # Safety
/// Called once for a director, when the VCL's object is discarded.
pub unsafe fn delete(mut dir: Backend) {
    // SAFETY: by contract.
    unsafe { VRT_DelDirector(&raw mut dir) };
}

/// Returns a reference to `new`, which may be null, in exchange for the one to `old`.
///
/// # Safety
/// `old` must be null or a reference of the caller's, `new` null or a live director.
pub unsafe fn exchange(mut old: Backend, new: Backend) -> Backend {
    // SAFETY: by contract.
    unsafe { VRT_Assign_Backend(&raw mut old, new) };
    old
}

/// Returns whether a backend can be asked. Null cannot.
///
/// # Safety
/// `backend` must be null or a live director, `changed` null or writable, and `ctx` what varnishd called with.
pub unsafe fn is_healthy(ctx: *const RawContext, backend: Backend, changed: *mut VclTime) -> VclBool {
    // SAFETY: by contract.
    unsafe { VRT_Healthy(ctx, backend, changed) }
}

/// Returns the reason for closing a connection over which nothing can be sent.
pub fn close_after_error() -> CloseReason {
    (&raw const SC_TX_ERROR).cast()
}
