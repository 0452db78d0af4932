//! Leases on missing URIs: one client fetches, the others wait for its commit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::object::{Entry, Token, check_uri};
use super::session::{Session, SessionCore};
use super::{Inner, StoreError};

/// Most leases (held, refused or waited for) that a store keeps.
const MAX_LEASES: usize = 1 << 16;
/// Most leases of one session: one client does not take those of the others.
const MAX_SHARE: usize = MAX_LEASES / 4;
/// Most callers that wait in all.
const MAX_WAITERS: usize = 1 << 16;
/// The longest that a lease is held, that a refusal lasts, and that a caller waits: what is asked for beyond it is cut. A
/// client that does not come back keeps other clients waiting for that long at most.
const MAX_TIME: Duration = Duration::from_secs(3600);

/// What became of a request for a lease.
#[derive(Debug)]
pub enum LeaseOutcome {
    /// There is an object.
    Present(Entry),
    /// The caller is the one to fetch; end it by a commit or [`Session::unlease`].
    Granted(u64),
    /// A former holder said that there is nothing to share, for this much longer.
    Refused(Duration),
    /// The time to wait passed without an outcome.
    TimedOut,
    /// The callback will tell; the ticket cancels it ([`Session::cancel_wait`]).
    Waiting(u64),
}

/// Told once, on whatever thread brings the outcome about, with no lock of the store held. The
/// outcome is never [`LeaseOutcome::Waiting`]; it is `UnknownSession` when the session ended.
pub type LeaseCallback = Box<dyn FnOnce(Result<LeaseOutcome, StoreError>) + Send>;

#[derive(Default)]
pub(crate) struct Leases(Mutex<Table>);

#[derive(Default)]
struct Table {
    uris: HashMap<Arc<[u8]>, State>,
    /// What happens when, by time and a number that makes it unique.
    timers: BTreeMap<(Instant, u64), Timer>,
    by_lease: HashMap<u64, Arc<[u8]>>,
    by_ticket: HashMap<u64, Arc<[u8]>>,
    by_session: HashMap<Token, Share>,
    last: u64,
}

/// What one session has of the table.
#[derive(Default)]
struct Share {
    leases: HashSet<u64>,
    tickets: HashSet<u64>,
}

#[derive(Default)]
struct State {
    holder: Option<Holder>,
    /// By their tickets, which grow: the first one waits the longest.
    waiters: BTreeMap<u64, Waiter>,
    refused_until: Option<Instant>,
}

struct Holder {
    lease: u64,
    session: Token,
    until: Instant,
}

struct Waiter {
    ticket: u64,
    session: Arc<SessionCore>,
    pin: bool,
    hold: Duration,
    until: Instant,
    callback: LeaseCallback,
}

enum Timer {
    Hold(u64),
    Wait(u64),
    Refusal(Arc<[u8]>),
}

/// Outcomes to deliver once the table is unlocked.
type Due = Vec<(LeaseCallback, Result<LeaseOutcome, StoreError>)>;

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leases({})", self.held())
    }
}

impl Leases {
    /// Leases held now.
    pub(crate) fn held(&self) -> usize {
        self.0.lock().by_lease.len()
    }

    /// When the next timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.lock().timers.keys().next().map(|(at, _)| *at)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn grant(&mut self, uri: &Arc<[u8]>, session: Token, hold: Duration) -> u64 {
        let lease = self.number();
        let until = later(hold);
        self.uris.entry(uri.clone()).or_default().holder = Some(Holder { lease, session, until });
        self.by_lease.insert(lease, uri.clone());
        self.by_session.entry(session).or_default().leases.insert(lease);
        self.timers.insert((until, lease), Timer::Hold(lease));
        lease
    }

    /// Ends the lease and grants the next waiter, or refuses all for `refuse`.
    fn end(&mut self, lease: u64, refuse: Duration, due: &mut Due) -> bool {
        let Some(uri) = self.by_lease.remove(&lease) else { return false };
        let Some(state) = self.uris.get_mut(&uri) else { return false };
        if let Some(holder) = state.holder.take() {
            self.timers.remove(&(holder.until, lease));
            self.drop_share(&holder.session, |share| share.leases.remove(&lease));
        }
        let Some(state) = self.uris.get_mut(&uri) else { return false };
        if !refuse.is_zero() {
            let refuse = refuse.min(MAX_TIME);
            let until = later(refuse);
            state.refused_until = Some(until);
            let waiters = std::mem::take(&mut state.waiters);
            for waiter in waiters.into_values() {
                self.forget(&waiter);
                due.push((waiter.callback, Ok(LeaseOutcome::Refused(refuse))));
            }
            let number = self.number();
            self.timers.insert((until, number), Timer::Refusal(uri));
        } else if let Some((_, waiter)) = state.waiters.pop_first() {
            self.forget(&waiter);
            let lease = self.grant(&uri, waiter.session.token, waiter.hold);
            due.push((waiter.callback, Ok(LeaseOutcome::Granted(lease))));
        } else {
            self.tidy(&uri);
        }
        true
    }

    fn forget(&mut self, waiter: &Waiter) {
        self.by_ticket.remove(&waiter.ticket);
        self.timers.remove(&(waiter.until, waiter.ticket));
        self.drop_share(&waiter.session.token, |share| share.tickets.remove(&waiter.ticket));
    }

    fn drop_share(&mut self, session: &Token, remove: impl FnOnce(&mut Share) -> bool) {
        if let Some(share) = self.by_session.get_mut(session) {
            remove(share);
            if share.leases.is_empty() && share.tickets.is_empty() {
                self.by_session.remove(session);
            }
        }
    }

    fn take_waiter(&mut self, ticket: u64) -> Option<Waiter> {
        let uri = self.by_ticket.get(&ticket)?.clone();
        let state = self.uris.get_mut(&uri)?;
        let waiter = state.waiters.remove(&ticket)?;
        self.forget(&waiter);
        self.tidy(&uri);
        Some(waiter)
    }

    fn tidy(&mut self, uri: &Arc<[u8]>) {
        let now = Instant::now();
        if self
            .uris
            .get(uri)
            .is_some_and(|s| s.holder.is_none() && s.waiters.is_empty() && s.refused_until.is_none_or(|t| t <= now))
        {
            self.uris.remove(uri);
        }
    }
}

/// `after` from now, at most [`MAX_TIME`].
fn later(after: Duration) -> Instant {
    Instant::now() + after.min(MAX_TIME)
}

impl Session {
    /// Asks for the lease on `uri` unless there is an object. Waits (by `callback`, which is
    /// dropped unused with any outcome but `Waiting`) up to `wait` for the present holder; a lease
    /// that is granted ends after `hold`. Both are an hour at most.
    pub fn lease(
        &self,
        uri: &[u8],
        wait: Duration,
        hold: Duration,
        pin: bool,
        callback: LeaseCallback,
    ) -> Result<LeaseOutcome, StoreError> {
        check_uri(uri)?;
        let inner = &self.store.inner;
        let uri: Arc<[u8]> = Arc::from(uri);
        inner.lease_timers();
        loop {
            if let Some(entry) = inner.lookup_for(&self.core, &uri, pin)? {
                return Ok(LeaseOutcome::Present(entry));
            }
            let mut table = inner.leases.0.lock();
            if self.is_ended() {
                return Err(StoreError::UnknownSession);
            }
            // A commit enters the index first and comes here second, so this order misses none.
            if inner.index.get(&uri).is_some_and(|o| !o.expired(super::object::now_ms())) {
                continue;
            }
            let now = Instant::now();
            if table.uris.len() >= MAX_LEASES && !table.uris.contains_key(&uri) {
                return Err(StoreError::TooMany { what: "leases", limit: MAX_LEASES });
            }
            if table.by_session.get(&self.core.token).is_some_and(|share| share.leases.len() >= MAX_SHARE) {
                return Err(StoreError::TooMany { what: "leases of one session", limit: MAX_SHARE });
            }
            let waiting = table.by_ticket.len();
            let state = table.uris.entry(uri.clone()).or_default();
            if let Some(until) = state.refused_until.filter(|until| *until > now) {
                return Ok(LeaseOutcome::Refused(until - now));
            }
            state.refused_until = None;
            if state.holder.is_none() {
                return Ok(LeaseOutcome::Granted(table.grant(&uri, self.core.token, hold)));
            }
            if wait.is_zero() {
                return Ok(LeaseOutcome::TimedOut);
            }
            if waiting >= MAX_WAITERS {
                return Err(StoreError::TooMany { what: "waiting lease requests", limit: MAX_WAITERS });
            }
            let ticket = table.number();
            let until = later(wait);
            let waiter = Waiter { ticket, session: self.core.clone(), pin, hold, until, callback };
            table.timers.insert((until, ticket), Timer::Wait(ticket));
            table.by_ticket.insert(ticket, uri.clone());
            table.by_session.entry(self.core.token).or_default().tickets.insert(ticket);
            table.uris.entry(uri).or_default().waiters.insert(ticket, waiter);
            drop(table);
            inner.wake.notify();
            return Ok(LeaseOutcome::Waiting(ticket));
        }
    }

    /// Ends a lease without a commit: the next waiter is granted, or with `refuse` above zero
    /// everybody who asks is refused for that long, an hour at most.
    pub fn unlease(&self, lease: u64, refuse: Duration) -> Result<(), StoreError> {
        let mut due = Due::new();
        let ended = {
            let mut table = self.store.inner.leases.0.lock();
            let uri = table.by_lease.get(&lease).cloned();
            let ours = uri
                .and_then(|uri| table.uris.get(&uri))
                .and_then(|state| state.holder.as_ref())
                .is_some_and(|holder| holder.session == self.core.token);
            ours && table.end(lease, refuse, &mut due)
        };
        self.store.inner.deliver(due);
        if ended { Ok(()) } else { Err(StoreError::UnknownHandle) }
    }

    /// Takes a waiting request back; its callback is not called any more. False if it is being, or
    /// was, called.
    pub fn cancel_wait(&self, ticket: u64) -> bool {
        // Dropped with the table unlocked: the callback may own a handle of a session.
        let waiter = self.store.inner.leases.0.lock().take_waiter(ticket);
        waiter.is_some()
    }
}

impl Inner {
    /// A commit for `uri`: its lease ends, its waiters get the object.
    pub(crate) fn lease_committed(&self, uri: &[u8]) {
        let waiters = {
            let mut table = self.leases.0.lock();
            let Some((uri, state)) = table.uris.remove_entry(uri) else { return };
            if let Some(holder) = state.holder {
                table.by_lease.remove(&holder.lease);
                table.timers.remove(&(holder.until, holder.lease));
                table.drop_share(&holder.session, |share| share.leases.remove(&holder.lease));
            }
            for waiter in state.waiters.values() {
                table.forget(waiter);
            }
            drop(uri);
            state.waiters
        };
        for waiter in waiters.into_values() {
            let outcome = match self.lookup_for(&waiter.session, uri, waiter.pin) {
                Ok(Some(entry)) => Ok(LeaseOutcome::Present(entry)),
                // Gone again already: the caller may as well fetch.
                Ok(None) => Ok(LeaseOutcome::TimedOut),
                Err(e) => Err(e),
            };
            (waiter.callback)(outcome);
        }
    }

    /// Gives up what a session held and asked for.
    pub(crate) fn lease_session_ended(&self, session: &Token) {
        let mut due = Due::new();
        {
            let mut table = self.leases.0.lock();
            let Some(Share { leases, tickets }) = table.by_session.remove(session) else { return };
            for ticket in tickets {
                if let Some(waiter) = table.take_waiter(ticket) {
                    due.push((waiter.callback, Err(StoreError::UnknownSession)));
                }
            }
            for lease in leases {
                table.end(lease, Duration::ZERO, &mut due);
            }
        }
        self.deliver(due);
    }

    /// Gives up the leases of a session whose last connection has ended.
    pub(crate) fn lease_session_detached(&self, session: &SessionCore) {
        let mut due = Due::new();
        {
            let mut table = self.leases.0.lock();
            // A client that has come back meanwhile may hold new ones.
            if session.state.lock().attached > 0 {
                return;
            }
            let Some(share) = table.by_session.get(&session.token) else { return };
            for lease in share.leases.iter().copied().collect::<Vec<_>>() {
                table.end(lease, Duration::ZERO, &mut due);
            }
        }
        self.deliver(due);
    }

    /// Carries out the timers that are due.
    pub(crate) fn lease_timers(&self) {
        let mut due = Due::new();
        {
            let mut table = self.leases.0.lock();
            let now = Instant::now();
            while let Some(first) = table.timers.first_entry() {
                if first.key().0 > now {
                    break;
                }
                match first.remove() {
                    Timer::Hold(lease) => {
                        table.end(lease, Duration::ZERO, &mut due);
                    }
                    Timer::Wait(ticket) => {
                        if let Some(waiter) = table.take_waiter(ticket) {
                            due.push((waiter.callback, Ok(LeaseOutcome::TimedOut)));
                        }
                    }
                    Timer::Refusal(uri) => table.tidy(&uri),
                }
            }
        }
        self.deliver(due);
    }

    fn deliver(&self, due: Due) {
        if !due.is_empty() {
            self.wake.notify(); // a waiter that was granted brings a new timer
        }
        for (callback, outcome) in due {
            callback(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut() {
        let now = Instant::now();
        let days = Duration::from_secs(49 * 86_400);
        assert!(later(days) <= Instant::now() + MAX_TIME);
        assert!(later(Duration::from_secs(60)) >= now + Duration::from_secs(60));
    }
}
