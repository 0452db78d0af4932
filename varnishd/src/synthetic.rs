//! A look at requests that may have purged, before they are answered (Varnish: `cache/cache_req_fsm.c`, `cnt_purge`, `cnt_synth`).
//!
//! varnishd tells no storage of a purge before its expiry thread has carried it out. A request that purges ends, as a rule, with a
//! synthetic response, for which varnishd makes an object in `Transient` in the thread that has purged: there a hook of ours
//! looks first.

use std::ffi::{CStr, c_int, c_uint};
use std::ptr::null_mut;
use std::sync::OnceLock;

use varnishd_sys::bindings::{HTTP_HDR_METHOD, THR_GetRequest, http, req};
use varnishd_sys::functions::STV__iter;
use varnishd_sys::stevedore::{Stevedore, StorageAllocObj};
use varnishd_sys::{objcore, worker};

use crate::boundary::infallible;
use crate::cast::has_magic;
use crate::worker::Worker;

const TRANSIENT: &CStr = c"Transient";

/// The `allocobj` of `Transient` that ours is called for now.
static FORMER: OnceLock<StorageAllocObj> = OnceLock::new();
/// What is called with the key of a request that may have purged.
static LISTENER: OnceLock<Listener> = OnceLock::new();

/// What is called with the calling thread's worker and the key of a request. No lock is held. It must not panic.
pub type Listener = fn(Worker<'_>, &[u8; 32]);

/// Calls `listener` before each synthetic response to a request that was looked up as a purge is, or whose method is neither GET nor
/// HEAD. Called in varnishd's CLI thread, from a storage's `open`; once in a process.
pub fn listen(listener: Listener) {
    if LISTENER.set(listener).is_err() {
        return;
    }
    let mut stv: *mut Stevedore = null_mut();
    // SAFETY: varnishd's list of storages is complete before the first is opened.
    while unsafe { STV__iter(&raw mut stv) } != 0 {
        // SAFETY: an element of that list, whose name is a string. No thread makes objects yet.
        unsafe {
            if has_magic(stv)
                && CStr::from_ptr((*stv).ident) == TRANSIENT
                && let Some(former) = (*stv).allocobj
            {
                let _ = FORMER.set(former);
                (*stv).allocobj = Some(allocobj);
            }
        }
    }
}

unsafe extern "C" fn allocobj(wrk: *mut worker, stv: *const Stevedore, oc: *mut objcore, wsl: c_uint) -> c_int {
    infallible("synthetic response", || {
        // SAFETY: the request of the calling thread, or null on a fetch's; varnishd calls with the thread's worker.
        unsafe {
            let request = THR_GetRequest();
            if let Some(listener) = LISTENER.get()
                && has_magic(request)
                && std::ptr::eq((*request).wrk, wrk)
                && may_have_purged(&*request)
            {
                let digest = (*request).digest;
                listener(Worker::new(wrk), &digest);
            }
        }
    });
    match FORMER.get() {
        // SAFETY: what varnishd would have called, with what it calls us with.
        Some(former) => unsafe { former(wrk, stv, oc, wsl) },
        None => 0,
    }
}

/// Returns true if the request was looked up as `return (purge)` is, or came with another method than GET and HEAD.
///
/// # Safety
/// The calling thread's request.
unsafe fn may_have_purged(request: &req) -> bool {
    if request.hash_always_miss() != 0 {
        return true;
    }
    let head: *const http = request.http0;
    // SAFETY: the head that came with the request, whose first line is there; a text is null, or lies between its two ends.
    unsafe {
        if !has_magic(head) {
            return false;
        }
        let method = &*(*head).hd.add(HTTP_HDR_METHOD as usize);
        if method.b.is_null() || method.e < method.b {
            return false;
        }
        let method = std::slice::from_raw_parts(method.b.cast::<u8>(), method.e.offset_from_unsigned(method.b));
        !matches!(method, b"GET" | b"HEAD")
    }
}
