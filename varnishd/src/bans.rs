//! varnishd's bans (Varnish: `cache/cache_ban.c`): its list, and the hook for new ones.
//!
//! The list is walked with varnishd's ban mutex held, under which nothing may block or call varnishd. A ban's spec
//! is bytes without pointers; [`crate::ban_spec`] decodes it.

use std::ffi::{c_int, c_uint};
use std::ptr::null_mut;
use std::sync::OnceLock;

use objmapper_ban::Ban;
use varnishd_sys::ban::{self, BANS_FLAG_COMPLETED, BANS_FLAGS, BANS_HEAD_LEN, BANS_LENGTH, ban_head, ban_mtx};
use varnishd_sys::bindings::{Lck__Lock, Lck__Unlock};
use varnishd_sys::functions::STV__iter;
use varnishd_sys::stevedore::{BI_NEW, Stevedore, StorageBanInfo};

use crate::ban_reload;
use crate::ban_spec;
use crate::cast::has_magic;
use crate::objcore::Objcore;

/// The event of a new ban.
pub const NEW: c_uint = BI_NEW;

/// The `baninfo` of the storage that has ours now.
static FORMER: OnceLock<Option<StorageBanInfo>> = OnceLock::new();

/// What is called with the spec of each new ban.
static LISTENER: OnceLock<fn(&[u8])> = OnceLock::new();

/// Calls `listener` with the spec of every new ban, with varnishd's ban mutex held, by a `baninfo` of ours in varnishd's first
/// storage. Called in varnishd's CLI thread, as VCL is loaded, once in a process. `listener` must not panic.
///
/// # Errors
/// varnishd has no storage.
pub fn listen(listener: fn(&[u8])) -> Result<(), String> {
    let _ = LISTENER.set(listener);
    let mut stv: *mut Stevedore = null_mut();
    // SAFETY: varnishd's list of storages does not change any more once VCL is loaded.
    while unsafe { STV__iter(&raw mut stv) } != 0 {
        // SAFETY: an element of that list. varnishd reads `baninfo` with the ban mutex held, and nothing else of it changes.
        unsafe {
            if !has_magic(stv) {
                continue;
            }
            let _list = List::lock();
            let former = (*stv).baninfo;
            let _ = FORMER.set(former);
            (*stv).baninfo = Some(baninfo);
        }
        return Ok(());
    }
    Err("varnishd has no storage at all that could tell of bans".to_owned())
}

unsafe extern "C" fn baninfo(stv: *const Stevedore, event: c_uint, ban: *const u8, len: c_uint) -> c_int {
    if let (BI_NEW, Some(listener)) = (event, LISTENER.get()) {
        // SAFETY: varnishd lends a ban's spec for the call.
        if let Some(spec) = unsafe { spec(ban, len as usize) } {
            listener(spec);
        }
    }
    match FORMER.get().copied().flatten() {
        // SAFETY: what varnishd would have called, with what it calls us with.
        Some(former) => unsafe { former(stv, event, ban, len) },
        None => 0,
    }
}

/// Returns a ban's spec; `None` if there is none.
///
/// # Safety
/// `ban` must be null or point to `len` bytes that do not change during `'a`.
pub unsafe fn spec<'a>(ban: *const u8, len: usize) -> Option<&'a [u8]> {
    // SAFETY: by contract.
    (!ban.is_null() && len > 0).then(|| unsafe { std::slice::from_raw_parts(ban, len) })
}

/// Decodes a ban's spec. `None`: the ban is completed, and invalidates nothing. One that cannot be decoded is returned as
/// a ban that matches everything.
#[must_use]
pub fn ban(spec: &[u8]) -> Option<Ban> {
    ban_spec::decode(spec).unwrap_or_else(|_| Some(Ban::matching_everything(0.0)))
}

/// The spec of a ban in varnishd's list, which is locked, or whose bans are held back.
pub(crate) fn spec_of(ban: &ban::Ban) -> &[u8] {
    // SAFETY: a spec has a head, in which its length stands; it is not freed while the list is locked.
    unsafe {
        let head = std::slice::from_raw_parts(ban.spec, BANS_HEAD_LEN);
        let mut len = [0; 4];
        len.copy_from_slice(&head[BANS_LENGTH..BANS_LENGTH + 4]);
        std::slice::from_raw_parts(ban.spec, (u32::from_be_bytes(len) as usize).max(BANS_HEAD_LEN))
    }
}

/// varnishd's list of bans, locked.
pub struct List(());

impl List {
    /// Locks it, until the value is dropped.
    #[must_use]
    pub fn lock() -> List {
        // SAFETY: varnishd makes the mutex before it loads any VCL; the name is static.
        unsafe { Lck__Lock(&raw mut ban_mtx, c"objmapper bans".as_ptr(), 0) };
        List(())
    }

    /// All bans, from the newest to the oldest.
    fn bans(&self) -> impl Iterator<Item = &ban::Ban> {
        // SAFETY: the list is read with its mutex held, which `self` does.
        let mut next: *const ban::Ban = unsafe { ban_head.first };
        std::iter::from_fn(move || {
            // SAFETY: as above; an element is a ban or null.
            let ban = unsafe { has_magic(next).then(|| &*next) }?;
            next = ban.list.next;
            Some(ban)
        })
    }

    /// Returns for each ban the first of the objects that were last tested by it, or null.
    pub(crate) fn objects(&self) -> impl Iterator<Item = *const varnishd_sys::objcore> {
        self.bans().map(|ban| ban.objcore.first.cast_const())
    }

    /// The time of the newest ban that an object was tested by. `None`: a ban has taken it out of the cache.
    #[must_use]
    pub fn tested_until(&self, object: Objcore<'_>) -> Option<f64> {
        // SAFETY: the object is lent; its ban changes with the mutex held, which `self` does, and is not freed before.
        unsafe {
            let ban: *const ban::Ban = (*object.as_ptr()).ban.cast();
            has_magic(ban).then(|| ban_reload::time(spec_of(&*ban))).flatten()
        }
    }

    /// The specs of the bans that objects are still to be tested by, from the newest to the oldest.
    pub fn pending(&self) -> impl Iterator<Item = &[u8]> {
        self.bans().filter_map(|ban| {
            let spec = spec_of(ban);
            let completed = (ban.flags | u32::from(spec[BANS_FLAGS])) & BANS_FLAG_COMPLETED != 0;
            (!completed).then_some(spec)
        })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: locked by `lock`, in this thread.
        unsafe { Lck__Unlock(&raw mut ban_mtx, c"objmapper bans".as_ptr(), 0) };
    }
}

/// The specs in a list that varnishd has exported: one after the other, the oldest first.
pub fn exported(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = list.get(BANS_LENGTH..BANS_LENGTH + 4)?.first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok().filter(|len| *len >= BANS_HEAD_LEN)?;
        let (spec, rest) = list.split_at_checked(len)?;
        list = rest;
        Some(spec)
    })
}
