//! Objects of an earlier process, in varnishd's cache again (Varnish: `cache/cache_hash.c`, `HSH_Insert`, as
//! `storage/storage_persistent_silo.c` uses it).

use std::ffi::c_void;

use varnishd_sys::branch::{deref_object, insert_object};
use varnishd_sys::functions::{HSH_DerefBoc, ObjNew};
use varnishd_sys::vsc;

use crate::ban_reload::RawBan;
use crate::objcore::Lifetime;
use crate::raw::RawStorage;
use crate::worker::Worker;

/// An object of an earlier process.
pub struct Reloaded<'a> {
    /// Its key.
    pub digest: &'a [u8; 32],
    /// Its times.
    pub lifetime: Lifetime,
    /// Which attributes it has: [`Objcore::attribute_bits`](crate::objcore::Objcore::attribute_bits).
    pub attributes: u16,
    /// The newest ban that it was tested by.
    pub ban: RawBan,
    /// Its storage.
    pub storage: *const RawStorage,
    /// The storage's own.
    pub private: *mut c_void,
}

/// Enters an object, ahead of those of its key that are there. The storage's `objbocdone` is called for it, with a boc whose state
/// is none of a fetch's.
///
/// # Safety
/// Called from a storage's `open`, on a thread that it waits for. The storage's methods must know what `private` points to, and
/// `ban` must be in varnishd's list.
pub unsafe fn insert(worker: Worker<'_>, object: &Reloaded<'_>) {
    let wrk = worker.as_ptr();
    // SAFETY: this thread's worker. ObjNew asserts that it has memory, and nothing else knows the objcore before it is inserted;
    // it is a reference of ours, that HSH_Insert wants, and that is given back at the end.
    unsafe {
        let oc = ObjNew(wrk);
        (*oc).stobj[0].stevedore = object.storage.cast();
        (*oc).stobj[0].priv_ = object.private;
        (*oc).stobj[0].priv2 = 0;
        (*oc).t_origin = object.lifetime.origin;
        (*oc).ttl = object.lifetime.ttl;
        (*oc).grace = object.lifetime.grace;
        (*oc).keep = object.lifetime.keep;
        (*oc).oa_present = object.attributes;
        (*oc).refcnt = 1;
        vsc::one_object_more(wrk);
        insert_object(wrk, object.digest, oc, object.ban.0.as_ptr());
        HSH_DerefBoc(wrk, oc);
        deref_object(wrk, oc);
    }
}
