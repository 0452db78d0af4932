//! New bans: varnishd calls each storage, and the engine passes a ban on to the listener that the VMOD has set.
//!
//! The listener runs with varnishd's ban mutex held: it neither blocks nor calls varnishd. It is never unloaded.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

use objmapper_abi::{Bytes, OnBan};
use varnishd::bans::NEW;
use varnishd::raw::RawStorage;

use crate::BOUNDARY;
use crate::persist;
use crate::storage;

/// The listener: an [`OnBan`], or null.
static LISTENER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Sets the listener; `None` sets none.
pub(crate) fn set_listener(listener: Option<OnBan>) {
    LISTENER.store(listener.map_or(std::ptr::null_mut(), |listener| listener as *mut c_void), Release);
}

/// Called for each storage and ban, with varnishd's ban mutex held. Not 0 asks for the whole list.
pub(crate) unsafe extern "C" fn on_ban(stv: *const RawStorage, event: c_uint, ban: *const u8, len: c_uint) -> c_int {
    let export = BOUNDARY.fallible("on_ban", false, || {
        // SAFETY: varnishd's copy of our storage, after `open`; its bytes are lent for the call.
        unsafe { event == NEW && persist::ban(stv, ban, len) }
    });
    BOUNDARY.fallible("on_ban", (), || {
        // Once per ban, however many storages there are.
        if event != NEW || !std::ptr::eq(stv, storage::first()) {
            return;
        }
        let listener = LISTENER.load(Acquire);
        if !listener.is_null() {
            // SAFETY: what `set_listener` put there, which is a function that stays loaded.
            let listener = unsafe { std::mem::transmute::<*mut c_void, OnBan>(listener) };
            let ptr = if len == 0 { null() } else { ban };
            // SAFETY: varnishd's bytes, valid during the call; called as the table promises.
            unsafe { listener(Bytes { ptr, len: len as usize }) };
        }
    });
    c_int::from(export)
}

/// Called for each storage with all bans, from the oldest to the newest, and varnishd's ban mutex held.
pub(crate) unsafe extern "C" fn on_all_bans(stv: *const RawStorage, bans: *const u8, len: c_uint) {
    // SAFETY: as for `on_ban`.
    BOUNDARY.fallible("on_all_bans", (), || unsafe { persist::replace_bans(stv, bans, len) });
}
