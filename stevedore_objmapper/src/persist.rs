//! Objects that are kept for the next start: what is written of each, and when (`objmapper_engine::persist`).
//!
//! | what happens | where varnishd says so | what is written |
//! |---|---|---|
//! | a fetch ends, and its object is cached | `objbocdone` | the object, by the journal's thread |
//! | purge, expiry, replacement, a ban that matches | the event of its end, on the expiry thread | its removal |
//! | eviction | `objslim` | its removal, before its body is freed |
//! | its last reference goes | `objfree` | its removal, if that is not written yet |
//! | a soft purge, or another change of its times | the event of that, on the expiry thread | its times |
//! | a purge or a soft purge, by a request | before its synthetic response | the removals, or the times, of the objects of its key |
//! | a ban | `baninfo`, before the ban command returns | the ban |
//!
//! Between an object's entry and news of its end there is no order: see [`Kept`].

use std::ffi::c_uint;
use std::sync::Once;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, fence};

use objmapper_engine::engine::Engine;
use objmapper_engine::persist::{NewObject, Persistence, Times};
use varnishd::bans::{self, List};
use varnishd::objcore::{Lifetime, Objcore};
use varnishd::object::Object as Cached;
use varnishd::object_events::{self, Event};
use varnishd::purge::each_of_digest;
use varnishd::raw::RawStorage;
use varnishd::storage::Storage;
use varnishd::synthetic;
use varnishd::worker::Worker;

use crate::BOUNDARY;
use crate::object::{Object, object_of};
use crate::storage::persistence_of;
use crate::table::object_of_ours;

/// No entry yet.
const NONE: u32 = u32::MAX;
/// The object is on its way out: it gets no entry any more.
const GONE: u32 = u32::MAX - 1;

/// The version of what `Object::attributes` writes.
const RECORD_LAYOUT: u32 = 1;

/// What the next start must know of an object beside its record.
pub(crate) fn tag(attributes: u16) -> u32 {
    RECORD_LAYOUT << 16 | u32::from(attributes)
}

/// The attributes that a tag names; `None` if it is of another layout.
pub(crate) fn attributes_of(tag: u32) -> Option<u16> {
    (tag >> 16 == RECORD_LAYOUT).then_some(tag as u16)
}

/// What is written of an object.
///
/// The thread that ends the fetch enters the slot; the expiry thread, or one that evicts, takes it. Either may be first: an object
/// whose end came first gets no entry, and one whose end comes while its entry is made finds the slot here. Times are compared
/// after the slot is entered, because a change of them before that finds none.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The slot, [`NONE`] or [`GONE`].
    slot: AtomicU32,
    /// A check of the times that are written.
    times: AtomicU32,
    /// True if an earlier process has kept it.
    reloaded: AtomicBool,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept { slot: AtomicU32::new(NONE), times: AtomicU32::new(0), reloaded: AtomicBool::new(false) }
    }
}

impl Kept {
    /// What is written of an object of an earlier process.
    pub(crate) fn restored() -> Kept {
        Kept { reloaded: AtomicBool::new(true), ..Kept::default() }
    }

    /// Enters the slot of an object that varnishd does not know yet.
    pub(crate) fn enter(&self, slot: u32, times: &Times) {
        self.times.store(check(times), Relaxed);
        self.slot.store(slot, Relaxed);
    }

    /// Returns true if an earlier process has kept it.
    pub(crate) fn is_reloaded(&self) -> bool {
        self.reloaded.load(Relaxed)
    }

    /// Ends it: there is no entry afterwards. Returns the slot that is to be removed.
    fn take(&self) -> Option<u32> {
        let slot = self.slot.swap(GONE, AcqRel);
        (slot < GONE).then_some(slot)
    }
}

/// Mixes times to a number that differs, in all likelihood, if they do.
fn check(times: &Times) -> u32 {
    let mut mixed = times.origin.to_bits();
    for duration in [times.ttl, times.grace, times.keep] {
        mixed = (mixed ^ u64::from(duration.to_bits())).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    (mixed ^ mixed >> 32) as u32
}

fn times_of(oc: Objcore<'_>) -> Times {
    let Lifetime { origin, ttl, grace, keep } = oc.lifetime();
    Times { origin, ttl, grace, keep }
}

/// Returns our object of one in varnishd's cache, and what keeps it, if its storage is ours and keeps objects.
fn kept_object<'a>(oc: Objcore<'a>) -> Option<(&'a Object, &'static Persistence)> {
    // SAFETY: an object that the caller has a reference to; one of ours is of an open storage.
    unsafe {
        let (oc, storage) = object_of_ours(oc.address())?;
        Some((object_of(oc).1, persistence_of(storage)?))
    }
}

/// Has varnishd tell of the ends of objects, and of changes of their times; once in a process.
pub(crate) fn subscribe() {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| {
        // It holds for as long as the process lives.
        std::mem::forget(object_events::subscribe(on_event, &[Event::TtlChanged, Event::Expired]));
        synthetic::listen(on_answer);
    });
}

/// Carries out what a request has purged before it is answered: the expiry thread, which tells of it, may be later.
fn on_answer(worker: Worker<'_>, digest: &[u8; 32]) {
    BOUNDARY.fallible("answer to a purge", (), || {
        each_of_digest(worker, digest, |oc| {
            let Some((object, persistence)) = kept_object(oc) else { return };
            if !oc.is_dying() {
                update_times(oc, object, persistence);
            } else if let Some(slot) = object.kept.take() {
                persistence.remove(slot);
            }
        });
    });
}

/// Writes an object's times, if they are others than those that are written.
fn update_times(oc: Objcore<'_>, object: &Object, persistence: &Persistence) {
    let slot = object.kept.slot.load(SeqCst);
    if slot < GONE {
        let times = times_of(oc);
        let check = check(&times);
        if object.kept.times.swap(check, Relaxed) != check {
            persistence.set_times(slot, times);
        }
    }
}

fn on_event(_: Worker<'_>, cached: &Cached<'_>, event: Event) {
    BOUNDARY.fallible("object event", (), || {
        let oc = cached.objcore();
        let Some((object, persistence)) = kept_object(oc) else { return };
        match event {
            Event::Expired => {
                if let Some(slot) = object.kept.take() {
                    persistence.remove(slot);
                }
            }
            Event::TtlChanged => update_times(oc, object, persistence),
            Event::Inserted => {}
        }
    });
}

/// Writes a cached object down, if its storage keeps objects. Its fetch has just ended well.
pub(crate) fn keep(oc: Objcore<'_>, engine: &Engine, object: &Object) {
    let Some((_, persistence)) = kept_object(oc) else { return };
    let Some(digest) = oc.digest().filter(|_| !oc.is_dying()) else { return };
    let Some(ban) = List::lock().tested_until(oc) else { return };
    let times = times_of(oc);
    let new = NewObject {
        digest,
        times,
        ban,
        tag: tag(oc.attribute_bits()),
        // SAFETY: the fetch has ended, and an eviction does not touch an object with a reference beside the expiry thread's.
        parts: unsafe { object.attributes() },
        head: object.head_size(),
    };
    // SAFETY: as above, and the body is settled.
    let Some(slot) = (unsafe { persistence.keep(engine, &object.body, new) }) else { return };
    object.kept.times.store(check(&times), Relaxed);
    if object.kept.slot.compare_exchange(NONE, slot, SeqCst, Acquire).is_err() {
        // Its end came meanwhile.
        persistence.remove(slot);
        return;
    }
    fence(SeqCst);
    // What came before the slot was entered found none.
    if !oc.is_dying() {
        update_times(oc, object, persistence);
    } else if let Some(slot) = object.kept.take() {
        persistence.remove(slot);
    }
}

/// Removes what is written of an object of ours that is about to go.
pub(crate) fn forget(oc: Objcore<'_>, object: &Object) {
    if object.kept.slot.load(Acquire) == GONE {
        return;
    }
    if let Some(slot) = object.kept.take()
        && let Some((_, persistence)) = kept_object(oc)
    {
        persistence.remove(slot);
    }
}

/// Writes a ban down, if the storage keeps objects. Returns true if varnishd should export its list.
///
/// # Safety
/// `stv` must be a storage of ours after `open`, and `spec` point to `len` bytes.
pub(crate) unsafe fn ban(stv: *const RawStorage, spec: *const u8, len: c_uint) -> bool {
    // SAFETY: by contract.
    let (persistence, spec) = unsafe { (persistence_of(Storage::new(stv)), bans::spec(spec, len as usize)) };
    match (persistence, spec) {
        (Some(persistence), Some(spec)) => persistence.ban(spec),
        _ => false,
    }
}

/// Replaces the bans that are written down, if the storage keeps objects.
///
/// # Safety
/// `stv` must be a storage of ours after `open`, and `specs` point to `len` bytes: varnishd's list, exported.
pub(crate) unsafe fn replace_bans(stv: *const RawStorage, specs: *const u8, len: c_uint) {
    // SAFETY: by contract.
    let (persistence, specs) = unsafe { (persistence_of(Storage::new(stv)), bans::spec(specs, len as usize)) };
    if let (Some(persistence), Some(specs)) = (persistence, specs) {
        persistence.replace_bans(bans::exported(specs));
    }
}
