//! varnishd's least-recently-used list of a storage (Varnish: `storage/storage_lru.c`), by which it evicts.
//!
//! An object is on its storage's list from the end of its fetch until it is freed. Eviction calls the storage back: no lock of
//! the storage's may be held.

use varnishd_sys::functions::{LRU_Add, LRU_Alloc, LRU_NukeOne, LRU_Remove, LRU_Touch};
use varnishd_sys::obj_methods::ObjTouch;
use varnishd_sys::stevedore::Lru as RawLru;

use crate::clock;
use crate::objcore::Objcore;
use crate::worker::Worker;

/// The callback of an object that is used: moves it to the list's end, now and then.
pub(crate) const TOUCH: ObjTouch = LRU_Touch;

/// A list. It lives as long as the process.
#[derive(Clone, Copy)]
pub struct Lru(*mut RawLru);

// SAFETY: varnishd guards a list by a mutex of its own.
unsafe impl Send for Lru {}
// SAFETY: as above.
unsafe impl Sync for Lru {}

impl Lru {
    /// Makes an empty list.
    pub fn alloc() -> Lru {
        // SAFETY: the function asserts its own success.
        Lru(unsafe { LRU_Alloc() })
    }

    /// Returns the list at an address.
    ///
    /// # Safety
    /// `lru` must be a list of varnishd's.
    pub(crate) unsafe fn new(lru: *mut RawLru) -> Lru {
        Lru(lru)
    }

    pub(crate) fn as_ptr(self) -> *mut RawLru {
        self.0
    }

    /// Evicts the object that was used least recently and is not in use. Returns false if there is none, or the worker's limit of
    /// evictions is reached.
    #[inline]
    pub fn evict_one(self, wrk: Worker<'_>) -> bool {
        // SAFETY: a worker of the calling thread's, and a list that lives as long as the process.
        unsafe { LRU_NukeOne(wrk.as_ptr(), self.0) != 0 }
    }
}

/// Puts an object onto the list of its storage, at the time of the worker's last use.
///
/// # Safety
/// The fetch of `oc` must have ended in this call: it has no boc, and was not added before.
pub unsafe fn add(oc: Objcore<'_>, wrk: Worker<'_>) {
    // SAFETY: by contract.
    unsafe { LRU_Add(oc.as_ptr(), wrk.last_used().unwrap_or_else(clock::now)) };
}

/// Takes an object off the list of its storage, if its fetch has ended.
///
/// # Safety
/// The object must be about to be freed.
pub unsafe fn remove(oc: Objcore<'_>) {
    if !oc.has_boc() {
        // SAFETY: by contract; without a boc the object is on the list.
        unsafe { LRU_Remove(oc.as_ptr()) };
    }
}
