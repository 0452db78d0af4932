//! Purges of a key, without a request of it (Varnish: `cache/cache_req_fsm.c`, `cnt_purge`; `cache/cache_hash.c`).
//!
//! varnishd finds the objects of a digest by a look-up of a request. The one that is used here has nothing but what a look-up that
//! always misses reads, and never leaves this file.

use std::mem::MaybeUninit;
use std::ptr::null_mut;

use varnishd_sys::bindings::{HTTP_MAGIC, Lck__Lock, Lck__Unlock, OC_F_BUSY, REQ_MAGIC, VTIM_real, http, req};
use varnishd_sys::branch::withdraw;
use varnishd_sys::functions::{HSH_Lookup, HSH_Purge};
use varnishd_sys::objhead::ObjHead;

use crate::boundary::wrong;
use crate::cast::has_magic;
use crate::objcore::Objcore;
use crate::worker::Worker;

/// `HSH_MISS` of `enum lookup_e`.
const HSH_MISS: u32 = 0;

/// Purges all objects of a digest, as `return (purge)` does: hard, or soft, so that grace and keep stay. Returns their number.
/// Objects whose fetch has no answer yet stay. No lock may be held.
pub fn purge_digest(worker: Worker<'_>, digest: &[u8; 32], soft: bool) -> u32 {
    with_objhead(worker, digest, |head| {
        let rest = if soft { f64::NAN } else { 0.0 };
        // SAFETY: an objhead with a reference; the worker is the calling thread's, and no lock is held.
        unsafe { HSH_Purge(worker.as_ptr(), head, VTIM_real(), 0.0, rest, rest) }
    })
}

/// Calls `each` with all objects of a digest whose fetch has an answer, those that are on their way out too. No lock may be held;
/// the objhead's mutex is, during `each`, which must not call varnishd.
pub fn each_of_digest(worker: Worker<'_>, digest: &[u8; 32], mut each: impl FnMut(Objcore<'_>)) {
    with_objhead(worker, digest, |head| {
        // SAFETY: an objhead with a reference; its list is read with its mutex held, under which no object of it is freed.
        unsafe {
            let mutex = &raw mut (*head).mtx;
            Lck__Lock(mutex, c"objmapper objects".as_ptr(), 0);
            let mut next = (*head).objcs.first;
            while has_magic(next) {
                let oc = next;
                next = (*oc).hsh_list.vtqe_next;
                if u32::from((*oc).flags) & OC_F_BUSY == 0 {
                    each(Objcore::new(oc));
                }
            }
            Lck__Unlock(mutex, c"objmapper objects".as_ptr(), 0);
        }
    });
}

/// Calls `call` with the objhead of a digest, which is made if there is none.
fn with_objhead<T>(worker: Worker<'_>, digest: &[u8; 32], call: impl FnOnce(*mut ObjHead) -> T) -> T {
    let mut head = MaybeUninit::<http>::zeroed();
    let mut request = MaybeUninit::<req>::zeroed();
    let (mut found, mut busy) = (null_mut(), null_mut());
    // SAFETY: `http` and `req` are plain data of C's, for which zero is a value; neither leaves this call. With
    // `hash_always_miss` HSH_Lookup reads of a request: the magic numbers, `wrk`, `http`, `digest`, that it brings neither an
    // objcore nor an objhead, `vcf` (null), and no more; it returns a busy objcore, with a reference of ours, in the objhead of
    // the digest, whose own reference that objcore holds. The worker is the calling thread's, and no lock is held.
    unsafe {
        (*head.as_mut_ptr()).magic = HTTP_MAGIC;
        let request = request.as_mut_ptr();
        (*request).magic = REQ_MAGIC;
        (*request).wrk = worker.as_ptr();
        (*request).http = head.as_mut_ptr();
        (*request).digest = *digest;
        (*request).set_hash_always_miss(1);
        if HSH_Lookup(request, &raw mut found, &raw mut busy) != HSH_MISS || !found.is_null() || busy.is_null() {
            wrong("purge", "a look-up that always misses has found something");
        }
        let result = call((*busy).objhead.cast());
        withdraw(worker.as_ptr(), busy);
        result
    }
}
