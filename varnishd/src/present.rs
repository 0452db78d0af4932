//! The objects that are in varnishd's cache already.
//!
//! Each object that look-ups find stands in the list of the newest ban that it was tested by (Varnish:
//! `cache/cache_ban.c`), and takes itself off there, with the ban mutex held, before it is freed. References are taken as the ban
//! lurker takes them (`cache/cache_ban_lurker.c`, `ban_lurker_getfirst`): look-ups lock an objhead first and the ban mutex then, so
//! that here an objhead's mutex is only tried.

use varnishd_sys::bindings::{Lck__Trylock, Lck__Unlock, OC_F_BUSY, objcore};
use varnishd_sys::objhead::{OBJHEAD_MAGIC, ObjHead};

use crate::bans::List;
use crate::cast::has_magic;
use crate::object::{Address, Held};

/// Takes a reference to every object that `wants` says yes to. The second value is the number of objects to which none could be
/// taken, because a thread of varnishd's had its objhead locked: they are found by another call.
///
/// varnishd's ban mutex is held meanwhile. `wants` must not call varnishd, nor lock what a caller of varnishd's has locked.
#[must_use]
pub fn take(mut wants: impl FnMut(Address) -> bool) -> (Vec<Held>, usize) {
    let list = List::lock();
    let (mut taken, mut missed) = (Vec::new(), 0);
    for first in list.objects() {
        let mut next: *const objcore = first;
        // SAFETY: the lists of objcores are read with the ban mutex held, which `list` does: an objcore on one is not freed, and
        // does not leave it.
        while unsafe { has_magic(next) } {
            let oc = next.cast_mut();
            // SAFETY: as above.
            next = unsafe { (*oc).ban_list.vtqe_next };
            if !wants(Address::from_usize(oc.expose_provenance())) {
                continue;
            }
            // SAFETY: as above; what has a ban has an objhead, of which an objcore holds a reference.
            match unsafe { try_take(oc) } {
                Taken::Reference(held) => taken.push(held),
                Taken::Locked => missed += 1,
                Taken::Going => {}
            }
        }
    }
    (taken, missed)
}

enum Taken {
    Reference(Held),
    /// Another thread works on the objhead.
    Locked,
    /// It is being freed, or not an object yet.
    Going,
}

/// # Safety
/// `oc` must be in a ban's list, with the ban mutex held.
unsafe fn try_take(oc: *mut objcore) -> Taken {
    // SAFETY: by contract; flags and references are read and written with the objhead's mutex held.
    unsafe {
        let oh: *mut ObjHead = (*oc).objhead.cast();
        if oh.is_null() || (*oh).magic != OBJHEAD_MAGIC {
            return Taken::Going;
        }
        let mutex = &raw mut (*oh).mtx;
        if Lck__Trylock(mutex, c"objmapper objects".as_ptr(), 0) != 0 {
            return Taken::Locked;
        }
        let lives = (*oc).refcnt > 0 && u32::from((*oc).flags) & OC_F_BUSY == 0;
        if lives {
            (*oc).refcnt += 1;
        }
        Lck__Unlock(mutex, c"objmapper objects".as_ptr(), 0);
        if lives { Taken::Reference(Held::from_counted(oc)) } else { Taken::Going }
    }
}
