//! New bans: varnishd tells its storages, and the engine whoever asked for it.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

use objmapper_abi::{Bytes, OnBan};
use varnishd_sys::stevedore::{BI_NEW, Stevedore};

use crate::BOUNDARY;
use crate::storage;

/// Who is told of new bans: an [`OnBan`], or null.
static LISTENER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Sets who is told; nobody by `None`.
pub(crate) fn set_listener(listener: Option<OnBan>) {
    LISTENER.store(listener.map_or(std::ptr::null_mut(), |listener| listener as *mut c_void), Release);
}

/// `baninfo` of a stevedore: called for each storage, under varnishd's ban mutex. 0: varnishd need not export its list.
pub(crate) unsafe extern "C" fn baninfo(stv: *const Stevedore, event: c_uint, ban: *const u8, len: c_uint) -> c_int {
    BOUNDARY.fallible("baninfo", (), || {
        // Once per ban, however many storages there are.
        if event != BI_NEW || !std::ptr::eq(stv, storage::first()) {
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
    0
}
