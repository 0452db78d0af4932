//! Bans of this varnishd, from the CLI and from VCL, are announced to every second level at the moment at which they take
//! effect, which is before who made them is answered.
//!
//! varnishd tells its storages of new bans (`baninfo`): the storage engine passes that on. Where no storage is ours, one
//! that does not want to know is given a `baninfo` by us.

use std::ffi::{c_int, c_uint};
use std::ptr::null_mut;
use std::sync::OnceLock;

use objmapper_abi::Bytes;
use objmapper_l2::L2;
use varnishd::cast::has_magic;
use varnishd_sys::ban::{
    BAN_MAGIC, BANS_FLAG_COMPLETED, BANS_FLAGS, BANS_HEAD_LEN, BANS_LENGTH, Ban, ban_head, ban_mtx,
};
use varnishd_sys::bindings::{Lck__Lock, Lck__Unlock};
use varnishd_sys::functions::STV__iter;
use varnishd_sys::stevedore::{Stevedore, StorageBanInfo};

use crate::BOUNDARY;
use crate::engine::{self, Storage};

/// `BI_NEW` (Varnish: `storage/storage.h`): a ban has come.
const NEW: c_uint = 0;

/// What was the `baninfo` of the storage that has ours now.
static FORMER: OnceLock<Option<StorageBanInfo>> = OnceLock::new();

/// Who is told of a ban's spec.
static LISTENER: OnceLock<fn(&[u8])> = OnceLock::new();

/// Sees to it that `listener` is told of every new ban, with varnishd's ban mutex held. The first one stays. Called in
/// varnishd's CLI thread, as VCL is loaded.
pub(crate) fn listen(listener: fn(&[u8])) -> Result<(), String> {
    static LISTENING: OnceLock<()> = OnceLock::new();
    if LISTENING.get().is_some() {
        return Ok(());
    }
    let _ = LISTENER.set(listener);
    match (engine::table(), Storage::default_one()) {
        // SAFETY: `on_ban` stays loaded (the library is linked with -z nodelete), and neither blocks nor calls varnishd.
        (Some(table), Some(_)) => unsafe { (table.on_ban)(Some(on_ban)) },
        // No storage of ours: nobody would tell the engine either.
        _ => be_told()?,
    }
    let _ = LISTENING.set(());
    Ok(())
}

/// Gives a storage of varnishd's our `baninfo`.
fn be_told() -> Result<(), String> {
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
    if event == NEW {
        // SAFETY: varnishd lends a ban's spec for the call.
        unsafe { on_ban(Bytes { ptr: ban, len: len as usize }) };
    }
    match FORMER.get().copied().flatten() {
        // SAFETY: what varnishd would have called, with what it calls us with.
        Some(former) => unsafe { former(stv, event, ban, len) },
        None => 0,
    }
}

unsafe extern "C" fn on_ban(spec: Bytes) {
    BOUNDARY.fallible("on_ban", (), || {
        if spec.ptr.is_null() || spec.len == 0 {
            return;
        }
        // SAFETY: a ban's spec is lent for the call.
        let spec = unsafe { std::slice::from_raw_parts(spec.ptr, spec.len) };
        if let Some(listener) = LISTENER.get() {
            listener(spec);
        }
    });
}

/// Announces to `l2` the bans that are there already. What comes in at the same time may be announced twice, which is
/// harmless.
pub(crate) fn announce_present(l2: &L2) {
    let list = List::lock();
    for spec in list.pending() {
        l2.announce_ban(spec);
    }
}

/// varnishd's list of bans, locked.
struct List;

impl List {
    fn lock() -> List {
        // SAFETY: varnishd makes the mutex before it loads any VCL; the name is static.
        unsafe { Lck__Lock(&raw mut ban_mtx, c"objmapper bans".as_ptr(), 0) };
        List
    }

    /// The specs of those that objects are still to be tested by, from the newest to the oldest.
    fn pending(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: the list is read with its mutex held, which `self` does.
        let mut next: *const Ban = unsafe { ban_head.first };
        let bans = std::iter::from_fn(move || {
            // SAFETY: as above; an element is a ban or null.
            let ban = unsafe { next.as_ref() }.filter(|ban| ban.magic == BAN_MAGIC)?;
            next = ban.list.next;
            Some(ban)
        });
        bans.filter_map(|ban| {
            // SAFETY: a spec has a head, in which its length stands; it is not freed while the list is locked.
            let spec = unsafe {
                let head = std::slice::from_raw_parts(ban.spec, BANS_HEAD_LEN);
                let mut len = [0; 4];
                len.copy_from_slice(&head[BANS_LENGTH..BANS_LENGTH + 4]);
                std::slice::from_raw_parts(ban.spec, (u32::from_be_bytes(len) as usize).max(BANS_HEAD_LEN))
            };
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
