//! Leases on missing URIs: one client fetches, further clients wait for its commit.
//!
//! | state of a URI | next |
//! |---|---|
//! | no entry | LEASE grants a lease |
//! | held | COMMIT: the waiters get the object; UNLEASE, the end of `hold`, the holder's last connection: the next waiter is granted; UNLEASE with `refuse`: refused |
//! | refused | COMMIT or the end of the time: no entry |
//!
//! One lock guards the table. Outcomes are collected under it and delivered after it is released, because a callback may own a
//! handle of a session. Each waiter gets exactly one outcome, unless it cancels first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::fill::Fill;
use super::object::check_uri;
use super::session::{Session, SessionCore};
use super::{Entry, Token};
use super::{Inner, StoreError};

/// The maximum number of URIs with an entry (held, refused or waited for).
const MAX_LEASES: usize = 1 << 16;
/// The maximum number of leases of one session, so that one client leaves leases for the rest.
const MAX_SHARE: usize = MAX_LEASES / 4;
/// The maximum number of waiting requests of all sessions.
const MAX_WAITERS: usize = 1 << 16;
/// The maximum time that a lease is held, that a refusal lasts, and that a caller waits; longer times are cut to it. So a
/// client that does not come back delays other clients for a bounded time.
const MAX_TIME: Duration = Duration::from_secs(3600);

/// The outcome of a request for a lease.
#[derive(Debug)]
pub enum LeaseOutcome {
    /// The URI has an object.
    Present(Entry),
    /// The caller holds this lease and should fetch the object. A commit or [`Session::unlease`] ends the lease.
    Granted(u64),
    /// A former holder has reported that there is nothing to share. This is the rest of the time for which that holds.
    Refused(Duration),
    /// The waiting time passed without an outcome.
    TimedOut,
    /// The request waits: the callback gets the outcome. The ticket cancels the wait ([`Session::cancel_wait`]).
    Waiting(u64),
}

/// Called once with the outcome, on the thread that causes it, with no lock of the store held. The
/// outcome is never [`LeaseOutcome::Waiting`]; it is the error `UnknownSession` if the session has ended.
pub type LeaseCallback = Box<dyn FnOnce(Result<LeaseOutcome, StoreError>) + Send>;

#[derive(Default)]
pub(crate) struct Leases(Mutex<Table>);

#[derive(Default)]
struct Table {
    uris: HashMap<Arc<[u8]>, State>,
    /// Timers, by their time and a number that makes the key unique.
    timers: BTreeMap<(Instant, u64), Timer>,
    by_lease: HashMap<u64, Arc<[u8]>>,
    by_ticket: HashMap<u64, Arc<[u8]>>,
    by_session: HashMap<Token, Share>,
    last: u64,
}

/// One session's part of the table.
#[derive(Default)]
struct Share {
    leases: HashSet<u64>,
    tickets: HashSet<u64>,
}

#[derive(Default)]
struct State {
    holder: Option<Holder>,
    /// Waiters by ticket. Tickets grow, so that the first waiter is the oldest.
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
    /// Returns the number of held leases.
    pub(crate) fn held(&self) -> usize {
        self.0.lock().by_lease.len()
    }

    /// Returns the time of the next timer.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.lock().timers.keys().next().map(|(at, _)| *at)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Returns true if the session may hold one more lease.
    fn has_share(&self, session: &Token) -> bool {
        self.by_session.get(session).is_none_or(|share| share.leases.len() < MAX_SHARE)
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

    /// Ends the lease and grants it to the next waiter, or refuses all waiters if `refuse` is not zero.
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

/// Returns the instant `after` from now, or [`MAX_TIME`] from now if that is earlier.
fn later(after: Duration) -> Instant {
    Instant::now() + after.min(MAX_TIME)
}

impl Session {
    /// Requests the lease on `uri`, or returns its object. If another client holds the lease, the request waits for up to `wait`
    /// and `callback` gets the outcome; `callback` is dropped unused if this returns anything but `Waiting`. A granted lease
    /// ends after `hold`. Both times are an hour at most. If the store has a [`Filler`](super::Filler), it is asked first, and the
    /// request waits for that, too. The callback may be called before this returns.
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
            // A commit enters the index before it takes the lease table's lock, so this order misses none.
            if inner.index.get(&uri).is_some_and(|o| !o.expired(super::object::now_ms())) {
                continue;
            }
            let filling =
                inner.filling.get().filter(|filling| !wait.is_zero() && table.has_share(&filling.session.token));
            let now = Instant::now();
            if table.uris.len() >= MAX_LEASES && !table.uris.contains_key(&uri) {
                return Err(StoreError::TooMany { what: "leases", limit: MAX_LEASES });
            }
            if !table.has_share(&self.core.token) {
                return Err(StoreError::TooMany { what: "leases of one session", limit: MAX_SHARE });
            }
            let waiting = table.by_ticket.len();
            let state = table.uris.entry(uri.clone()).or_default();
            if let Some(until) = state.refused_until.filter(|until| *until > now) {
                return Ok(LeaseOutcome::Refused(until - now));
            }
            state.refused_until = None;
            let is_free = state.holder.is_none();
            if is_free && (filling.is_none() || waiting >= MAX_WAITERS) {
                return Ok(LeaseOutcome::Granted(table.grant(&uri, self.core.token, hold)));
            }
            if wait.is_zero() {
                return Ok(LeaseOutcome::TimedOut);
            }
            if waiting >= MAX_WAITERS {
                return Err(StoreError::TooMany { what: "waiting lease requests", limit: MAX_WAITERS });
            }
            let filler = filling.filter(|_| is_free).map(|filling| {
                let lease = table.grant(&uri, filling.session.token, hold);
                // Read before the filler is asked: what it reads before a delete is then not published after it.
                let fence = inner.board.fence_of(&uri);
                (&filling.filler, Fill::new(Session::handle(&self.store, &filling.session), lease, uri.clone(), fence))
            });
            let ticket = table.number();
            let until = later(wait);
            let waiter = Waiter { ticket, session: self.core.clone(), pin, hold, until, callback };
            table.timers.insert((until, ticket), Timer::Wait(ticket));
            table.by_ticket.insert(ticket, uri.clone());
            table.by_session.entry(self.core.token).or_default().tickets.insert(ticket);
            table.uris.entry(uri).or_default().waiters.insert(ticket, waiter);
            drop(table);
            inner.wake.notify();
            if let Some((filler, fill)) = filler {
                filler.offer(fill);
            }
            return Ok(LeaseOutcome::Waiting(ticket));
        }
    }

    /// Ends a lease without a commit. The next waiter is granted the lease. If `refuse` is not zero, all requests for the URI are
    /// refused for that time, an hour at most.
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

    /// Cancels a waiting request: its callback is not called. Returns false if the callback was called, or is being
    /// called.
    pub fn cancel_wait(&self, ticket: u64) -> bool {
        // Dropped with the table unlocked: the callback may own a handle of a session.
        let waiter = self.store.inner.leases.0.lock().take_waiter(ticket);
        waiter.is_some()
    }
}

impl Inner {
    /// Ends the lease of `uri` after a commit: its waiters get the object.
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
                // The object is gone again: the caller may fetch it.
                Ok(None) => Ok(LeaseOutcome::TimedOut),
                Err(e) => Err(e),
            };
            (waiter.callback)(outcome);
        }
    }

    /// Ends the leases and the waiting requests of a session that has ended.
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

    /// Ends the leases of a session whose last connection has ended.
    pub(crate) fn lease_session_detached(&self, session: &SessionCore) {
        let mut due = Due::new();
        {
            let mut table = self.leases.0.lock();
            // The client may have come back in the meantime, with new leases.
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

    /// Carries out due timers.
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
