//! An object in varnishd's cache, of whatever storage: its head, and how it leaves the cache (Varnish: `cache/cache_hash.c`,
//! `cache/cache_expire.c`).
//!
//! An objcore is valid as long as somebody holds a reference to it. [`Object`] is lent with one, [`Held`] is one.

use std::ffi::c_char;
use std::marker::PhantomData;
use std::ptr::null;

use varnishd_sys::bindings::{EXP_Reduce, HTTP_IterHdrPack, OC_EF_REFD, OC_F_DYING, VTIM_real, objcore};
use varnishd_sys::branch::deref_object;
use varnishd_sys::functions::{HSH_Kill, HSH_Ref};

use crate::cast::checked_objcore;
use crate::objcore::Objcore;
use crate::text::text;
use crate::worker::Worker;

/// An object that is valid for `'a`.
#[derive(Clone, Copy)]
pub struct Object<'a>(*mut objcore, PhantomData<&'a objcore>);

/// The address of an object: it says which one it is, and nothing about whether it is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(usize);

impl Address {
    /// The number.
    #[must_use]
    pub fn to_usize(self) -> usize {
        self.0
    }

    /// From [`Address::to_usize`].
    #[must_use]
    pub fn from_usize(number: usize) -> Address {
        Address(number)
    }
}

/// The address of a fetch's object.
#[must_use]
pub fn address_of(object: crate::objcore::Objcore<'_>) -> Address {
    Address(object.as_ptr().expose_provenance())
}

impl<'a> Object<'a> {
    /// The object of a pointer of varnishd's.
    ///
    /// # Safety
    /// `oc` must be an objcore to which a reference is held for `'a`.
    pub unsafe fn lent(oc: *mut objcore) -> Object<'a> {
        // SAFETY: by contract.
        unsafe { checked_objcore(oc) };
        Object(oc, PhantomData)
    }

    /// Returns the same object, as a storage sees it.
    #[must_use]
    pub fn objcore(&self) -> Objcore<'a> {
        // SAFETY: what was checked, and is lent for as long.
        unsafe { Objcore::new(self.0) }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Address {
        Address(self.0.expose_provenance())
    }

    /// Calls `each` with every line of the stored head (`Name: value`), until it returns false.
    pub fn each_header(&self, worker: Worker<'_>, mut each: impl FnMut(&[u8]) -> bool) {
        let mut line: *const c_char = null();
        // SAFETY: a live object, whose head is complete since before look-ups found it and does not change; the lines are
        // NUL-terminated, and in its storage.
        while unsafe { HTTP_IterHdrPack(worker.as_ptr(), self.0, &raw mut line) } != 0 {
            // SAFETY: as above.
            let Some(line) = (unsafe { text(line) }) else { return };
            if !each(line) {
                return;
            }
        }
    }

    /// Returns true if look-ups find it no more.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        // SAFETY: a live objcore; a look without the mutex is what varnishd itself takes where a late answer does no harm.
        unsafe { u32::from((&raw const (*self.0).flags).read_volatile()) & OC_F_DYING != 0 }
    }

    /// Returns true if varnishd will still tell of the object's end ([`Event::Expired`](crate::object_events::Event)).
    ///
    /// It takes that mark off before it tells: a thread that has noted an object where the listener looks for it, and is
    /// answered true afterwards, knows that the listener will find the note.
    #[must_use]
    pub fn will_expire(&self) -> bool {
        // SAFETY: as for `is_dying`. The order comes from the lock that note and listener share.
        unsafe { u32::from((&raw const (*self.0).exp_flags).read_volatile()) & OC_EF_REFD != 0 }
    }
}

/// A reference to an object.
pub struct Held(*mut objcore);

// SAFETY: a reference is counted under the objhead's mutex, and may be given back by any thread with a worker.
unsafe impl Send for Held {}

impl Held {
    /// Takes a reference to the object at `address`.
    ///
    /// # Safety
    /// There must be a reference to it, which is not given back during the call; no mutex of varnishd's may be held.
    #[must_use]
    pub unsafe fn take(address: Address) -> Held {
        let oc = std::ptr::with_exposed_provenance_mut::<objcore>(address.0);
        // SAFETY: by contract.
        unsafe {
            checked_objcore(oc);
            HSH_Ref(oc);
        }
        Held(oc)
    }

    /// A reference that was counted already.
    ///
    /// # Safety
    /// The caller must own a reference, and give it to the value.
    pub(crate) unsafe fn from_counted(oc: *mut objcore) -> Held {
        Held(oc)
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> Object<'_> {
        Object(self.0, PhantomData)
    }

    /// Takes it out of the cache. Readers that have it read on. Returns false if it was on its way out already.
    pub fn kill(&self) -> bool {
        let was_alive = !self.object().is_dying();
        // SAFETY: a reference is held, and no lock.
        unsafe { HSH_Kill(self.0) };
        was_alive
    }

    /// Makes it stale: its ttl ends now, grace and keep stay. Returns false if it was stale already, or on its way out.
    pub fn expire_softly(&self) -> bool {
        // SAFETY: a reference is held, and no lock; ttl and t_origin are read as look-ups read them.
        unsafe {
            let now = VTIM_real();
            let fresh = (*self.0).t_origin + f64::from((*self.0).ttl) > now;
            EXP_Reduce(self.0, now, 0.0, f64::NAN, f64::NAN);
            fresh && !self.object().is_dying()
        }
    }

    /// Gives it back; the last reference frees the object, in the calling thread.
    pub fn release(self, worker: Worker<'_>) {
        // SAFETY: the value's own reference; the worker is the calling thread's.
        unsafe { deref_object(worker.as_ptr(), self.0) };
    }
}
