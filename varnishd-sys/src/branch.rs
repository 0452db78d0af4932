//! What differs between the branches that can be built for, behind one interface. Nothing above this crate asks for a branch
//! or a capability.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::null;

use crate::bindings::{
    H_If_Modified_Since, H_If_None_Match, hdr_t, objcore, strands, vdp, vdp_bytes_f, vdp_fini_f, vdp_init_f, vsl_log,
    worker,
};

/// A header's name as varnishd's functions take it. The types decide: with the wrong one of the two this does not compile.
#[cfg(not(varnishd_has = "hdr_t"))]
macro_rules! header {
    ($name:ident) => {
        (&raw const $name).cast::<c_char>()
    };
}

/// As above. Here the address of the variable would be accepted by a cast, and name nothing.
#[cfg(varnishd_has = "hdr_t")]
macro_rules! header {
    ($name:ident) => {
        // SAFETY: a constant of varnishd's.
        unsafe { $name }
    };
}

/// `H_If_None_Match`.
pub fn if_none_match() -> hdr_t {
    header!(H_If_None_Match)
}

/// `H_If_Modified_Since`.
pub fn if_modified_since() -> hdr_t {
    header!(H_If_Modified_Since)
}

/// A header's name of one's own: a byte with the length of the rest, the name, and a colon. Each branch keeps names so; only
/// the pointer's type differs.
pub fn header_name(counted: &'static CStr) -> hdr_t {
    counted.as_ptr().cast()
}

/// A `struct strands` of these parts, of which each may be null.
///
/// The structure points to `parts`.
pub fn strands_of(parts: &mut [*const c_char]) -> strands {
    strands {
        #[cfg(varnishd_has = "strands_magic")]
        magic: crate::bindings::STRANDS_MAGIC,
        n: c_int::try_from(parts.len()).unwrap_or(c_int::MAX),
        p: parts.as_mut_ptr(),
    }
}

/// A delivery filter that is called for each piece of a body, and not asked for pieces (`io_*`, of which nothing is required).
pub const fn delivery_filter(
    name: &'static core::ffi::CStr,
    init: vdp_init_f,
    bytes: vdp_bytes_f,
    fini: vdp_fini_f,
) -> vdp {
    vdp {
        name: name.as_ptr(),
        init,
        bytes,
        fini,
        priv1: null::<c_void>(),
        #[cfg(varnishd_has = "vai")]
        io_init: None,
        #[cfg(varnishd_has = "vai")]
        io_upgrade: None,
        #[cfg(varnishd_has = "vai")]
        io_lease: None,
        #[cfg(varnishd_has = "vai")]
        io_fini: None,
    }
}

/// Gives a log buffer memory of the size that the parameter `vsl_buffer` says. varnishd asserts that there is some.
///
/// # Safety
/// `vsl` must point to room for a `struct vsl_log`. It is initialised by this.
pub unsafe fn init_log(vsl: *mut vsl_log) {
    #[cfg(varnishd_has = "vsl_alloc")]
    // SAFETY: by contract.
    unsafe {
        crate::bindings::VSL_Alloc(vsl)
    };
    #[cfg(not(varnishd_has = "vsl_alloc"))]
    // SAFETY: by contract; without memory given it allocates.
    unsafe {
        crate::bindings::VSL_Setup(vsl, core::ptr::null_mut(), 0)
    };
}

#[cfg(varnishd_has = "hsh_withdraw")]
unsafe extern "C" {
    fn HSH_DerefObjCore(wrk: *mut worker, oc: *mut *mut objcore) -> c_int;
    fn HSH_Withdraw(wrk: *mut worker, oc: *mut *mut objcore);
}

#[cfg(not(varnishd_has = "hsh_withdraw"))]
unsafe extern "C" {
    fn HSH_DerefObjCore(wrk: *mut worker, oc: *mut *mut objcore, rushmax: c_int) -> c_int;
}

/// Gives a reference to an object back (Varnish: `cache/cache_hash.c`); the last one frees it.
///
/// # Safety
/// `wrk` must be the calling thread's worker, and `oc` an objcore of which the caller holds a reference.
pub unsafe fn deref_object(wrk: *mut worker, mut oc: *mut objcore) {
    // SAFETY: by contract. No request is woken, as by varnishd itself where no object has become available.
    unsafe {
        #[cfg(varnishd_has = "hsh_withdraw")]
        HSH_DerefObjCore(wrk, &raw mut oc);
        #[cfg(not(varnishd_has = "hsh_withdraw"))]
        HSH_DerefObjCore(wrk, &raw mut oc, 0);
    }
}

/// Takes a busy objcore back that no fetch has begun for, and wakes one request that waits for it, as varnishd does after a
/// purge (Varnish: `cache/cache_req_fsm.c`, `cnt_purge`).
///
/// # Safety
/// `wrk` must be the calling thread's worker, and `oc` a busy objcore without an object, of which the caller holds the only
/// reference.
pub unsafe fn withdraw(wrk: *mut worker, mut oc: *mut objcore) {
    // SAFETY: by contract.
    unsafe {
        #[cfg(varnishd_has = "hsh_withdraw")]
        HSH_Withdraw(wrk, &raw mut oc);
        #[cfg(not(varnishd_has = "hsh_withdraw"))]
        HSH_DerefObjCore(wrk, &raw mut oc, 1);
    }
}

/// Enters an object of an earlier process into the cache: see [`HSH_Insert`](crate::functions::HSH_Insert).
///
/// # Safety
/// `wrk` must be the calling thread's worker, `oc` come from `ObjNew`, with an object and one reference, and `ban` be in varnishd's
/// list, with a hold on it.
pub unsafe fn insert_object(wrk: *mut worker, digest: &[u8; 32], oc: *mut objcore, ban: *mut crate::ban::Ban) {
    // SAFETY: by contract; no other thread knows the objcore yet.
    unsafe {
        #[cfg(varnishd_has = "hsh_withdraw")]
        {
            (*oc).flags &= !(crate::bindings::OC_F_BUSY as u8);
        }
        crate::functions::HSH_Insert(wrk, digest.as_ptr().cast(), oc, ban);
    }
}
