//! What can be given up without waiting: pins, leases, private objects.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use objmapper_proto::ext::{Op, Request};
use parking_lot::{Condvar, Mutex};

use crate::client::{Client, checked};
use crate::connection::{Connection, Ticket};
use crate::counters::Counters;
use crate::error::{Error, OpName, Result};
use crate::objects::session_of;
use crate::pool::Pool;
use crate::slot::Expect;

/// Most items that wait (32 bytes each). Beyond it they are dropped and counted; the store gives them up
/// with the session.
const MAX_WAITING: usize = 1 << 20;

/// Objects of one RELEASE.
const RELEASES: usize = 4096;

/// Items taken from the queue at once.
const ROUND: usize = 16 * RELEASES;

/// How long to wait for the store to come back before looking whether the client is to end.
const PATIENCE: Duration = Duration::from_millis(500);

/// What to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Release(u64),
    Abort(u64),
    Unlease { lease: u64, refuse: u32 },
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<(u64, Item)>,
    busy: bool,
    stop: bool,
}

/// The queue, and the thread's work.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
}

impl Client {
    pub(crate) fn defer(&self, session: u64, item: Item) {
        self.inner.deferred.push(session, std::iter::once(item), &self.inner.pool.counters);
    }

    /// Drops pins of a session, in the background: never blocks, however the store is. Does nothing for a
    /// session that is gone, whose pins went with it.
    ///
    /// Pins do not nest, so an object that was released must not be pinned again until
    /// [`Client::flush_deferred`] says that the release is through.
    pub fn release(&self, session: u64, objects: &[u64]) {
        let items = objects.iter().map(|&object| Item::Release(object));
        self.inner.deferred.push(session, items, &self.inner.pool.counters);
    }

    /// Waits until what was given up in the background (pins by [`Client::release`]; dropped
    /// [`PrivateObject`](crate::PrivateObject)s and [`Lease`](crate::Lease)s) has reached the store; whether
    /// it has within `timeout`.
    pub fn flush_deferred(&self, timeout: Duration) -> bool {
        self.inner.deferred.wait_empty(Instant::now() + timeout)
    }
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
        if dropped > 0 && !ended {
            log::warn!("{dropped} pins or private objects are not given up before their session ends");
        }
        self.filled.notify_one();
    }

    fn wait_empty(&self, deadline: Instant) -> bool {
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

    /// The thread's life. When the client ends, one last round is tried.
    pub(crate) fn work(&self, pool: &Pool) {
        loop {
            let (round, stop) = {
                let mut queue = self.queue.lock();
                queue.busy = false;
                if queue.items.is_empty() {
                    self.emptied.notify_all();
                }
                while queue.items.is_empty() && !queue.stop {
                    self.filled.wait(&mut queue);
                }
                if queue.items.is_empty() {
                    return;
                }
                queue.busy = true;
                let n = queue.items.len().min(ROUND);
                (queue.items.drain(..n).collect::<Vec<_>>(), queue.stop)
            };
            let again = give_up(pool, round);
            if stop {
                // The rest goes with the session.
                let mut queue = self.queue.lock();
                Counters::add(&pool.counters.deferred_dropped, (queue.items.len() + again.len()) as u64);
                queue.items.clear();
                queue.busy = false;
                self.emptied.notify_all();
                return;
            }
            if !again.is_empty() {
                let mut queue = self.queue.lock();
                for item in again.into_iter().rev() {
                    queue.items.push_front(item);
                }
                drop(queue);
                // An error here is the reason to wait on.
                let _ = pool.wait_up(Instant::now() + PATIENCE);
            }
        }
    }
}

/// Sends a round; answers what has to be tried again.
fn give_up(pool: &Pool, round: Vec<(u64, Item)>) -> Vec<(u64, Item)> {
    let connection = match pool.pick_extended(OpName::Ext(Op::Release)) {
        Ok(connection) => connection,
        Err(Error::Unsupported(_)) => {
            // Another kind of peer has taken the store's place: the session is gone.
            Counters::add(&pool.counters.deferred_dropped, round.len() as u64);
            return Vec::new();
        }
        Err(_) => return round,
    };
    let session = session_of(&connection);
    let (mine, gone): (Vec<_>, Vec<_>) = round.into_iter().partition(|(s, _)| *s == session);
    Counters::add(&pool.counters.deferred_dropped, gone.len() as u64);
    let deadline = Instant::now() + pool.config.call_timeout;

    let objects: Vec<u64> =
        mine.iter().filter_map(|(_, i)| if let Item::Release(object) = i { Some(*object) } else { None }).collect();
    let mut requests: Vec<(Request<'_>, Vec<Item>)> = objects
        .chunks(RELEASES)
        .map(|c| (Request::Release { objects: c.to_vec() }, c.iter().map(|&o| Item::Release(o)).collect()))
        .collect();
    for (_, item) in &mine {
        match *item {
            Item::Release(_) => {}
            Item::Abort(handle) => requests.push((Request::Abort { handle }, vec![*item])),
            Item::Unlease { lease, refuse } => requests.push((Request::Unlease { lease, refuse }, vec![*item])),
        }
    }
    let sent: Vec<_> = requests
        .into_iter()
        .map(|(request, items)| {
            let ticket = connection.submit(Expect::Ext(request.op()), deadline, |id, out| request.encode(id, out));
            (request.op(), ticket, items)
        })
        .collect();
    let mut again = Vec::new();
    for (op, ticket, items) in sent {
        match finish(pool, &connection, op, ticket, deadline) {
            Ok(()) => Counters::add(&pool.counters.deferred, items.len() as u64),
            Err(why) if why.is_retryable() => again.extend(items.into_iter().map(|i| (session, i))),
            Err(why) => {
                // The store does not know the handle or lease: it has given it up by itself.
                log::debug!("giving up in the background: {why}");
                Counters::add(&pool.counters.deferred_dropped, items.len() as u64);
            }
        }
    }
    again
}

fn finish(pool: &Pool, connection: &Connection, op: Op, ticket: Result<Ticket>, deadline: Instant) -> Result<()> {
    let answer = connection.wait(&ticket?, deadline)?;
    checked(OpName::Ext(op), answer, &pool.counters).map(|_| ())
}
