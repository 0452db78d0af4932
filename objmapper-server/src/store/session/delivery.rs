//! What a reply gives its client, from the reply's making until it is known to be read.
//!
//! A reply can give its client a [`Grant`]: a lease, a private object, a pin. A reply that the client never reads (its
//! deadline has passed, the connection was cut) would leave that held for as long as the session lives. The client alone
//! knows how many replies it has read; it says so with LOST once a connection has ended (EXTENSIONS.md). So each connection has a
//! [`Delivery`], which records what its replies gave for as long as they may be unread.
//!
//! | event | what the replies gave |
//! |---|---|
//! | a reply cannot be sent | a lease and a private object are taken back at once (`net::handover`); a pin, which may be another reply's, too, stays |
//! | request n arrives on a pipeline of depth d | replies up to n - d have been read: it is the client's |
//! | LOST with r replies read | up to r it is the client's, beyond it is given back; nothing more is carried out |
//! | the connection ends without LOST | it stays recorded until LOST or the session's end |
//! | the session ends | it goes with the session |
//!
//! A delivery's lock is held while a request is carried out and its reply recorded, so that LOST finds all of a request or
//! nothing of it. It is taken before every other lock of the store, and a thread never holds two of them.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::Session;
use super::pin::Claim;
use crate::store::StoreError;
use crate::store::object::ObjectId;

/// The maximum number of ended connections whose deliveries a session keeps for LOST. Beyond it the replies of the oldest
/// count as read.
const MAX_ENDED: usize = 64;

/// What a reply gave to its client, in the session of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// A lease, by its number.
    Lease(u64),
    /// A private object, by its handle.
    Private(u64),
    /// A pin of this object.
    Pin(ObjectId),
}

/// The record of one connection's replies; see the module.
#[derive(Debug)]
pub struct Delivery {
    number: u64,
    depth: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// True once LOST has named the connection.
    closed: bool,
    /// True once the connection has ended.
    ended: bool,
    requests: u64,
    replies: u64,
    /// Grants of replies that may be unread, each with its reply's number, in that order: those of at most `depth` replies.
    unread: VecDeque<(u64, Grant)>,
}

/// A request that is being carried out: it holds the delivery's lock. Dropping it without [`RequestGuard::replied`] records
/// nothing.
pub struct RequestGuard<'a> {
    delivery: &'a Delivery,
    state: MutexGuard<'a, State>,
}

impl Delivery {
    /// Returns the connection's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Notes that a request has arrived, and with it which replies have been read. Returns `None` if LOST has named the
    /// connection: the request must not be carried out.
    pub fn request(&self, session: &Session) -> Option<RequestGuard<'_>> {
        let mut state = self.state.lock();
        state.requests += 1;
        let read = state.requests.saturating_sub(self.depth);
        self.confirm(&mut state, session, read);
        (!state.closed).then_some(RequestGuard { delivery: self, state })
    }

    /// Locks the delivery for the outcome of a request that waited. Returns `None` as [`Self::request`] does.
    pub fn outcome(&self) -> Option<RequestGuard<'_>> {
        let state = self.state.lock();
        (!state.closed).then_some(RequestGuard { delivery: self, state })
    }

    /// Notes that the client has read the first `read` replies: it keeps what they gave.
    fn confirm(&self, state: &mut State, session: &Session, read: u64) {
        while let Some(&(reply, grant)) = state.unread.front()
            && reply <= read
        {
            state.unread.pop_front();
            if let Grant::Pin(object) = grant {
                session.core.keep_pin(object, (self.number, reply));
            }
        }
    }
}

impl RequestGuard<'_> {
    /// Records a reply that gives `grants`. Returns false, and records nothing, if another connection has given back one of the
    /// pins in the meantime; the caller must carry the request out again or refuse it.
    #[must_use]
    pub fn replied(&mut self, session: &Session, grants: &[Grant]) -> bool {
        let reply = self.state.replies + 1;
        let claim = (self.delivery.number, reply);
        for (at, grant) in grants.iter().enumerate() {
            if let Grant::Pin(object) = grant
                && !session.core.claim_pin(*object, claim)
            {
                for grant in &grants[..at] {
                    if let Grant::Pin(object) = grant {
                        session.drop_claim(*object, claim);
                    }
                }
                return false;
            }
        }
        self.state.replies = reply;
        self.state.unread.extend(grants.iter().map(|grant| (reply, *grant)));
        true
    }
}

/// Makes a number for a connection. Numbers are random, so that one of a former process does not match here: a session of the
/// disk tier survives the process.
fn number() -> u64 {
    static MADE: AtomicU64 = AtomicU64::new(0);
    RandomState::new().hash_one(MADE.fetch_add(1, Relaxed)).max(1)
}

impl Session {
    /// Takes back a grant that no reply has reported, or will report.
    pub fn withdraw(&self, grant: Grant) {
        // Replies are numbered from 1, so no reply has this claim.
        self.take_back(grant, (0, 0));
    }

    /// Takes a grant back. For a pin, only the claim of one reply goes.
    pub(super) fn take_back(&self, grant: Grant, claim: Claim) {
        let taken_back = match grant {
            Grant::Lease(lease) => self.unlease(lease, Duration::ZERO),
            Grant::Private(handle) => self.abort(handle),
            Grant::Pin(object) => {
                self.drop_claim(object, claim);
                Ok(())
            }
        };
        match taken_back {
            // The grant has ended by itself, or with its session.
            Ok(()) | Err(StoreError::UnknownHandle | StoreError::UnknownSession) => {}
            Err(e) => log::error!("taking back what a reply granted: {e}"),
        }
    }

    /// Begins to record what the replies on a connection of this session give. `depth` is the depth of its pipeline.
    pub fn begin_delivery(&self, depth: u16) -> Arc<Delivery> {
        let delivery = Arc::new(Delivery { number: number(), depth: depth.into(), state: Mutex::default() });
        let mut state = self.core.state.lock();
        state.counted = true;
        state.deliveries.push_back(delivery.clone());
        drop(state);
        delivery
    }

    /// Notes that the connection has ended. What its replies gave stays until LOST or the session's end.
    pub fn end_delivery(&self, delivery: &Delivery) {
        let idle = {
            let mut state = delivery.state.lock();
            state.ended = true;
            state.closed || state.unread.is_empty()
        };
        let surplus = {
            let mut state = self.core.state.lock();
            if idle {
                state.deliveries.retain(|d| d.number != delivery.number);
            }
            (state.deliveries.len() > MAX_ENDED + state.attached).then(|| state.deliveries.clone())
        };
        let oldest = surplus.and_then(|all| all.into_iter().find(|d| d.state.lock().ended));
        if let Some(oldest) = oldest {
            let mut state = oldest.state.lock();
            oldest.confirm(&mut state, self, u64::MAX);
            drop(state);
            self.core.state.lock().deliveries.retain(|d| d.number != oldest.number);
        }
    }

    /// Carries out LOST: the client has read `read` replies and abandoned the connection. What later replies gave is taken back,
    /// and no further request of that connection is carried out. Does nothing for a connection of another session, and for one
    /// that LOST has named before.
    pub fn connection_lost(&self, connection: u64, read: u64) {
        let delivery = {
            let mut state = self.core.state.lock();
            let at = state.deliveries.iter().position(|d| d.number == connection);
            at.and_then(|at| state.deliveries.remove(at))
        };
        let Some(delivery) = delivery else { return };
        let unread = {
            let mut state = delivery.state.lock();
            state.closed = true;
            delivery.confirm(&mut state, self, read);
            std::mem::take(&mut state.unread)
        };
        for (reply, grant) in unread {
            self.take_back(grant, (connection, reply));
        }
    }
}
