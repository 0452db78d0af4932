//! What is done in the background: room is made before somebody needs it, and what objmapper lost leaves the cache.
//!
//! The work itself is varnishd's (evicting, killing objects), in a thread with a worker of varnishd's; here is what
//! wakes that thread.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::account::{Account, UNLIMITED};

/// The share of the limit that is kept free ahead of need.
const KEPT_FREE: u64 = 32;
/// But not more than this.
const MAX_KEPT_FREE: u64 = 256 << 20;
/// A storage in which that would be less than this evicts only when somebody needs room, as Varnish's own do.
const MIN_KEPT_FREE: u64 = 1 << 20;

/// Where a body of an objmapperd is, as far as its loss is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossDomain {
    /// The session that pins it.
    pub session: u64,
    /// In memory: how often that memory had begun anew.
    pub memory_epoch: Option<u64>,
}

/// Which bodies are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossScope {
    /// All that an earlier session pinned.
    SessionsBefore(u64),
    /// All in a memory tier before it began anew this many times.
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

/// What the background thread should do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    /// Take lost bodies out of the cache.
    Sweep(LossScope),
    /// Evict until so many bytes are free or nothing can be evicted, then say which with [`Maintenance::made_room`].
    MakeRoom(u64),
    /// Nothing urgent; time to tidy up and to bring gauges up to date.
    Idle,
    /// End.
    Stop,
}

#[derive(Default)]
struct State {
    scopes: Vec<LossScope>,
    /// Bytes that should be free, and no round that began has heard of it.
    wanted: u64,
    /// Rounds of making room that began, and that ended.
    begun: u64,
    ended: u64,
    /// Did the last one end because nothing more could be evicted?
    exhausted: bool,
    /// The scopes so far, for bodies that are registered after the sweep.
    sessions_before: u64,
    memory_before: u64,
    notified: bool,
    stop: bool,
}

/// The background thread's inbox.
#[derive(Default)]
pub struct Maintenance {
    state: Mutex<State>,
    wake: Condvar,
    round_done: Condvar,
}

impl Maintenance {
    /// The next thing to do; waits for it, but not longer than `patience`.
    pub fn next_work(&self, patience: Duration) -> Work {
        let mut state = self.state.lock();
        if !state.stop && !state.notified && state.wanted == 0 && state.scopes.is_empty() {
            self.wake.wait_for(&mut state, patience);
        }
        if state.stop {
            return Work::Stop;
        }
        if let Some(scope) = state.scopes.pop() {
            return Work::Sweep(scope);
        }
        if state.wanted > 0 {
            state.begun += 1;
            return Work::MakeRoom(std::mem::take(&mut state.wanted));
        }
        state.notified = false;
        Work::Idle
    }

    /// Evicted for [`Work::MakeRoom`] until there was the room, or (`exhausted`) nothing evictable.
    pub fn made_room(&self, exhausted: bool) {
        let mut state = self.state.lock();
        state.ended = state.begun;
        state.exhausted = exhausted;
        self.round_done.notify_all();
    }

    /// Bodies are lost.
    pub(crate) fn report_loss(&self, scope: LossScope) {
        let mut state = self.state.lock();
        match scope {
            LossScope::SessionsBefore(session) => state.sessions_before = state.sessions_before.max(session),
            LossScope::MemoryBefore(epoch) => state.memory_before = state.memory_before.max(epoch),
        }
        state.scopes.push(scope);
        self.wake.notify_one();
    }

    /// Is what is there lost already? The sweep for that scope may be over.
    pub(crate) fn is_lost(&self, loss_domain: LossDomain) -> bool {
        let state = self.state.lock();
        LossScope::SessionsBefore(state.sessions_before).applies_to(loss_domain)
            || LossScope::MemoryBefore(state.memory_before).applies_to(loss_domain)
    }

    /// Something happened that the gauges should show.
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

    /// Asks for `bytes`; returns the number of the round that will care for it.
    fn want(&self, bytes: u64) -> u64 {
        let mut state = self.state.lock();
        state.wanted = state.wanted.max(bytes);
        self.wake.notify_one();
        state.begun + 1
    }

    /// After an allocation: has room made in the background when little is left.
    pub(crate) fn keep_room(&self, account: &Account) {
        let kept = kept_free(account.limit());
        if kept > 0 && account.free() < kept / 2 {
            self.want(kept);
        }
    }

    /// Has the background thread make room for `bytes`, which the caller could not evict itself, and waits for it.
    /// `true`: there was room, though others may have taken it meanwhile. `false`: nothing more can be evicted, or
    /// not within `patience`.
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
        assert_eq!(maintenance.next_work(Duration::ZERO), Work::Idle, "more than half of what is kept free is free");
        assert!(account.alloc(1 << 19));
        maintenance.keep_room(&account);
        maintenance.report_loss(LossScope::SessionsBefore(7));
        assert_eq!(maintenance.next_work(Duration::ZERO), Work::Sweep(LossScope::SessionsBefore(7)));
        assert_eq!(maintenance.next_work(Duration::ZERO), Work::MakeRoom(2 << 20));
        maintenance.made_room(false);
        assert_eq!(maintenance.next_work(Duration::ZERO), Work::Idle);
        maintenance.stop();
        assert_eq!(maintenance.next_work(Duration::from_secs(60)), Work::Stop);
    }

    #[test]
    fn who_waits_for_room_gets_it_or_hears_that_there_is_none() {
        let maintenance = Arc::new(Maintenance::default());
        let account = Arc::new(account(64 << 20));
        assert!(account.alloc(64 << 20));
        let keeper = {
            let (maintenance, account) = (maintenance.clone(), account.clone());
            std::thread::spawn(move || {
                let mut rounds = 0;
                while rounds < 2 {
                    match maintenance.next_work(Duration::from_secs(60)) {
                        Work::MakeRoom(bytes) => {
                            if rounds == 0 {
                                account.dealloc(bytes);
                            }
                            maintenance.made_room(rounds > 0);
                            rounds += 1;
                        }
                        Work::Stop => break,
                        Work::Sweep(_) | Work::Idle => {}
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
        assert_eq!(maintenance.next_work(Duration::ZERO), Work::MakeRoom(2 << 20));
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
        assert_eq!(maintenance.next_work(Duration::from_secs(60)), Work::MakeRoom(8 << 20));
        // Room was made, but somebody else took it: the waiter may try again.
        maintenance.made_room(false);
        assert!(waiter.join().is_ok_and(|made| made));
        assert_eq!(maintenance.next_work(Duration::ZERO), Work::Idle);
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
