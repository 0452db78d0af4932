//! News of the objects in varnishd's cache, of all its storages (Varnish: `cache/cache_obj.c`, `ObjSubscribeEvents`).
//!
//! What is told of an object, in this order:
//!
//! | event | thread | when |
//! |---|---|---|
//! | [`Event::Inserted`] | the fetch's, or the one that resurrects it | look-ups find it; its head is complete, its body may be coming in |
//! | [`Event::TtlChanged`] | the expiry thread | its durations changed |
//! | [`Event::Expired`] | the expiry thread, or the fetch's if the two raced | it left the cache, for whatever reason |
//!
//! Private objects (passes) are not told of. With `Expired` varnishd gives up a reference of its own, which it has held since
//! before `Inserted`: until the listener has returned from `Expired` the objcore is valid, whatever other references there are.
//! An objcore may be told of with `Expired` only, if the listener was not there before; its address may then come back as another
//! object's.
//!
//! Listeners run with a read lock of varnishd's on its list of listeners held, and with no lock of an object's. They must neither
//! subscribe nor unsubscribe. `OEV_BANCHG` is not offered: it is sent with an objhead's mutex held.

use std::ffi::{c_uint, c_void};

use varnishd_sys::bindings::{
    OEV_EXPIRE, OEV_INSERT, OEV_TTLCHG, ObjSubscribeEvents, ObjUnsubscribeEvents, objcore, worker,
};

use crate::boundary::infallible;
use crate::object::Object;
use crate::worker::Worker;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Look-ups find it.
    Inserted,
    /// Its durations changed.
    TtlChanged,
    /// It left the cache.
    Expired,
}

impl Event {
    fn mask(self) -> c_uint {
        match self {
            Event::Inserted => OEV_INSERT,
            Event::TtlChanged => OEV_TTLCHG,
            Event::Expired => OEV_EXPIRE,
        }
    }
}

/// What is called with an event: in the thread of the worker, which is lent, as the object is. It must not panic.
pub type Listener = fn(Worker<'_>, &Object<'_>, Event);

/// A subscription. It ends when the value is dropped: then no listener runs any more.
pub struct Subscription(usize);

/// Has `listener` called for these events.
#[must_use]
pub fn subscribe(listener: Listener, events: &[Event]) -> Subscription {
    let mask = events.iter().fold(0, |mask, event| mask | event.mask());
    // SAFETY: `on_event` is a static function, and what it is given is one.
    Subscription(unsafe { ObjSubscribeEvents(Some(on_event), listener as *mut c_void, mask) })
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut handle = self.0;
        // SAFETY: a handle of `subscribe`'s, once. varnishd waits until no listener runs.
        unsafe { ObjUnsubscribeEvents(&raw mut handle) };
    }
}

unsafe extern "C" fn on_event(wrk: *mut worker, listener: *mut c_void, oc: *mut objcore, event: c_uint) {
    infallible("object event", || {
        let event = match event {
            OEV_INSERT => Event::Inserted,
            OEV_TTLCHG => Event::TtlChanged,
            OEV_EXPIRE => Event::Expired,
            _ => return,
        };
        // SAFETY: `subscribe` gave this function; varnishd calls with the calling thread's worker and an object to which it
        // holds a reference during the call.
        unsafe {
            let listener: Listener = std::mem::transmute(listener);
            listener(Worker::new(wrk), &Object::lent(oc), event);
        }
    });
}
