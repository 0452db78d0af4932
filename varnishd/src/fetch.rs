//! A fetch (Varnish: `cache/cache_fetch.c`), begun anew by its director, or handed to another one.

use std::ptr::null_mut;

use varnishd_sys::bindings::{
    DIR_S_HDRS, DIR_S_NULL, HTTP_Setup, SLT_BerespMethod, VCL_BACKEND, VDI_Finish, VFP_Close, VFP_Setup,
    VRT_Assign_Backend, busyobj,
};

use crate::vsl;

/// Gives up the response that a fetch has and begins another one, as `vbf_stp_startfetch` does, of which `director` is the
/// director.
///
/// # Safety
/// `bo` must be the calling thread's busyobj, between the call of a director's `gethdrs` and its return: VCL has not seen a
/// response yet. `director` must be one that lives at least as long as the fetch.
pub unsafe fn reset(bo: *mut busyobj, director: VCL_BACKEND) {
    // SAFETY: by contract.
    unsafe {
        if (*bo).director_state != DIR_S_NULL && !(*bo).htc.is_null() {
            (*bo).acct.beresp_bodybytes += VFP_Close((*bo).vfc);
            VDI_Finish(bo);
        } else {
            VFP_Close((*bo).vfc);
        }
        VFP_Setup((*bo).vfc, (*bo).wrk);
        (*(*bo).vfc).oc = (*bo).fetch_objcore;
        (*(*bo).vfc).resp = (*bo).beresp;
        (*(*bo).vfc).req = (*bo).bereq;
        (*bo).htc = null_mut();
        HTTP_Setup((*bo).beresp, (&raw mut (*bo).ws).cast(), vsl::of_fetch(bo), SLT_BerespMethod);
        VRT_Assign_Backend(&raw mut (*bo).director_resp, director);
        (*bo).director_state = DIR_S_HDRS;
    }
}

/// Has varnishd treat `director` as the one of the fetch, for the time of `call`.
///
/// # Safety
/// `bo` must be the calling thread's busyobj. `director` must live until `call` returns: neither director's reference is touched.
pub unsafe fn with_director<T>(bo: *mut busyobj, director: VCL_BACKEND, call: impl FnOnce(*mut busyobj) -> T) -> T {
    // SAFETY: by contract.
    unsafe {
        let own = std::mem::replace(&mut (*bo).director_req, director);
        let value = call(bo);
        (*bo).director_req = own;
        value
    }
}
