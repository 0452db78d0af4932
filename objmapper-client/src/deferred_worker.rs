//! The thread `objm-deferred`, which gives back pins, leases, private objects and what unread replies gave.
//!
//! It takes items from the queue `deferred`, sends them in one pipeline, and puts those back whose request failed in a retryable
//! way. LOST is sent first. Items of another session are dropped: they ended with it.

use std::time::{Duration, Instant};

use objmapper_proto::ext::{Op, Request};

use crate::answer::Expect;
use crate::connection::{Connection, Ticket};
use crate::counters::Counters;
use crate::deferred::{Deferred, Item};
use crate::error::{Error, OpName, Result};
use crate::pool::Pool;

/// Maximum number of objects of one RELEASE.
const MAX_RELEASES: usize = 4096;

/// Maximum number of items taken from the queue at once.
const MAX_ITEMS: usize = 16 * MAX_RELEASES;

/// The time to wait for a connection before the thread checks if the client is ending.
const RECONNECT_WAIT: Duration = Duration::from_millis(500);

/// Runs the thread until the client ends. Then the remaining items are sent once more.
pub(crate) fn run(deferred: &Deferred, pool: &Pool) {
    while let Some((round, last)) = deferred.take(MAX_ITEMS) {
        let again = send(pool, round);
        let wait = !again.is_empty();
        deferred.put_back(again);
        if last {
            deferred.drop_rest(&pool.counters);
            return;
        }
        if wait {
            // An error means that there is still no connection; the loop waits again.
            let _ = pool.wait_up(Instant::now() + RECONNECT_WAIT);
        }
    }
}

/// Sends items, and returns those that have to be tried again.
fn send(pool: &Pool, round: Vec<(u64, Item)>) -> Vec<(u64, Item)> {
    let connection = match pool.pick_extended(OpName::Ext(Op::Release)) {
        Ok(connection) => connection,
        Err(Error::Unsupported(_)) => {
            // A peer without extensions has taken the store's place: the session is gone.
            let items: Vec<Item> = round.into_iter().map(|(_, item)| item).collect();
            Counters::add(&pool.counters.deferred_dropped, held(&items));
            return Vec::new();
        }
        Err(_) => return round,
    };
    let session = connection.session_id();
    let (mine, gone): (Vec<_>, Vec<_>) = round.into_iter().partition(|(s, _)| *s == session);
    let gone: Vec<Item> = gone.into_iter().map(|(_, item)| item).collect();
    Counters::add(&pool.counters.deferred_dropped, held(&gone));
    let deadline = Instant::now() + pool.config.call_timeout;

    let objects: Vec<u64> =
        mine.iter().filter_map(|(_, i)| if let Item::Release(object) = i { Some(*object) } else { None }).collect();
    // Lost connections first: after LOST no request of them is carried out, so none follows the requests below.
    let mut requests: Vec<(Request<'_>, Vec<Item>)> = Vec::new();
    for (_, item) in &mine {
        if let Item::Lost { connection, read } = *item {
            requests.push((Request::Lost { connection, read }, vec![*item]));
        }
    }
    for chunk in objects.chunks(MAX_RELEASES) {
        let items = chunk.iter().map(|&object| Item::Release(object)).collect();
        requests.push((Request::Release { objects: chunk.to_vec() }, items));
    }
    for (_, item) in &mine {
        match *item {
            Item::Release(_) | Item::Lost { .. } => {}
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
            Ok(()) => Counters::add(&pool.counters.deferred, held(&items)),
            Err(why) if why.is_retryable() => again.extend(items.into_iter().map(|i| (session, i))),
            Err(why) => {
                // The store does not know the handle or lease: it has ended by itself.
                log::debug!("giving back in the background: {why}");
                Counters::add(&pool.counters.deferred_dropped, held(&items));
            }
        }
    }
    again
}

/// Returns how many of the items were held by the caller.
fn held(items: &[Item]) -> u64 {
    items.iter().filter(|item| !matches!(item, Item::Lost { .. })).count() as u64
}

fn finish(pool: &Pool, connection: &Connection, op: Op, ticket: Result<Ticket>, deadline: Instant) -> Result<()> {
    let answer = connection.wait(&ticket?, deadline)?;
    answer.checked(OpName::Ext(op), &pool.counters).map(|_| ())
}
