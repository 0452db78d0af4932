//! An object in varnishd's index (Varnish: `struct objcore` in `cache/cache.h`), as a storage and a director see it.
//!
//! ```text
//! fetch begins ──► a storage allocates the object ──► body comes in ──► fetch ends ──► cached ──► killed ──► freed
//! └────────────── has a boc; the fetch alone writes attributes and body ─────────────┘
//! ```
//!
//! Other threads set flags and counts at any time, under varnishd's locks, by plain stores: they are read by volatile reads, and a
//! caller uses a flag only where its value does not change any more, or any of its values will do. What a flag's name says is
//! stated at each method.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::{AtomicI32, AtomicU8};

use varnishd_sys::OC_F_TRANSIENT;
use varnishd_sys::bindings::{
    BOS_FINISHED, BOS_STREAM, OC_EF_REFD, OC_F_CANCEL, OC_F_DYING, OC_F_FAILED, OC_F_HFM, OC_F_HFP, OC_F_PRIVATE,
    ObjGetLen, storeobj,
};
use varnishd_sys::functions::HSH_Kill;
use varnishd_sys::objhead::{OBJHEAD_MAGIC, ObjHead};

use crate::cast::checked_objcore;
use crate::raw::{RawBoc, RawObjcore, RawStorage};
use crate::worker::Worker;

/// The address of an object in varnishd's index. It is compared, and never followed: another object may have it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjcoreId(usize);

impl ObjcoreId {
    /// Returns the id of the object at an address, which is not read.
    pub fn of(oc: *const c_void) -> ObjcoreId {
        ObjcoreId(oc.addr())
    }
}

/// The times by which an object is fresh: seconds since 1970, and seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lifetime {
    /// When the response was made.
    pub origin: f64,
    /// How long from then on it is fresh.
    pub ttl: f32,
    /// How long from then on it may be delivered while it is fetched again.
    pub grace: f32,
    /// How long from then on it is kept to be revalidated.
    pub keep: f32,
}

/// The references to an object beside the calling thread's and the expiry thread's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holders {
    /// The fetch was cancelled: what its only reader has not read yet is of no use.
    Cancelled,
    /// So many.
    Count(u32),
}

/// An object to which the calling thread holds a reference for `'a`.
#[derive(Clone, Copy)]
pub struct Objcore<'a>(NonNull<RawObjcore>, PhantomData<&'a RawObjcore>);

impl<'a> Objcore<'a> {
    /// Returns the object that varnishd called with. A pointer to anything else ends the child.
    ///
    /// # Safety
    /// `oc` must be what varnishd called with, and the calling thread must hold a reference to it for `'a`.
    #[inline]
    #[track_caller]
    pub unsafe fn new(oc: *const RawObjcore) -> Objcore<'a> {
        // SAFETY: by contract; what was checked is not null.
        unsafe { Objcore(NonNull::new_unchecked(checked_objcore(oc).cast_mut()), PhantomData) }
    }

    /// Returns the object of [`Objcore::expose`].
    ///
    /// # Safety
    /// As for [`Objcore::new`].
    pub unsafe fn from_exposed(address: usize) -> Objcore<'a> {
        // SAFETY: by contract.
        unsafe { Objcore::new(std::ptr::with_exposed_provenance(address)) }
    }

    /// Returns the object's address, for [`Objcore::from_exposed`].
    pub fn expose(self) -> usize {
        self.as_ptr().expose_provenance()
    }

    /// Returns the object's id.
    pub fn id(self) -> ObjcoreId {
        ObjcoreId(self.as_ptr().addr())
    }

    /// Returns the object's address, for the other library.
    pub fn address(self) -> *const c_void {
        self.as_ptr().cast_const().cast()
    }

    #[inline]
    pub(crate) fn as_ptr(self) -> *mut RawObjcore {
        self.0.as_ptr()
    }

    /// The flags as they are now.
    #[inline]
    fn flags(self) -> u32 {
        // SAFETY: a referenced object. Another flag in the same word may be set meanwhile, hence a volatile read.
        u32::from(unsafe { (&raw const (*self.as_ptr()).flags).read_volatile() })
    }

    /// Returns true if the fetch has failed. Does not change after the fetch.
    pub fn has_failed(self) -> bool {
        self.flags() & OC_F_FAILED != 0
    }

    /// Returns true if the object is out of the index, or was chosen to be evicted.
    pub fn is_dying(self) -> bool {
        self.flags() & OC_F_DYING != 0
    }

    /// Returns true if the body is for one delivery only: a pass, or a marker of one. Does not change after the response was
    /// accepted.
    pub fn is_transient(self) -> bool {
        self.flags() & OC_F_TRANSIENT != 0
    }

    /// Returns true if the object was made for one request (pass). Does not change.
    pub fn is_private(self) -> bool {
        self.flags() & OC_F_PRIVATE != 0
    }

    /// Returns true if the object marks a response as uncacheable, and stays as such for its time (hit-for-miss).
    pub fn is_marker(self) -> bool {
        let flags = self.flags();
        flags & OC_F_HFM != 0 && flags & OC_F_PRIVATE == 0
    }

    /// Returns true if the response is known not to be cacheable: a pass, a marker, or no lifetime. A purge may change the
    /// lifetime at any moment, and any of its values will do.
    pub fn is_uncacheable(self) -> bool {
        self.flags() & (OC_F_HFM | OC_F_HFP | OC_F_PRIVATE) != 0 || self.lifetime().ttl <= 0.0
    }

    /// Returns the object's times.
    pub fn lifetime(self) -> Lifetime {
        // SAFETY: a referenced object. A purge may change the times at any moment.
        unsafe {
            let oc = self.as_ptr();
            Lifetime {
                origin: (&raw const (*oc).t_origin).read_volatile(),
                ttl: (&raw const (*oc).ttl).read_volatile(),
                grace: (&raw const (*oc).grace).read_volatile(),
                keep: (&raw const (*oc).keep).read_volatile(),
            }
        }
    }

    /// Returns the key; `None` if the object is in no index.
    pub fn digest(self) -> Option<[u8; 32]> {
        // SAFETY: a referenced object; one that has an objhead holds a reference to it, whose key does not change.
        unsafe {
            let head: *const ObjHead = (*self.as_ptr()).objhead.cast();
            (!head.is_null() && (*head).magic == OBJHEAD_MAGIC).then(|| (*head).digest)
        }
    }

    /// Returns which attributes the object has, as varnishd notes them: a bit for each. Does not change after the fetch.
    pub fn attribute_bits(self) -> u16 {
        // SAFETY: a referenced object.
        unsafe { (*self.as_ptr()).oa_present }
    }

    /// Sets the object's times.
    ///
    /// # Safety
    /// The calling thread must be the fetch of the object, which is not in the index yet.
    pub unsafe fn set_lifetime(self, lifetime: Lifetime) {
        // SAFETY: by contract: the fetch alone reads and writes the times of a busy object.
        unsafe {
            let oc = self.as_ptr();
            (*oc).t_origin = lifetime.origin;
            ((*oc).ttl, (*oc).grace, (*oc).keep) = (lifetime.ttl, lifetime.grace, lifetime.keep);
        }
    }

    /// The boc, or null. Only the fetch may follow it.
    fn boc(self) -> *mut RawBoc {
        // SAFETY: a referenced object; the pointer is taken away by another thread at the fetch's end, hence a volatile read.
        unsafe { (&raw const (*self.as_ptr()).boc).read_volatile() }
    }

    /// Returns true if the object is still being fetched.
    #[inline]
    pub fn has_boc(self) -> bool {
        !self.boc().is_null()
    }

    /// Returns true if the object's fetch has ended well, and its boc is still there.
    ///
    /// # Safety
    /// The calling thread must be the fetch of the object.
    pub unsafe fn is_complete(self) -> bool {
        let boc = self.boc();
        // SAFETY: by contract: the fetch holds a reference to the boc, and changes its state.
        !boc.is_null() && unsafe { (*boc).state } == BOS_FINISHED
    }

    /// Returns true if the object is delivered while it is fetched.
    ///
    /// # Safety
    /// As for [`Objcore::is_complete`].
    pub unsafe fn is_streaming(self) -> bool {
        let boc = self.boc();
        // SAFETY: as in `is_complete`.
        !boc.is_null() && unsafe { (*boc).state } >= BOS_STREAM
    }

    /// Returns the number of bytes that the fetch may be ahead of the only reader (`transit_buffer`); `None` for no limit.
    ///
    /// # Safety
    /// As for [`Objcore::is_complete`].
    pub unsafe fn transit_buffer(self) -> Option<usize> {
        let boc = self.boc();
        // SAFETY: by contract: the fetch holds a reference to the boc, and alone changes the member.
        let limit = if boc.is_null() { 0 } else { unsafe { (*boc).transit_buffer } };
        (limit > 0).then(|| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// Has the object delivered as a whole, and no limit on how far its fetch may be ahead of a reader.
    ///
    /// # Safety
    /// As for [`Objcore::is_complete`].
    pub(crate) unsafe fn lift_transit_buffer(self) {
        let boc = self.boc();
        if !boc.is_null() {
            // SAFETY: as in `transit_buffer`.
            unsafe { (*boc).transit_buffer = 0 };
        }
    }

    /// Returns true if the object is to be cached: its fetch has ended well, and its body is for more than one delivery. `boc` is
    /// what varnishd took off the object.
    ///
    /// # Safety
    /// Called in the callback for the end of a fetch, with its boc.
    pub unsafe fn is_to_be_cached(self, boc: *const RawBoc) -> bool {
        // SAFETY: by contract: the boc is the caller's alone.
        (unsafe { (*boc).state }) == BOS_FINISHED && self.flags() & (OC_F_TRANSIENT | OC_F_FAILED) == 0
    }

    /// Returns the number of holders of the object.
    pub fn holders(self) -> Holders {
        // SAFETY: the fields of a referenced object, aligned and valid while it is. Other threads change them under
        // varnishd's locks, by plain stores of the same size.
        let (holders, exp_flags) = unsafe {
            let oc = self.as_ptr();
            let holders = AtomicI32::from_ptr(&raw mut (*oc).refcnt).load(Acquire);
            // After the count: the expiry thread takes its mark away before it drops its reference, so that the count never
            // lacks a reference which is subtracted below.
            (holders, AtomicU8::from_ptr(&raw mut (*oc).exp_flags).load(Acquire))
        };
        if self.flags() & OC_F_CANCEL != 0 {
            return Holders::Cancelled;
        }
        let of_expiry = i32::from(u32::from(exp_flags) & OC_EF_REFD != 0);
        Holders::Count(u32::try_from(holders - 1 - of_expiry).unwrap_or(0))
    }

    /// Has look-ups not find the object any more, and the expiry thread drop it. No lock that a storage's callback takes may be held.
    pub fn kill(self) {
        // SAFETY: a referenced object.
        unsafe { HSH_Kill(self.as_ptr()) };
    }

    /// Returns the length of the object's body as far as it has come in.
    pub fn body_len(self, wrk: Worker<'_>) -> u64 {
        // SAFETY: a referenced object, whose storage counts.
        unsafe { ObjGetLen(wrk.as_ptr(), self.as_ptr()) }
    }

    fn slot(self) -> *mut storeobj {
        // SAFETY: a referenced object; only the member's address is made.
        unsafe { (&raw mut (*self.as_ptr()).stobj).cast() }
    }

    /// Returns the storage of the object; null while it has none.
    #[inline]
    pub fn storage(self) -> *const RawStorage {
        // SAFETY: written when the object is allocated and freed, while no other thread looks at the object's storage.
        unsafe { (*self.slot()).stevedore }.cast()
    }

    /// Returns what the storage has stored with [`Objcore::set_object`].
    #[inline]
    pub fn object(self) -> *mut c_void {
        // SAFETY: as in `storage`.
        unsafe { (*self.slot()).priv_ }
    }

    /// Returns true if the object was allocated with a body that a record has.
    #[inline]
    pub fn is_adopting(self) -> bool {
        // SAFETY: as in `storage`.
        unsafe { (*self.slot()).priv2 != 0 }
    }

    /// Stores the storage's own pointer, and whether its body is a record's.
    ///
    /// # Safety
    /// Called by the storage `stv`, which is asked to allocate this object.
    pub unsafe fn set_object(self, stv: *const RawStorage, object: *mut c_void, is_adopting: bool) {
        // SAFETY: by contract: nothing else looks at an object that has no storage yet.
        unsafe {
            let slot = self.slot();
            (*slot).stevedore = stv.cast();
            (*slot).priv_ = object;
            (*slot).priv2 = u64::from(is_adopting);
        }
    }

    /// Takes the storage off the object, as varnishd expects it.
    ///
    /// # Safety
    /// Called by the object's storage, which is asked to free it.
    pub unsafe fn clear_object(self) {
        // SAFETY: by contract: the last reference is the calling thread's.
        unsafe { self.set_object(null(), null_mut(), false) };
    }
}

/// Returns what the storage has stored in an object of which nothing is known, for a panic message.
///
/// # Safety
/// `oc` must be null or point to an object whose magic number varnishd has checked.
pub unsafe fn object_for_panic(oc: *const RawObjcore) -> *mut c_void {
    // SAFETY: by contract.
    unsafe { oc.as_ref() }.map_or(null_mut(), |oc| oc.stobj[0].priv_)
}
