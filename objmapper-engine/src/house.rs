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
const MOST_KEPT_FREE: u64 = 256 << 20;
/// A storage in which that would be less than this evicts only when somebody needs room, as Varnish's own do.
const LEAST_KEPT_FREE: u64 = 1 << 20;

/// Where a body of an objmapperd is, as far as its loss is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    /// The session that pins it.
    pub session: u64,
    /// In memory: how often that memory had begun anew.
    pub memory_epoch: Option<u64>,
}

/// Which bodies are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All that an earlier session pinned.
    SessionsBefore(u64),
    /// All in a memory tier before it began anew this many times.
    MemoryBefore(u64),
}

impl Verdict {
    pub(crate) fn applies_to(self, whereabouts: Whereabouts) -> bool {
        match self {
            Verdict::SessionsBefore(session) => whereabouts.session < session,
            Verdict::MemoryBefore(epoch) => whereabouts.memory_epoch.is_some_and(|its| its < epoch),
        }
    }
}

/// What the background thread should do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    /// Take lost bodies out of the cache.
    Sweep(Verdict),
    /// Evict until so many bytes are free or nothing can be evicted, then say which with [`House::made_room`].
    MakeRoom(u64),
    /// Nothing urgent; time to tidy up and to bring gauges up to date.
    Idle,
    /// End.
    Stop,
}

#[derive(Default)]
struct State {
    verdicts: Vec<Verdict>,
    /// Bytes that should be free, and no round that began has heard of it.
    wanted: u64,
    /// Rounds of making room that began, and that ended.
    begun: u64,
    ended: u64,
    /// Did the last one end because nothing more could be evicted?
    exhausted: bool,
    /// The verdicts so far, for bodies that are registered after the sweep.
    sessions_before: u64,
    memory_before: u64,
    stirred: bool,
    stop: bool,
}

/// The background thread's inbox.
#[derive(Default)]
pub struct House {
    state: Mutex<State>,
    wake: Condvar,
    round_done: Condvar,
}

impl House {
    /// The next thing to do; waits for it, but not longer than `patience`.
    pub fn next_work(&self, patience: Duration) -> Work {
        let mut state = self.state.lock();
        if !state.stop && !state.stirred && state.wanted == 0 && state.verdicts.is_empty() {
            self.wake.wait_for(&mut state, patience);
        }
        if state.stop {
            return Work::Stop;
        }
        if let Some(verdict) = state.verdicts.pop() {
            return Work::Sweep(verdict);
        }
        if state.wanted > 0 {
            state.begun += 1;
            return Work::MakeRoom(std::mem::take(&mut state.wanted));
        }
        state.stirred = false;
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
    pub(crate) fn pronounce(&self, verdict: Verdict) {
        let mut state = self.state.lock();
        match verdict {
            Verdict::SessionsBefore(session) => state.sessions_before = state.sessions_before.max(session),
            Verdict::MemoryBefore(epoch) => state.memory_before = state.memory_before.max(epoch),
        }
        state.verdicts.push(verdict);
        self.wake.notify_one();
    }

    /// Is what is there lost already? The sweep for that verdict may be over.
    pub(crate) fn condemns(&self, whereabouts: Whereabouts) -> bool {
        let state = self.state.lock();
        Verdict::SessionsBefore(state.sessions_before).applies_to(whereabouts)
            || Verdict::MemoryBefore(state.memory_before).applies_to(whereabouts)
    }

    /// Something happened that the gauges should show.
    pub(crate) fn stir(&self) {
        self.state.lock().stirred = true;
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
    let kept = (limit / KEPT_FREE).min(MOST_KEPT_FREE);
    if limit == UNLIMITED || kept < LEAST_KEPT_FREE { 0 } else { kept }
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
        assert_eq!(kept_free(1 << 40), MOST_KEPT_FREE);
    }

    #[test]
    fn work_comes_in_order_of_urgency_and_ends() {
        let house = House::default();
        let account = account(64 << 20);
        assert!(account.alloc(63 << 20));
        house.keep_room(&account);
        assert_eq!(house.next_work(Duration::ZERO), Work::Idle, "more than half of what is kept free is free");
        assert!(account.alloc(1 << 19));
        house.keep_room(&account);
        house.pronounce(Verdict::SessionsBefore(7));
        assert_eq!(house.next_work(Duration::ZERO), Work::Sweep(Verdict::SessionsBefore(7)));
        assert_eq!(house.next_work(Duration::ZERO), Work::MakeRoom(2 << 20));
        house.made_room(false);
        assert_eq!(house.next_work(Duration::ZERO), Work::Idle);
        house.stop();
        assert_eq!(house.next_work(Duration::from_secs(60)), Work::Stop);
    }

    #[test]
    fn who_waits_for_room_gets_it_or_hears_that_there_is_none() {
        let house = Arc::new(House::default());
        let account = Arc::new(account(64 << 20));
        assert!(account.alloc(64 << 20));
        let keeper = {
            let (house, account) = (house.clone(), account.clone());
            std::thread::spawn(move || {
                let mut rounds = 0;
                while rounds < 2 {
                    match house.next_work(Duration::from_secs(60)) {
                        Work::MakeRoom(bytes) => {
                            if rounds == 0 {
                                account.dealloc(bytes);
                            }
                            house.made_room(rounds > 0);
                            rounds += 1;
                        }
                        Work::Stop => break,
                        Work::Sweep(_) | Work::Idle => {}
                    }
                }
            })
        };
        assert!(house.wait_for_room(&account, 1 << 20, Duration::from_secs(60)));
        assert!(account.alloc(account.free()));
        assert!(!house.wait_for_room(&account, 1 << 20, Duration::from_secs(60)));
        house.stop();
        assert!(!house.wait_for_room(&account, 1 << 20, Duration::from_secs(60)));
        assert!(keeper.join().is_ok());
    }

    #[test]
    fn what_is_asked_for_during_a_round_is_the_next_rounds() {
        let house = Arc::new(House::default());
        let account = Arc::new(account(64 << 20));
        assert!(account.alloc((63 << 20) + (1 << 19)));
        house.keep_room(&account);
        assert_eq!(house.next_work(Duration::ZERO), Work::MakeRoom(2 << 20));
        // The round is under way, for less than this.
        let waiter = {
            let (house, account) = (house.clone(), account.clone());
            std::thread::spawn(move || house.wait_for_room(&account, 8 << 20, Duration::from_secs(60)))
        };
        let asked = Instant::now();
        while house.state.lock().wanted == 0 && asked.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        house.made_room(false);
        assert_eq!(house.next_work(Duration::from_secs(60)), Work::MakeRoom(8 << 20));
        // Room was made, but somebody else took it: the waiter may try again.
        house.made_room(false);
        assert!(waiter.join().is_ok_and(|made| made));
        assert_eq!(house.next_work(Duration::ZERO), Work::Idle);
    }

    #[test]
    fn a_verdict_holds_for_what_is_published_after_its_sweep() {
        let house = House::default();
        let at = |session, memory_epoch| Whereabouts { session, memory_epoch };
        assert!(!house.condemns(at(1, Some(0))));
        house.pronounce(Verdict::SessionsBefore(2));
        assert!(house.condemns(at(1, None)) && !house.condemns(at(2, Some(0))));
        house.pronounce(Verdict::MemoryBefore(1));
        assert!(house.condemns(at(2, Some(0))) && !house.condemns(at(2, Some(1))) && !house.condemns(at(2, None)));
    }
}
