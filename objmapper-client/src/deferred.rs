//! The queue of what is given back in the background: pins, leases, private objects, and what unread replies gave.
//!
//! `deferred_worker` takes the items and sends them to the store. The queue is bounded: an item beyond the bound is dropped, and
//! the store gives it up with the session.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use objmapper_log::RateLimited;
use parking_lot::{Condvar, Mutex};

use crate::counters::Counters;

/// Maximum number of waiting items (32 bytes each). Further ones are dropped and counted; the store frees them
/// with the session.
const MAX_WAITING: usize = 1 << 20;

/// One thing to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Release(u64),
    Abort(u64),
    Unlease {
        lease: u64,
        refuse: u32,
    },
    /// A lost connection: the replies after the first `read` were not read.
    Lost {
        connection: u64,
        read: u64,
    },
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<(u64, Item)>,
    busy: bool,
    stop: bool,
}

/// The queue; `deferred_worker` takes from it.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
}

impl Deferred {
    pub(crate) fn push(&self, session: u64, items: impl Iterator<Item = Item>, counters: &Counters) {
        let mut dropped = 0;
        let ended = {
            let mut queue = self.queue.lock();
            for item in items {
                if queue.items.len() < MAX_WAITING && !queue.stop {
                    queue.items.push_back((session, item));
                } else {
                    dropped += 1;
                }
            }
            queue.stop
        };
        Counters::add(&counters.deferred_dropped, dropped);
        static FULL: RateLimited = RateLimited::new(3, Duration::from_secs(60));
        if dropped > 0
            && !ended
            && let Some(left_out) = FULL.admit()
        {
            log::warn!("{dropped} pins or private objects are not given up before their session ends{left_out}");
        }
        self.filled.notify_one();
    }

    pub(crate) fn wait_empty(&self, deadline: Instant) -> bool {
        let mut queue = self.queue.lock();
        while queue.busy || !queue.items.is_empty() {
            if self.emptied.wait_until(&mut queue, deadline).timed_out() {
                return !queue.busy && queue.items.is_empty();
            }
        }
        true
    }

    pub(crate) fn stop(&self) {
        self.queue.lock().stop = true;
        self.filled.notify_all();
    }

    /// Waits for items and takes at most `max`. The flag is true if the client is ending, so that the worker takes no more after
    /// them. Returns `None` if the client is ending and no item is left. The queue counts as busy until the next call.
    pub(crate) fn take(&self, max: usize) -> Option<(Vec<(u64, Item)>, bool)> {
        let mut queue = self.queue.lock();
        queue.busy = false;
        if queue.items.is_empty() {
            self.emptied.notify_all();
        }
        while queue.items.is_empty() && !queue.stop {
            self.filled.wait(&mut queue);
        }
        if queue.items.is_empty() {
            return None;
        }
        queue.busy = true;
        let n = queue.items.len().min(max);
        Some((queue.items.drain(..n).collect(), queue.stop))
    }

    /// Puts items back at the front, to be tried again.
    pub(crate) fn put_back(&self, items: Vec<(u64, Item)>) {
        let mut queue = self.queue.lock();
        for item in items.into_iter().rev() {
            queue.items.push_front(item);
        }
    }

    /// Drops and counts the remaining items; the store frees them with the session.
    pub(crate) fn drop_rest(&self, counters: &Counters) {
        let mut queue = self.queue.lock();
        Counters::add(&counters.deferred_dropped, queue.items.len() as u64);
        queue.items.clear();
        queue.busy = false;
        self.emptied.notify_all();
    }
}
