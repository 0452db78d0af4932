//! A record whose body the next object of a fetch shall have: told by the VMOD before varnishd makes the object, in the same
//! thread.

use std::cell::RefCell;

use objmapper_engine::adopt::Announced;
use objmapper_engine::engine::Engine;
use varnishd_sys::objcore;

/// A record that is pinned for the next object of an objcore. Dropped, the pin is given up.
struct Announcement {
    oc: *const objcore,
    engine: &'static Engine,
    announced: Option<Announced>,
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Some(announced) = self.announced.take() {
            self.engine.cancel_adoption(announced);
        }
    }
}

thread_local! {
    static ANNOUNCEMENT: RefCell<Option<Announcement>> = const { RefCell::new(None) };
}

/// Announces a record for the object that will be made for `oc`. What was announced before is given up.
pub(crate) fn announce(oc: *const objcore, engine: &'static Engine, announced: Announced) {
    ANNOUNCEMENT.set(Some(Announcement { oc, engine, announced: Some(announced) }));
}

/// Gives up what was announced.
pub(crate) fn cancel_adoption() {
    drop(ANNOUNCEMENT.take());
}

/// What was announced in this thread for the object that is being made for `oc`.
pub(crate) fn take(oc: *const objcore, engine: &'static Engine) -> Option<Announced> {
    ANNOUNCEMENT.with_borrow_mut(|announcement| {
        let matches = |its: &mut Announcement| std::ptr::eq(its.oc, oc) && std::ptr::eq(its.engine, engine);
        announcement.take_if(matches)?.announced.take()
    })
}
