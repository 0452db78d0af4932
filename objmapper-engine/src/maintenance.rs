//! The queue of a storage's background thread.
//!
//! The thread itself is in the cdylib, because its work is varnishd's (evicting and killing objects, with a
//! worker of varnishd's). It takes one task after the other from [`Maintenance::next_task`], the most urgent first:
//!
//! | task | requested by | ends with |
//! |---|---|---|
//! | [`Task::Stop`] | [`Maintenance::stop`] | the thread ends |
//! | [`Task::Sweep`] | the connection's events, when an objmapperd has lost bodies | the objects of those bodies are killed |
//! | [`Task::MakeRoom`] | a fetch that has no room, or leaves too little | [`Maintenance::made_room`] |
//! | [`Task::Idle`] | `Maintenance::notify`, or the timeout of `next_task` | |
//!
//! Invariants: a request for room that comes while a round is under way belongs to the next round, which has its own
//! number, so that a waiter never takes the end of an earlier round for its own. A loss is remembered after its sweep:
//! a body that is registered later is checked against it (`Maintenance::is_lost`). The lock is never held during a
//! call into varnishd.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::account::{Account, UNLIMITED};

/// One part in so many of the limit is kept free ahead of need.
const KEPT_FREE: u64 = 32;
/// The most bytes that are kept free.
const MAX_KEPT_FREE: u64 = 256 << 20;
/// The fewest bytes that are kept free. A storage whose share is smaller evicts only when a fetch needs room, as
/// Varnish's own do.
const MIN_KEPT_FREE: u64 = 1 << 20;

/// Which losses of an objmapperd concern a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossDomain {
    /// The session that pins it.
    pub session: u64,
    /// Of a body in the memory tier: how often that tier had been lost before.
    pub memory_epoch: Option<u64>,
}

/// Which bodies a loss concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossScope {
    /// All bodies that a session before this one pinned.
    SessionsBefore(u64),
    /// All bodies that were in the memory tier before it was lost for the n-th time.
    MemoryBefore(u64),
}

impl LossScope {
    pub(crate) fn applies_to(self, loss_domain: LossDomain) -> bool {
        match self {
            LossScope::SessionsBefore(session) => loss_domain.session < session,
            LossScope::MemoryBefore(epoch) => loss_domain.memory_epoch.is_some_and(|its| its < epoch),
        }
    }
}

/// A task of the background thread.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Remove the objects of lost bodies from the cache.
    Sweep(LossScope),
    /// Evict until so many bytes are free or nothing can be evicted, then report which by [`Maintenance::made_room`].
    MakeRoom(u64),
    /// Release what unanswered calls left behind, and update gauges.
    Idle,
    /// End the thread.
    Stop,
}

#[derive(Default)]
struct State {
    scopes: Vec<LossScope>,
    /// Bytes that should be free, requested after the last round began.
    wanted: u64,
    /// The numbers of rounds of making room that began and that ended.
    begun: u64,
    ended: u64,
    /// True if the last round ended because nothing more could be evicted.
    exhausted: bool,
    /// The losses so far, for bodies that are registered after the sweep.
    sessions_before: u64,
    memory_before: u64,
    notified: bool,
    stop: bool,
}

/// The queue of the background thread.
#[derive(Default)]
pub struct Maintenance {
    state: Mutex<State>,
    wake: Condvar,
    round_done: Condvar,
}

impl Maintenance {
    /// Returns the next task; waits for one, but not longer than `patience`.
    pub fn next_task(&self, patience: Duration) -> Task {
        let mut state = self.state.lock();
        if !state.stop && !state.notified && state.wanted == 0 && state.scopes.is_empty() {
            self.wake.wait_for(&mut state, patience);
        }
        if state.stop {
            return Task::Stop;
        }
        if let Some(scope) = state.scopes.pop() {
            return Task::Sweep(scope);
        }
        if state.wanted > 0 {
            state.begun += 1;
            return Task::MakeRoom(std::mem::take(&mut state.wanted));
        }
        state.notified = false;
        Task::Idle
    }

    /// Ends a round of [`Task::MakeRoom`]: there was room, or, if `exhausted`, nothing more to evict.
    pub fn made_room(&self, exhausted: bool) {
        let mut state = self.state.lock();
        state.ended = state.begun;
        state.exhausted = exhausted;
        self.round_done.notify_all();
    }

    /// Reports that bodies are lost: a sweep follows.
    pub(crate) fn report_loss(&self, scope: LossScope) {
        let mut state = self.state.lock();
        match scope {
            LossScope::SessionsBefore(session) => state.sessions_before = state.sessions_before.max(session),
            LossScope::MemoryBefore(epoch) => state.memory_before = state.memory_before.max(epoch),
        }
        state.scopes.push(scope);
        self.wake.notify_one();
    }

    /// Returns true if a loss that was reported concerns the body. The sweep for that loss may be over.
    pub(crate) fn is_lost(&self, loss_domain: LossDomain) -> bool {
        let state = self.state.lock();
        LossScope::SessionsBefore(state.sessions_before).applies_to(loss_domain)
            || LossScope::MemoryBefore(state.memory_before).applies_to(loss_domain)
    }

    /// Wakes the thread to update the gauges.
    pub(crate) fn notify(&self) {
        self.state.lock().notified = true;
        self.wake.notify_one();
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_one();
        self.round_done.notify_all();
    }

    /// Requests `bytes` of room; returns the number of the round that will make it.
    fn want(&self, bytes: u64) -> u64 {
        let mut state = self.state.lock();
        state.wanted = state.wanted.max(bytes);
        self.wake.notify_one();
        state.begun + 1
    }

    /// Requests room in the background if little is left. Called after an allocation.
    pub(crate) fn keep_room(&self, account: &Account) {
        let kept = kept_free(account.limit());
        if kept > 0 && account.free() < kept / 2 {
            self.want(kept);
        }
    }

    /// Has the background thread make room for `bytes`, which the caller could not evict itself, and waits for it.
    /// Returns true if there was room; another fetch may have taken it meanwhile. Returns false if nothing more can be
    /// evicted, or not within `patience`.
    pub fn wait_for_room(&self, account: &Account, bytes: u64, patience: Duration) -> bool {
        let kept = kept_free(account.limit());
        if kept == 0 || bytes > account.limit() {
            return false;
        }
        let deadline = Instant::now() + patience;
        let round = self.want(bytes.max(kept));
        let mut state = self.state.lock();
        while state.ended < round && !state.stop {
            if self.round_done.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        let made = state.ended >= round && !state.exhausted;
        drop(state);
        made || account.free() >= bytes
    }
}

fn kept_free(limit: u64) -> u64 {
    let kept = (limit / KEPT_FREE).min(MAX_KEPT_FREE);
    if limit == UNLIMITED || kept < MIN_KEPT_FREE { 0 } else { kept }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::account::SmaCounters;

    fn account(limit: u64) -> Account {
        Account::new(limit, Box::leak(Box::<SmaCounters>::default()))
    }

    #[test]
    fn a_small_storage_keeps_nothing_free() {
        assert_eq!(kept_free(1 << 20), 0);
        assert_eq!(kept_free(UNLIMITED), 0);
        assert_eq!(kept_free(32 << 20), 1 << 20);
        assert_eq!(kept_free(1 << 40), MAX_KEPT_FREE);
    }

    #[test]
    fn work_comes_in_order_of_urgency_and_ends() {
        let maintenance = Maintenance::default();
        let account = account(64 << 20);
        assert!(account.alloc(63 << 20));
        maintenance.keep_room(&account);
        assert_eq!(maintenance.next_task(Duration::ZERO), Task::Idle, "more than half of what is kept free is free");
        assert!(account.alloc(1 << 19));
        maintenance.keep_room(&account);
        maintenance.report_loss(LossScope::SessionsBefore(7));
        assert_eq!(maintenance.next_task(Duration::ZERO), Task::Sweep(LossScope::SessionsBefore(7)));
        assert_eq!(maintenance.next_task(Duration::ZERO), Task::MakeRoom(2 << 20));
        maintenance.made_room(false);
        assert_eq!(maintenance.next_task(Duration::ZERO), Task::Idle);
        maintenance.stop();
        assert_eq!(maintenance.next_task(Duration::from_secs(60)), Task::Stop);
    }

    #[test]
    fn a_waiter_gets_room_or_learns_that_there_is_none() {
        let maintenance = Arc::new(Maintenance::default());
        let account = Arc::new(account(64 << 20));
        assert!(account.alloc(64 << 20));
        let keeper = {
            let (maintenance, account) = (maintenance.clone(), account.clone());
            std::thread::spawn(move || {
                let mut rounds = 0;
                while rounds < 2 {
                    match maintenance.next_task(Duration::from_secs(60)) {
                        Task::MakeRoom(bytes) => {
                            if rounds == 0 {
                                account.dealloc(bytes);
                            }
                            maintenance.made_room(rounds > 0);
                            rounds += 1;
                        }
                        Task::Stop => break,
                        Task::Sweep(_) | Task::Idle => {}
                    }
                }
            })
        };
        assert!(maintenance.wait_for_room(&account, 1 << 20, Duration::from_secs(60)));
        assert!(account.alloc(account.free()));
        assert!(!maintenance.wait_for_room(&account, 1 << 20, Duration::from_secs(60)));
        maintenance.stop();
        assert!(!maintenance.wait_for_room(&account, 1 << 20, Duration::from_secs(60)));
        assert!(keeper.join().is_ok());
    }

    #[test]
    fn what_is_asked_for_during_a_round_is_the_next_rounds() {
        let maintenance = Arc::new(Maintenance::default());
        let account = Arc::new(account(64 << 20));
        assert!(account.alloc((63 << 20) + (1 << 19)));
        maintenance.keep_room(&account);
        assert_eq!(maintenance.next_task(Duration::ZERO), Task::MakeRoom(2 << 20));
        // The round is under way, for less than this.
        let waiter = {
            let (maintenance, account) = (maintenance.clone(), account.clone());
            std::thread::spawn(move || maintenance.wait_for_room(&account, 8 << 20, Duration::from_secs(60)))
        };
        let asked = Instant::now();
        while maintenance.state.lock().wanted == 0 && asked.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        maintenance.made_room(false);
        assert_eq!(maintenance.next_task(Duration::from_secs(60)), Task::MakeRoom(8 << 20));
        // Room was made, but another fetch took it: the waiter may try again.
        maintenance.made_room(false);
        assert!(waiter.join().is_ok_and(|made| made));
        assert_eq!(maintenance.next_task(Duration::ZERO), Task::Idle);
    }

    #[test]
    fn a_verdict_holds_for_what_is_published_after_its_sweep() {
        let maintenance = Maintenance::default();
        let at = |session, memory_epoch| LossDomain { session, memory_epoch };
        assert!(!maintenance.is_lost(at(1, Some(0))));
        maintenance.report_loss(LossScope::SessionsBefore(2));
        assert!(maintenance.is_lost(at(1, None)) && !maintenance.is_lost(at(2, Some(0))));
        maintenance.report_loss(LossScope::MemoryBefore(1));
        assert!(
            maintenance.is_lost(at(2, Some(0)))
                && !maintenance.is_lost(at(2, Some(1)))
                && !maintenance.is_lost(at(2, None))
        );
    }
}
