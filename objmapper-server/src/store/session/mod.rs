//! Sessions: the state that one client's connections share (private objects, pins, ephemeral
//! objects, leases).
//!
//! | state | what ends it |
//! |---|---|
//! | attached | the last [`Session`] handle is dropped: its leases end |
//! | detached | a client attaches with the token; or the grace time passes: ended |
//! | ended, also by [`Session::end`] | nothing: private objects are aborted, ephemeral ones deleted, pins dropped |
//!
//! The session's lock guards its tables. The work on the objects of an ended session is done after the lock is released.

mod delivery;
mod pin;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use delivery::{Delivery, Grant, RequestGuard};
pub(super) use pin::Pin;

use super::object::{Object, ObjectId, check_uri};
use super::publication::{Commit, Private, PrivateObject};
use super::tier::journal::Op;
use super::{Entry, Inner, Store, StoreError, TierKind, Token};

/// The time that a session lives without a connection if its client may not have received its token.
const UNUSED_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct SessionCore {
    pub(crate) token: Token,
    pub(crate) state: Mutex<SessionState>,
}

#[derive(Debug, Default)]
pub(crate) struct SessionState {
    pub(super) ended: bool,
    /// Live [`Session`] handles (connections).
    pub(super) attached: usize,
    /// The time at which the last handle was dropped: the beginning of the grace time.
    pub(super) detached_at: Option<Instant>,
    pub(super) pins: HashMap<ObjectId, Pin>,
    pub(super) ephemeral: HashMap<ObjectId, Arc<Object>>,
    pub(super) privates: HashMap<u64, Arc<Private>>,
    /// The deliveries of its connections, and of ended ones whose last replies may be unread; oldest first.
    pub(super) deliveries: VecDeque<Arc<Delivery>>,
    /// True once the client is known to have the token: it has sent a request in the session, or attached with the token.
    used: bool,
    /// True if the client counts replies: a pin without a claim that is not kept is then known to be unwanted.
    pub(super) counted: bool,
}

/// A handle of a session. When the last one is dropped, its leases end, because a client that is not connected
/// cannot publish. The rest of the session lives for the store's grace time, so that the client can attach again with the
/// token.
#[derive(Debug)]
pub struct Session {
    pub(super) store: Store,
    pub(super) core: Arc<SessionCore>,
}

impl Clone for Session {
    fn clone(&self) -> Self {
        Session::handle(&self.store, &self.core)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        {
            let mut state = self.core.state.lock();
            state.attached = state.attached.saturating_sub(1);
            if state.attached > 0 {
                return;
            }
            state.detached_at = Some(Instant::now());
        }
        self.store.inner.lease_session_detached(&self.core);
    }
}

impl Session {
    /// Returns the session's token, by which a client attaches again.
    pub fn token(&self) -> Token {
        self.core.token
    }

    /// Returns the session's store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Creates a private object with `length` bytes reserved (0 if the length is unknown).
    /// With `uri`, a delete of that URI from now on makes the commit a conflict.
    pub fn create(&self, tier: Option<TierKind>, length: u64, uri: Option<&[u8]>) -> Result<PrivateObject, StoreError> {
        let (private, file) = self.store.inner.create_private(tier, length, uri)?;
        {
            let mut state = self.core.state.lock();
            if !state.ended {
                state.privates.insert(private.handle, private.clone());
                return Ok(PrivateObject::new(self.clone_locked(&mut state), private, file));
            }
        }
        self.store.inner.abort_private(&private);
        Err(StoreError::UnknownSession)
    }

    /// Drops the handle and leaves the session attached, for a session that lives as long as the store.
    pub(super) fn into_attached(self) {
        self.core.state.lock().attached += 1;
    }

    /// Returns another handle of a session of `store`.
    pub(super) fn handle(store: &Store, core: &Arc<SessionCore>) -> Session {
        core.state.lock().attached += 1;
        Session { store: store.clone(), core: core.clone() }
    }

    fn clone_locked(&self, state: &mut SessionState) -> Session {
        state.attached += 1;
        Session { store: self.store.clone(), core: self.core.clone() }
    }

    fn private(&self, handle: u64) -> Result<Arc<Private>, StoreError> {
        let state = self.core.state.lock();
        if state.ended {
            return Err(StoreError::UnknownSession);
        }
        state.privates.get(&handle).cloned().ok_or(StoreError::UnknownHandle)
    }

    /// Sets a private object's reservation to `total` bytes, up or down.
    pub fn reserve(&self, handle: u64, total: u64) -> Result<(), StoreError> {
        self.store.inner.resize_private(&*self.private(handle)?, total)
    }

    /// Publishes a private object by its handle, as [`PrivateObject::commit`] does.
    pub fn commit(&self, handle: u64, commit: Commit<'_>) -> Result<Entry, StoreError> {
        let private = self.private(handle)?;
        self.store.inner.commit(&self.core, &private, commit)
    }

    /// Publishes as [`Session::commit`] does, and returns a read-only descriptor of the body, even if the
    /// object is replaced at once.
    pub fn commit_open(&self, handle: u64, commit: Commit<'_>) -> Result<(Entry, OwnedFd), StoreError> {
        let private = self.private(handle)?;
        let file = private.reader.try_clone().map_err(StoreError::io("duplicating a descriptor"))?;
        Ok((self.store.inner.commit(&self.core, &private, commit)?, file))
    }

    /// Returns the number of the session's private objects.
    pub fn private_objects(&self) -> usize {
        self.core.state.lock().privates.len()
    }

    /// Aborts a private object.
    pub fn abort(&self, handle: u64) -> Result<(), StoreError> {
        let private = self.private(handle)?;
        self.core.state.lock().privates.remove(&handle);
        self.store.inner.abort_private(&private);
        Ok(())
    }

    /// Looks up the object of `uri`. With `pin`, its file stays until [`Session::release`] or the session's end, whatever happens
    /// to the URI.
    pub fn lookup(&self, uri: &[u8], pin: bool) -> Result<Option<Entry>, StoreError> {
        check_uri(uri)?;
        self.store.inner.lookup_for(&self.core, uri, pin)
    }

    /// Looks up as [`Session::lookup`] does, and opens the body read-only.
    pub fn open(&self, uri: &[u8], pin: bool) -> Result<Option<(Entry, OwnedFd)>, StoreError> {
        check_uri(uri)?;
        self.store.inner.open_for(Some(&self.core), uri, pin)
    }

    /// Drops pins. Ephemeral objects without their pin are deleted; unknown ids are ignored.
    pub fn release(&self, objects: &[ObjectId]) {
        let dropped: Vec<_> = {
            let mut state = self.core.state.lock();
            objects.iter().filter_map(|id| state.pins.remove(id)).collect()
        };
        for pin in &dropped {
            self.released(&pin.object);
        }
    }

    /// Completes the release of a pin that was taken out of the session.
    pub(super) fn released(&self, object: &Arc<Object>) {
        object.tier.record_later(Op::Unpin(self.core.token, object.id));
        self.store.inner.unpin(object);
    }

    /// Notes that the client has sent a request in the session.
    pub fn mark_used(&self) {
        self.core.state.lock().used = true;
    }

    /// Ends the session: aborts its private objects, deletes its ephemeral ones, drops its pins,
    /// ends its leases. Calls by other handles then fail with `UnknownSession`.
    pub fn end(self) {
        self.store.inner.end_session(&self.core);
    }

    pub(super) fn is_ended(&self) -> bool {
        self.core.state.lock().ended
    }
}

impl Inner {
    pub(crate) fn attach(&self, store: &Store, token: Option<Token>) -> Result<Session, StoreError> {
        let known = token.is_some();
        let core = match token {
            Some(token) => self.sessions.lock().get(&token).cloned().ok_or(StoreError::UnknownSession)?,
            None => self.new_session()?,
        };
        {
            let mut state = core.state.lock();
            if state.ended {
                return Err(StoreError::UnknownSession);
            }
            state.attached += 1;
            state.detached_at = None;
            state.used |= known;
        }
        Ok(Session { store: store.clone(), core })
    }

    fn new_session(&self) -> Result<Arc<SessionCore>, StoreError> {
        if self.sessions.lock().len() >= self.max_sessions {
            return Err(StoreError::TooMany { what: "sessions", limit: self.max_sessions });
        }
        let token = random_token()?;
        for tier in self.tiers.persistent() {
            if let Err(e) = self.with_space(tier, || tier.record(vec![Op::SessionBegin(token)])) {
                self.diagnostics.note_unsaved(&"a session", &e);
            }
        }
        Ok(self.add_session(token, false))
    }

    /// Enters a session without handles: a new one, or one of a former run.
    pub(crate) fn add_session(&self, token: Token, used: bool) -> Arc<SessionCore> {
        let state = SessionState { detached_at: Some(Instant::now()), used, ..SessionState::default() };
        let core = Arc::new(SessionCore { token, state: Mutex::new(state) });
        self.sessions.lock().insert(token, core.clone());
        core
    }

    pub(crate) fn end_session(&self, core: &Arc<SessionCore>) {
        let (pins, ephemeral, privates) = {
            let mut state = core.state.lock();
            if std::mem::replace(&mut state.ended, true) {
                return;
            }
            state.deliveries.clear();
            (std::mem::take(&mut state.pins), std::mem::take(&mut state.ephemeral), std::mem::take(&mut state.privates))
        };
        self.sessions.lock().remove(&core.token);
        self.lease_session_ended(&core.token);
        for private in privates.values() {
            self.abort_private(private);
        }
        self.tiers.persistent().for_each(|tier| tier.record_later(Op::SessionEnd(core.token)));
        for object in ephemeral.values() {
            self.discard(object);
        }
        for pin in pins.values() {
            self.unpin(&pin.object);
        }
        self.tiers.persistent().for_each(|tier| tier.flush());
    }

    /// Ends the sessions whose grace time has passed.
    pub(crate) fn end_abandoned_sessions(&self) {
        let abandoned: Vec<_> = self
            .sessions
            .lock()
            .values()
            .filter(|core| {
                let state = core.state.lock();
                let grace = if state.used { self.session_grace } else { self.session_grace.min(UNUSED_GRACE) };
                state.attached == 0 && state.detached_at.is_some_and(|at| at.elapsed() >= grace)
            })
            .cloned()
            .collect();
        for core in abandoned {
            self.end_session(&core);
        }
    }
}

pub(crate) fn random_token() -> Result<Token, StoreError> {
    let mut token = Token::default();
    getrandom::fill(&mut token.0)
        .map_err(|e| StoreError::io("random numbers")(std::io::Error::other(e.to_string())))?;
    Ok(token)
}
