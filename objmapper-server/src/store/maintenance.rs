//! The store's own threads.
//!
//! | thread | work |
//! |---|---|
//! | `objm-maintain` | lease timers, expiry, grace times of sessions, measuring files that clients can write |
//! | `objm-disk` (with a disk tier) | work that may block on the disk: checkpoints, `syncfs`, orphan files, the file system's capacity |
//!
//! A thread holds a weak reference to the store while it waits, so that it does not keep the store open. Dropping [`Threads`]
//! stops and joins them.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::object::now_ms;
use super::publication::MEASURE_INTERVAL;
use super::tier::recovery::position;
use super::tier::{Medium, Tier};
use super::{Inner, StoreError};

/// Interval of the checks of expiry, grace times and the file system's room.
const TICK: Duration = Duration::from_secs(1);
/// Interval at which bodies are brought to stable storage. A power failure loses at most the bodies of that time.
const SYNC: Duration = Duration::from_secs(5);

/// Wakes a waiting thread early, or stops it.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    state: Mutex<WakeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WakeState {
    notified: bool,
    stopped: bool,
}

impl Wake {
    pub(crate) fn notify(&self) {
        self.state.lock().notified = true;
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until `deadline`, a notification, or the stop. Returns false at the stop.
    fn wait_until(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.notified && !state.stopped {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.notified = false;
        !state.stopped
    }
}

/// The running threads of a store; dropping stops and joins them.
#[derive(Debug, Default)]
pub(crate) struct Threads(Vec<(Arc<Wake>, JoinHandle<()>)>);

impl Drop for Threads {
    fn drop(&mut self) {
        for (wake, _) in &self.0 {
            wake.stop();
        }
        for (_, handle) in self.0.drain(..) {
            // A lease's callback may hold the last handle of the store: then this is the thread itself.
            if handle.thread().id() != thread::current().id() && handle.join().is_err() {
                log::error!("a thread of the store has panicked");
            }
        }
    }
}

pub(crate) fn start(inner: &Arc<Inner>) -> Result<Threads, StoreError> {
    let mut threads = Threads::default();
    let mut spawn = |name: &str, wake: &Arc<Wake>, run: fn(&Weak<Inner>, &Wake)| {
        let (weak, wake) = (Arc::downgrade(inner), wake.clone());
        let theirs = wake.clone();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&weak, &theirs))
            .map(|handle| threads.0.push((wake, handle)))
            .map_err(StoreError::io("starting a thread of the store"))
    };
    spawn("objm-maintain", &inner.wake, maintain)?;
    if inner.tiers.iter().any(|tier| tier.is_persistent() || tier.files.medium == Medium::Shared) {
        spawn("objm-disk", &inner.disk_wake, maintain_disk)?;
    }
    Ok(threads)
}

fn maintain(store: &Weak<Inner>, wake: &Wake) {
    let mut tick = Instant::now() + TICK;
    let mut measure = Instant::now() + MEASURE_INTERVAL;
    loop {
        let deadline = match store.upgrade() {
            Some(inner) => inner.leases.next_deadline().map_or(measure, |at| at.min(measure)).min(tick),
            None => return,
        };
        if !wake.wait_until(deadline) {
            return;
        }
        let Some(inner) = store.upgrade() else { return };
        inner.lease_timers();
        if Instant::now() >= tick {
            tick = Instant::now() + TICK;
            inner.sweep_expired();
            inner.end_abandoned_sessions();
        }
        if Instant::now() >= measure {
            inner.measure_writers();
            inner.sweep_foreign();
            measure = Instant::now() + MEASURE_INTERVAL;
        }
    }
}

fn maintain_disk(store: &Weak<Inner>, wake: &Wake) {
    if let Some(inner) = store.upgrade() {
        inner.tiers.persistent().for_each(|tier| inner.sweep_orphans(tier));
    }
    let mut tick = Instant::now() + TICK;
    let mut sync = Instant::now() + SYNC;
    while wake.wait_until(tick) {
        let Some(inner) = store.upgrade() else { return };
        let now = Instant::now();
        inner.sweep_skipped();
        for tier in inner.tiers.iter() {
            tier.maintain_journal();
            if now >= tick || tier.capacity.is_suspected() {
                inner.check_capacity(tier);
            }
            if now >= sync
                && let Err(e) = tier.sync(|| inner.ids.last())
            {
                inner.diagnostics.note_error(&e);
            }
        }
        if now >= tick {
            tick = Instant::now() + TICK;
        }
        if now >= sync {
            sync = Instant::now() + SYNC;
        }
    }
}

impl Inner {
    /// Removes expired objects.
    pub(crate) fn sweep_expired(&self) {
        let now = now_ms();
        loop {
            let object = {
                let mut expiry = self.expiry.lock();
                match expiry.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            self.discard(&object);
        }
    }

    /// Checks the tier's file system, sets the ceiling, and logs a change.
    fn check_capacity(&self, tier: &Tier) {
        if tier.files.medium == Medium::Shared {
            self.set_ceiling(tier);
            tier.report_capacity();
        }
    }

    /// Removes the files of a former run whose ids were skipped.
    fn sweep_skipped(&self) {
        let skipped = self.ids.take_skipped();
        if skipped.is_empty() {
            return;
        }
        for tier in self.tiers.persistent() {
            let swept = tier.files.sweep(|id| skipped.iter().any(|range| range.contains(&id)));
            if let Err(e) = swept {
                self.diagnostics.note_error(&StoreError::io("removing files without a row")(e));
            }
        }
    }

    /// Removes the files of a former run that have no row, and the rows that have no file.
    fn sweep_orphans(&self, tier: &Tier) {
        let started = Instant::now();
        {
            let _evicting = tier.evicting.lock();
            tier.recovery.complete_order(&tier.order);
        }
        self.index.complete_order();
        let known = tier.recovery.take_found();
        let mut seen = vec![false; known.len()];
        let swept = tier.files.sweep(|id| match position(&known, id) {
            Some(at) => {
                seen[at] = true;
                false
            }
            // An id that this run has not given out, for the case that the end of the journal was lost.
            None => self.ids.is_former(id),
        });
        for object in tier.recovery.take_unwanted() {
            self.discard(&object);
        }
        tier.flush();
        let kind = tier.kind;
        let orphans = match swept {
            Ok(removed) => removed,
            Err(e) => {
                log::error!("{kind} tier: looking for orphan files: {e}");
                return;
            }
        };
        let mut lost = 0u64;
        for (object, _) in known.iter().zip(&seen).filter(|(_, seen)| !**seen) {
            // The object may have been evicted during the sweep.
            if object.state.lock().listed {
                lost += 1;
                self.discard(object);
            }
        }
        self.diagnostics.lost_files.fetch_add(lost, Relaxed);
        log::info!(
            "{kind} tier: {orphans} orphan files removed, {lost} records without a file dropped in {:.1} s",
            started.elapsed().as_secs_f64()
        );
    }
}
