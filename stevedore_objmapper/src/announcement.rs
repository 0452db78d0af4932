//! A record whose body the next object of a fetch will have: announced by the VMOD before varnishd makes the object, in the same
//! thread.
//!
//! announced → taken by the object, or cancelled: by the VMOD, by another announcement, or with the thread. Only the thread of the
//! fetch sees it.

use std::cell::RefCell;

use objmapper_engine::adopt::Announced;
use objmapper_engine::engine::Engine;
use varnishd::objcore::ObjcoreId;

/// A record that is pinned for the next object of an objcore. The pin is released when this is dropped.
struct Announcement {
    oc: ObjcoreId,
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

/// Announces a record for the object that will be made for `oc`. Cancels the announcement before.
pub(crate) fn announce(oc: ObjcoreId, engine: &'static Engine, announced: Announced) {
    ANNOUNCEMENT.set(Some(Announcement { oc, engine, announced: Some(announced) }));
}

/// Cancels the announcement.
pub(crate) fn cancel_adoption() {
    drop(ANNOUNCEMENT.take());
}

/// Takes what was announced in this thread for the object that is being made for `oc`.
pub(crate) fn take(oc: ObjcoreId, engine: &'static Engine) -> Option<Announced> {
    ANNOUNCEMENT.with_borrow_mut(|announcement| {
        let matches = |its: &mut Announcement| its.oc == oc && std::ptr::eq(its.engine, engine);
        announcement.take_if(matches)?.announced.take()
    })
}
