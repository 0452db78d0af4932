//! What waits to be given up: pins, leases, private objects, and what unread replies gave.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use objmapper_log::RateLimited;
use parking_lot::{Condvar, Mutex};

use crate::counters::Counters;

/// Most items that wait (32 bytes each). Beyond it they are dropped and counted; the store gives them up
/// with the session.
const MAX_WAITING: usize = 1 << 20;

/// What to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Release(u64),
    Abort(u64),
    Unlease {
        lease: u64,
        refuse: u32,
    },
    /// A lost connection: what came on it after `read` replies has not been read.
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

/// The queue. Who takes from it sends it to the store: see `deferred_worker`.
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

    /// At most `max` items, as soon as there are any, and whether they are the last that are taken; `None` when the client
    /// ends and none is left. The queue is busy until the next call.
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

    /// Items that have to be tried again come first.
    pub(crate) fn put_back(&self, items: Vec<(u64, Item)>) {
        let mut queue = self.queue.lock();
        for item in items.into_iter().rev() {
            queue.items.push_front(item);
        }
    }

    /// Drops what is left: it goes with the session.
    pub(crate) fn drop_rest(&self, counters: &Counters) {
        let mut queue = self.queue.lock();
        Counters::add(&counters.deferred_dropped, queue.items.len() as u64);
        queue.items.clear();
        queue.busy = false;
        self.emptied.notify_all();
    }
}
