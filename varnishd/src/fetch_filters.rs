//! The filters of a fetch (VFP; Varnish: `struct vfp_ctx`): a list from the one that writes to storage, which is pulled first, to
//! the source of the body.
//!
//! varnishd (`cache/cache_fetch_proc.c`) opens the filters from the list's end to its beginning and takes the one before after an
//! init has returned, so that an init may remove entries before its own and push others: those were not opened yet and have
//! nothing to give back. Filters are closed when the body is complete, or as soon as it turns out that it will not be: before what
//! vcl_backend_error makes is allocated, and before the next try.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::{NonNull, eq, null, null_mut};
use std::rc::Rc;

use varnishd_sys::bindings::{
    THR_GetBusyobj, VFP_END, VFP_ERROR, VFP_Error, VFP_NULL, VFP_OK, VFP_esi, VFP_testgunzip, vfp_entry,
};

use crate::boundary::Constant;
use crate::cast::has_magic;
use crate::objcore::Objcore;
use crate::raw::{FetchFilter, FetchStatus, RawContext, RawFilterEntry, RawFilters};
use crate::text::c_text;
use crate::vsl::Log;
use crate::worker::Worker;

/// The filter has delivered bytes, and has more.
pub const OK: FetchStatus = VFP_OK;
/// The filter has delivered its last bytes.
pub const END: FetchStatus = VFP_END;
/// The filter has failed: so does the fetch.
pub const ERROR: FetchStatus = VFP_ERROR;
/// Of an initialisation: the filter takes no part, but is told of the end.
pub const BYPASSED: FetchStatus = VFP_NULL;

type Init = unsafe extern "C" fn(*const RawContext, *mut RawFilters, *mut RawFilterEntry) -> FetchStatus;
type Pull = unsafe extern "C" fn(*mut RawFilters, *mut RawFilterEntry, *mut c_void, *mut isize) -> FetchStatus;
type Fini = unsafe extern "C" fn(*mut RawFilters, *mut RawFilterEntry);

/// Makes a filter.
pub const fn filter(name: &'static CStr, init: Init, pull: Option<Pull>, fini: Fini) -> FetchFilter {
    FetchFilter { name: name.as_ptr(), init: Some(init), pull, fini: Some(fini), priv1: null() }
}

/// An entry of the list, for `'a`.
#[derive(Clone, Copy)]
pub struct Entry<'a>(NonNull<vfp_entry>, PhantomData<&'a vfp_entry>);

impl<'a> Entry<'a> {
    /// Returns the entry that varnishd called with; `None` for null.
    ///
    /// # Safety
    /// `entry` must be null or of a list of the calling thread's fetch for `'a`.
    pub unsafe fn new(entry: *const RawFilterEntry) -> Option<Entry<'a>> {
        NonNull::new(entry.cast_mut()).map(|entry| Entry(entry, PhantomData))
    }

    fn as_ptr(self) -> *mut vfp_entry {
        self.0.as_ptr()
    }

    /// Returns the name of the entry's filter.
    pub fn name(self) -> &'static [u8] {
        // SAFETY: a filter and its name are statics of varnishd's or of a VMOD's.
        unsafe { CStr::from_ptr((*(*self.as_ptr()).vfp).name) }.to_bytes()
    }

    /// Returns true if the entry is of this filter.
    pub fn is_of(self, filter: &'static Constant<FetchFilter>) -> bool {
        // SAFETY: an entry of the list; an address is compared.
        unsafe { eq((*self.as_ptr()).vfp, filter.address()) }
    }

    /// Returns true if `next` is the entry behind this one.
    pub fn is_before(self, next: Entry<'_>) -> bool {
        // SAFETY: an entry of the list; an address is compared.
        unsafe { eq((*self.as_ptr()).list.vtqe_next, next.as_ptr()) }
    }

    /// Returns true if there is no entry behind this one: it is the source of the body.
    fn is_source(self) -> bool {
        // SAFETY: an entry of the list.
        unsafe { (*self.as_ptr()).list.vtqe_next.is_null() }
    }

    /// Gives the filter what it works on, for [`Entry::value`], until [`Entry::take_value`].
    ///
    /// # Safety
    /// The entry must have been pushed just now, with a filter that uses a `T`.
    pub unsafe fn set_value<T>(self, value: &Rc<T>) {
        // SAFETY: by contract.
        unsafe { (*self.as_ptr()).priv1 = Rc::into_raw(value.clone()).cast_mut().cast() };
    }

    /// Returns what the filter works on.
    ///
    /// # Safety
    /// The entry's filter must use a `T`.
    pub unsafe fn value<T>(self) -> Option<&'a T> {
        // SAFETY: by contract; it lives until the filter is closed.
        unsafe { (*self.as_ptr()).priv1.cast::<T>().as_ref() }
    }

    /// Takes from the filter what it works on.
    ///
    /// # Safety
    /// As for [`Entry::value`], when the filter is closed.
    pub unsafe fn take_value<T>(self) -> Option<Rc<T>> {
        // SAFETY: by contract; once, as the pointer is taken away.
        unsafe {
            let value = std::mem::replace(&mut (*self.as_ptr()).priv1, null_mut());
            (!value.is_null()).then(|| Rc::from_raw(value.cast::<T>()))
        }
    }
}

impl PartialEq for Entry<'_> {
    fn eq(&self, other: &Entry<'_>) -> bool {
        self.0 == other.0
    }
}

/// The filters of the calling thread's fetch, for `'a`.
#[derive(Clone, Copy)]
pub struct Filters<'a>(*mut RawFilters, PhantomData<&'a RawFilters>);

impl<'a> Filters<'a> {
    /// Returns the filters that varnishd called with.
    ///
    /// # Safety
    /// `vc` must be of the calling thread's fetch for `'a`.
    pub unsafe fn new(vc: *mut RawFilters) -> Filters<'a> {
        Filters(vc, PhantomData)
    }

    pub(crate) fn as_ptr(self) -> *mut RawFilters {
        self.0
    }

    /// Returns the entries, from the list's beginning. The one that was returned last may be removed.
    #[inline]
    pub fn entries(self) -> impl Iterator<Item = Entry<'a>> {
        // SAFETY: the calling thread's list.
        let mut next = unsafe { (*self.0).vfp.vtqh_first };
        std::iter::from_fn(move || {
            // SAFETY: an entry of the list, in the fetch's workspace, or null.
            let entry = unsafe { Entry::new(next) }?;
            // SAFETY: as above.
            next = unsafe { (*entry.as_ptr()).list.vtqe_next };
            Some(entry)
        })
    }

    /// Returns the entries before one.
    pub fn entries_before(self, last: Entry<'a>) -> impl Iterator<Item = Entry<'a>> {
        self.entries().take_while(move |entry| *entry != last)
    }

    /// Removes an entry that was not opened yet.
    ///
    /// # Safety
    /// `entry` must be of this list. Called in the init of an entry behind it.
    pub unsafe fn remove(self, entry: Entry<'a>) {
        let (vc, entry) = (self.0, entry.as_ptr());
        // SAFETY: by contract: `prev` is the `next` of the entry before this one, or the list's `first`.
        unsafe {
            let (next, prev) = ((*entry).list.vtqe_next, (*entry).list.vtqe_prev);
            *prev = next;
            if next.is_null() {
                (*vc).vfp.vtqh_last = prev;
            } else {
                (*next).list.vtqe_prev = prev;
            }
            if eq((*vc).vfp_nxt, entry) {
                (*vc).vfp_nxt = next;
            }
            (*entry).list.vtqe_next = null_mut();
        }
    }

    /// Returns true if what the filters brought has become the fetch's object. Called when a filter is closed.
    pub fn have_made_object(self) -> bool {
        // SAFETY: the calling thread's fetch.
        unsafe { (*self.0).failed == 0 && !self.object().storage().is_null() }
    }

    /// Returns the object that the fetch is for.
    pub fn object(self) -> Objcore<'a> {
        // SAFETY: the calling thread's fetch, which holds a reference to its object.
        unsafe { Objcore::new((*self.0).oc) }
    }

    /// Returns the fetch's worker.
    pub fn worker(self) -> Worker<'a> {
        // SAFETY: the calling thread's fetch.
        unsafe { Worker::new((*self.0).wrk) }
    }

    /// Returns the log of the fetch.
    pub fn log(self) -> Log<'a> {
        // SAFETY: the calling thread's fetch, whose worker logs to it.
        unsafe { Log::new((*(*self.0).wrk).vsl) }
    }

    /// Adds flags to those that the object will have (see [`crate::attributes::body_flags`]).
    pub fn add_body_flags(self, flags: u8) {
        // SAFETY: the calling thread's fetch, before the object is allocated.
        unsafe { (*self.0).obj_flags |= u32::from(flags) };
    }

    /// Fails the fetch, for this reason.
    pub fn error(self, why: &str) -> FetchStatus {
        // SAFETY: the calling thread's fetch; a format that takes one string.
        unsafe { VFP_Error(self.0, c"objmapper: %s".as_ptr(), c_text(why).as_ptr()) }
    }
}

/// What the filters of a fetch, but for the source, do with the room that they are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomUse {
    /// There are none.
    None,
    /// They have the filter below fill it, and read it.
    Read,
    /// They may write to it.
    Write,
}

/// Returns what the filters of the calling thread's fetch do with the room of its object `oc`.
pub fn room_use(oc: Objcore<'_>) -> RoomUse {
    // SAFETY: the busyobj of this thread's fetch, or null (cache_main.c); its filters are this thread's.
    unsafe {
        let bo = THR_GetBusyobj();
        if !has_magic(bo) || !eq((*bo).fetch_objcore, oc.as_ptr()) || (*bo).vfc.is_null() {
            return RoomUse::Write;
        }
        // cache_gzip.c, cache_esi_fetch.c.
        let readers = [&raw const VFP_testgunzip, &raw const VFP_esi];
        let mut found = RoomUse::None;
        for entry in Filters::new((*bo).vfc).entries().filter(|entry| !entry.is_source()) {
            if !readers.contains(&(*entry.as_ptr()).vfp) {
                return RoomUse::Write;
            }
            found = RoomUse::Read;
        }
        found
    }
}
