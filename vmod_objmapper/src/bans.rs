//! Bans of this varnishd, from the CLI and from VCL, are announced to every second level.
//!
//! With the storage engine varnishd tells of a ban at the moment at which it takes effect (`on_ban`). Without it the list of
//! bans is looked at before each use of a second level, and by a thread in between.

use std::collections::HashSet;
use std::sync::Once;
use std::time::Duration;

use objmapper_abi::Bytes;
use objmapper_l2::L2;
use parking_lot::Mutex;
use varnish_stevedore_sys::ban::{
    BAN_MAGIC, BANS_FLAG_COMPLETED, BANS_FLAGS, BANS_HEAD_LEN, BANS_LENGTH, BANS_TIMESTAMP, Ban, ban_head, ban_mtx,
};
use varnish_stevedore_sys::bindings::{Lck__Lock, Lck__Unlock};

use crate::boundary::fallible;
use crate::{engine, store, vsl};

/// So often the thread looks.
const PERIOD: Duration = Duration::from_millis(10);

/// Announces to `l2` the bans that are there already, and from now on those that come.
pub(crate) fn follow(l2: &L2) {
    static ONCE: Once = Once::new();
    // `l2` is among those that are told already: what comes twice is announced twice, which is harmless.
    ONCE.call_once(|| match engine::table() {
        // SAFETY: `on_ban` stays loaded (the library is linked with -z nodelete), and neither blocks nor calls varnishd.
        Some(table) => unsafe { (table.on_ban)(Some(on_ban)) },
        None => start_thread(),
    });
    let list = List::lock();
    for ban in list.bans().filter(|ban| !ban.completed) {
        l2.announce_ban(ban.spec);
    }
}

/// Before a look-up: nothing that was banned in this varnishd by now is found.
pub(crate) fn catch_up() {
    if engine::table().is_none() {
        look();
    }
}

unsafe extern "C" fn on_ban(spec: Bytes) {
    fallible("on_ban", (), || {
        if spec.ptr.is_null() || spec.len == 0 {
            return;
        }
        // SAFETY: the engine lends a ban's spec for the call (objmapper-abi).
        let spec = unsafe { std::slice::from_raw_parts(spec.ptr, spec.len) };
        store::each(|l2| l2.announce_ban(spec));
    });
}

fn start_thread() {
    let started = std::thread::Builder::new().name("objm-bans".to_owned()).spawn(|| {
        loop {
            std::thread::sleep(PERIOD);
            fallible("bans", (), look);
        }
    });
    if let Err(error) = started {
        vsl::operator(
            "bans",
            &format!("no thread: bans take effect in objmapper at this varnishd's next look-up: {error}"),
        );
    }
}

/// A ban's identity: its address and its time, as an address may be used again.
type Id = (usize, u64);

/// The bans that were announced, the newest one first of all.
static SEEN: Mutex<Option<(Id, HashSet<Id>)>> = Mutex::new(None);

/// Announces what is new in the list.
fn look() {
    let mut seen = SEEN.lock();
    let list = List::lock();
    let Some(newest) = list.bans().next().map(|ban| ban.id) else { return };
    if seen.as_ref().is_some_and(|(id, _)| *id == newest) {
        return;
    }
    let mut now = HashSet::new();
    for ban in list.bans() {
        let known = seen.as_ref().is_some_and(|(_, ids)| ids.contains(&ban.id));
        if !known && !ban.completed {
            store::each(|l2| l2.announce_ban(ban.spec));
        }
        now.insert(ban.id);
    }
    *seen = Some((newest, now));
}

/// varnishd's list of bans, locked.
struct List;

struct Seen<'a> {
    id: Id,
    completed: bool,
    spec: &'a [u8],
}

impl List {
    fn lock() -> List {
        // SAFETY: varnishd makes the mutex before it loads any VCL; the name is static.
        unsafe { Lck__Lock(&raw mut ban_mtx, c"objmapper bans".as_ptr(), 0) };
        List
    }

    /// From the newest to the oldest.
    fn bans(&self) -> impl Iterator<Item = Seen<'_>> {
        // SAFETY: the list is read with its mutex held, which `self` does.
        let mut next: *const Ban = unsafe { ban_head.first };
        std::iter::from_fn(move || {
            // SAFETY: as above; an element is a ban or null.
            let ban = unsafe { next.as_ref() }.filter(|ban| ban.magic == BAN_MAGIC)?;
            next = ban.list.next;
            // SAFETY: a spec has a head, in which its length stands; it is not freed while the list is locked.
            let spec = unsafe {
                let head = std::slice::from_raw_parts(ban.spec, BANS_HEAD_LEN);
                let mut len = [0; 4];
                len.copy_from_slice(&head[BANS_LENGTH..BANS_LENGTH + 4]);
                std::slice::from_raw_parts(ban.spec, (u32::from_be_bytes(len) as usize).max(BANS_HEAD_LEN))
            };
            let mut time = [0; 8];
            time.copy_from_slice(&spec[BANS_TIMESTAMP..BANS_TIMESTAMP + 8]);
            let completed = (ban.flags | u32::from(spec[BANS_FLAGS])) & BANS_FLAG_COMPLETED != 0;
            Some(Seen { id: (std::ptr::from_ref(ban).addr(), u64::from_ne_bytes(time)), completed, spec })
        })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: locked by `lock`, in this thread.
        unsafe { Lck__Unlock(&raw mut ban_mtx, c"objmapper bans".as_ptr(), 0) };
    }
}
