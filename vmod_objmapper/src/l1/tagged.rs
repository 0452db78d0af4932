//! The objects of this cache that have tags, or a record under a URI of its own, of all storages.
//!
//! | state | index | news of objects |
//! |---|---|---|
//! | no director names a tag header | empty, not looked at | not subscribed |
//! | one does | complete, but for objects that are still to be searched | subscribed |
//!
//! When the first such director comes, or one with another header, objects may be in the cache already: the follower's thread
//! searches them. What was purged meanwhile, or since the last such director went, is in `recent`, and is compared as an object is
//! found.
//!
//! **Why a pointer in the index is valid.** An object is in the index from when varnishd tells of its insertion until it tells of its
//! end, which it does while it holds a reference. A look-up takes a reference of its own with the lock of the name's shard held,
//! for which the listener waits before varnishd goes on. The search adds an object to which it holds a reference, and takes it out
//! again if varnishd will not tell of its end any more. Once the last director goes, the index is not looked at any more before
//! the subscription ends; `STATE` is locked for reading as long as an address from the index has no reference.

use objmapper_records::split_tags;
use objmapper_tags::{Counters, Effect, Mark, Name};
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use varnishd::http::value_of;
use varnishd::object::{Address, Held, Object};
use varnishd::object_events::{Event, Subscription, subscribe};
use varnishd::present;
use varnishd::worker::Worker;

use super::in_flight::{self, InFlight};
use super::{INDEX, NAMES, RECENT, counters, follower};
use crate::operator;

/// How often the search looks again for objects that were locked, and how long it waits before.
const SEARCHES: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(2);

/// Whether the index can be looked at.
static STATE: RwLock<State> = RwLock::new(State { active: false, generation: 0 });

struct State {
    active: bool,
    /// Grows whenever the index is emptied.
    generation: u64,
}

/// The headers that name tags, as the directors name them. Never shorter: what a former VCL's objects have stays known.
static HEADERS: RwLock<Vec<Vec<u8>>> = RwLock::new(Vec::new());

/// The directors that name tag headers.
static DIRECTORS: Mutex<Directors> = Mutex::new(Directors { count: 0, subscription: None, incomplete_since: None });

struct Directors {
    count: usize,
    subscription: Option<Subscription>,
    /// What was purged since then was not applied to the objects that are still to be searched.
    incomplete_since: Option<Mark>,
}

/// A director's wish that the index be kept.
pub(crate) struct Tagging(());

impl Tagging {
    /// Has the index kept for these headers, and the objects that are in the cache searched for them. Called in varnishd's CLI
    /// thread.
    pub(crate) fn begin(headers: &[Vec<u8>]) -> Option<Tagging> {
        if headers.is_empty() {
            return None;
        }
        let mut directors = DIRECTORS.lock();
        let is_new = {
            let mut known = HEADERS.write();
            let new: Vec<Vec<u8>> =
                headers.iter().filter(|name| !known.iter().any(|k| k.eq_ignore_ascii_case(name))).cloned().collect();
            known.extend(new.iter().cloned());
            !new.is_empty()
        };
        directors.count += 1;
        if directors.subscription.is_none() {
            directors.subscription = Some(subscribe(on_event, &[Event::Inserted, Event::Expired]));
            STATE.write().active = true;
        } else if !is_new {
            return Some(Tagging(()));
        }
        directors.incomplete_since.get_or_insert_with(|| RECENT.mark());
        drop(directors);
        follower::search();
        Some(Tagging(()))
    }
}

impl Drop for Tagging {
    fn drop(&mut self) {
        let mut directors = DIRECTORS.lock();
        directors.count -= 1;
        if directors.count > 0 {
            return;
        }
        {
            // Who looks the index up has a reference to what it found when this is locked.
            let mut state = STATE.write();
            state.active = false;
            state.generation += 1;
        }
        // Waits until no listener runs; this is a director's end, and no listener.
        directors.subscription = None;
        INDEX.clear();
        directors.incomplete_since.get_or_insert_with(|| RECENT.mark());
        show();
    }
}

/// Invalidates the objects of a name. Returns how many were alive.
pub(super) fn invalidate(worker: Worker<'_>, name: Name, effect: Effect) -> u64 {
    let held = {
        let state = STATE.read();
        if !state.active {
            return 0;
        }
        // SAFETY: see the top of this file: with the shard's lock held varnishd has a reference that it does not give up.
        INDEX.hold(name, |object| unsafe { Held::take(Address::from_usize(object)) })
    };
    held.into_iter().map(|held| u64::from(apply(worker, held, effect))).sum()
}

fn apply(worker: Worker<'_>, held: Held, effect: Effect) -> bool {
    let alive = match effect {
        Effect::Hard => held.kill(),
        Effect::Soft => held.expire_softly(),
    };
    held.release(worker);
    alive
}

fn on_event(worker: Worker<'_>, object: &Object<'_>, event: Event) {
    let address = object.address();
    match event {
        Event::Inserted => {
            let mut names = tags_of(worker, object);
            let fetch = in_flight::current(address);
            names.extend(fetch.and_then(|fetch| fetch.uri));
            INDEX.insert(address.to_usize(), names.iter().copied());
            if let Some(effect) = fetch.and_then(|fetch| since(&fetch, names)) {
                Counters::add(&counters().c_objects_in_flight, 1);
                // SAFETY: varnishd holds a reference during the call, and no mutex of the object's.
                apply(worker, unsafe { Held::take(address) }, effect);
            }
        }
        Event::Expired => INDEX.remove(address.to_usize()),
        Event::TtlChanged => {}
    }
}

/// What was purged since the fetch began, after the object is in the index: who purges does it the other way round.
fn since(fetch: &InFlight, mut names: Vec<Name>) -> Option<Effect> {
    names.push(fetch.key);
    RECENT.since(fetch.since, &names)
}

/// The tags of an object.
fn tags_of(worker: Worker<'_>, object: &Object<'_>) -> Vec<Name> {
    let headers = HEADERS.read();
    let mut names = Vec::new();
    object.each_header(worker, |line| {
        if let Some(value) = headers.iter().find_map(|header| value_of(line, header)) {
            names.extend(split_tags(value).map(|tag| NAMES.tag(tag)));
        }
        true
    });
    names
}

/// Adds the objects that are in the cache already. Called in the follower's thread.
pub(super) fn search(worker: Worker<'_>) {
    let Some(since) = DIRECTORS.lock().incomplete_since else { return };
    let generation = STATE.read().generation;
    let mut seen = std::collections::HashSet::new();
    let mut missed = 0;
    for attempt in 0..SEARCHES {
        if attempt > 0 {
            std::thread::sleep(BETWEEN);
        }
        let taken;
        (taken, missed) = present::take(|address| !seen.contains(&address));
        for held in taken {
            seen.insert(held.object().address());
            add(worker, held, since, generation);
        }
        if missed == 0 {
            break;
        }
    }
    if missed > 0 {
        operator(
            "tags",
            &format!("{missed} objects that are in the cache could not be searched for tags: purge them by key"),
        );
    }
    Counters::add(&counters().c_objects_searched, seen.len() as u64);
    let mut directors = DIRECTORS.lock();
    // A director that came meanwhile has asked for another search.
    if STATE.read().generation == generation && !follower::search_is_due() {
        directors.incomplete_since = None;
    }
}

/// Adds an object that the search has found.
fn add(worker: Worker<'_>, held: Held, since: Mark, generation: u64) {
    let (names, address) = (tags_of(worker, &held.object()), held.object().address());
    let purged = {
        let state = STATE.read();
        if names.is_empty() || !state.active || state.generation != generation {
            None
        } else {
            INDEX.insert(address.to_usize(), names.iter().copied());
            if !held.object().will_expire() {
                INDEX.remove(address.to_usize());
            }
            RECENT.since(since, &names)
        }
    };
    match purged {
        Some(effect) => Counters::add(&counters().c_objects_by_tag, u64::from(apply(worker, held, effect))),
        None => held.release(worker),
    }
}

/// Brings the gauges up to date.
pub(super) fn show() {
    counters().g_tags.store(INDEX.pairs(), Relaxed);
    counters().g_tag_bytes.store(INDEX.bytes(), Relaxed);
}
