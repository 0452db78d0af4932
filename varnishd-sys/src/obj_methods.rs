//! `struct obj_methods`: what varnishd calls on an object (Varnish: `bin/varnishd/cache/cache_obj.h`).

use core::ffi::{c_int, c_void};

use crate::bindings::{boc, boc_state_e, obj_attr, objcore, vtim_real, worker};

/// `objiterate_f` (Varnish: `include/vrt_obj.h` users; `cache/cache.h`): consumes bytes of a body. A value other than 0 ends the iteration.
pub type ObjIterateFn =
    unsafe extern "C" fn(priv_: *mut c_void, flush: core::ffi::c_uint, ptr: *const c_void, len: isize) -> c_int;

/// `objfree_f`: the last reference is gone, or the object is replaced by a synthetic one while it is fetched.
pub type ObjFree = unsafe extern "C" fn(*mut worker, *mut objcore);
/// `objiterator_f`: hands the body to a function, following the fetch while there is one.
pub type ObjIterator =
    unsafe extern "C" fn(*mut worker, *mut objcore, *mut c_void, Option<ObjIterateFn>, c_int) -> c_int;
/// `objgetspace_f`: space to write body bytes to; 0 is failure.
pub type ObjGetSpace = unsafe extern "C" fn(*mut worker, *mut objcore, *mut isize, *mut *mut u8) -> c_int;
/// `objextend_f`: so many bytes of that space are body now. Called with `boc->mtx` held.
pub type ObjExtend = unsafe extern "C" fn(*mut worker, *mut objcore, isize);
/// `objgetattr_f`: an attribute, or NULL.
pub type ObjGetAttr = unsafe extern "C" fn(*mut worker, *mut objcore, obj_attr, *mut isize) -> *const c_void;
/// `objsetattr_f`: room for an attribute, or NULL.
pub type ObjSetAttr = unsafe extern "C" fn(*mut worker, *mut objcore, obj_attr, isize, *const c_void) -> *mut c_void;
/// `objtrimstore_f`: nothing more will be written.
pub type ObjTrimStore = unsafe extern "C" fn(*mut worker, *mut objcore);
/// `objbocdone_f`: the last reference to the boc is gone; from here on the object is cached.
pub type ObjBocDone = unsafe extern "C" fn(*mut worker, *mut objcore, *mut boc);
/// `objslim_f`: give the body back, keep the attributes.
pub type ObjSlim = unsafe extern "C" fn(*mut worker, *mut objcore);
/// `objtouch_f`: the object was used.
pub type ObjTouch = unsafe extern "C" fn(*mut worker, *mut objcore, vtim_real);
/// `objsetstate_f`: the boc is about to enter a state.
pub type ObjSetState = unsafe extern "C" fn(*mut worker, *const objcore, boc_state_e);

/// `struct obj_methods`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ObjMethods {
    // Required.
    /// See [`ObjFree`].
    pub objfree: Option<ObjFree>,
    /// See [`ObjIterator`].
    pub objiterator: Option<ObjIterator>,
    /// See [`ObjGetSpace`].
    pub objgetspace: Option<ObjGetSpace>,
    /// See [`ObjExtend`].
    pub objextend: Option<ObjExtend>,
    /// See [`ObjGetAttr`].
    pub objgetattr: Option<ObjGetAttr>,
    /// See [`ObjSetAttr`].
    pub objsetattr: Option<ObjSetAttr>,
    // Optional.
    /// See [`ObjTrimStore`].
    pub objtrimstore: Option<ObjTrimStore>,
    /// See [`ObjBocDone`].
    pub objbocdone: Option<ObjBocDone>,
    /// See [`ObjSlim`].
    pub objslim: Option<ObjSlim>,
    /// See [`ObjTouch`].
    pub objtouch: Option<ObjTouch>,
    /// See [`ObjSetState`].
    pub objsetstate: Option<ObjSetState>,
    /// Iteration without a thread that waits (`vai_init_f`): see [`ObjMethods::NONE`].
    #[cfg(varnishd_has = "vai")]
    pub vai_init: Option<unsafe extern "C" fn()>,
}

impl ObjMethods {
    /// No method at all, for `..ObjMethods::NONE`: what a branch has more than another is optional.
    pub const NONE: ObjMethods = ObjMethods {
        objfree: None,
        objiterator: None,
        objgetspace: None,
        objextend: None,
        objgetattr: None,
        objsetattr: None,
        objtrimstore: None,
        objbocdone: None,
        objslim: None,
        objtouch: None,
        objsetstate: None,
        #[cfg(varnishd_has = "vai")]
        vai_init: None,
    };
}

const _: () = {
    const SLOTS: usize = if cfg!(varnishd_has = "vai") { 12 } else { 11 };
    assert!(size_of::<ObjMethods>() == SLOTS * size_of::<usize>());
    assert!(core::mem::offset_of!(ObjMethods, objtrimstore) == 6 * size_of::<usize>());
    assert!(core::mem::offset_of!(ObjMethods, objsetstate) == 10 * size_of::<usize>());
};
