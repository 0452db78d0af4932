//! Filling: the store's own process answers a missing URI, before a client is asked to.
//!
//! This is the seam for a tier that is not on this machine. A client's LEASE for a missing URI that nothing holds goes to the
//! [`Filler`], if the store has one, and the client waits as it waits for another client's fetch. It gets what the filler
//! publishes, or the lease, if the filler has nothing.
//!
//! | the filler | the waiting clients get |
//! |---|---|
//! | [`Fill::begin`], writes, [`Fill::commit`] | the object |
//! | drops the [`Fill`] | the lease, the first of them |
//! | [`Fill::refuse`] | a refusal for that time |
//! | takes longer than the client's `hold` | the lease, the first of them; a commit may still follow |
//!
//! The board's fence is read before the filler is asked: what it reads before a DELETE is not published after it. Look-ups know
//! nothing of this, and a LEASE without waiting time goes to its client.

use std::sync::Arc;
use std::time::Duration;

use super::publication::{Commit, PrivateObject};
use super::session::{Session, SessionCore};
use super::{Entry, Fence, Store, StoreError};

/// Fills URIs that a client has leased.
pub trait Filler: Send + Sync {
    /// Is offered a missing URI. Called on a thread that serves clients, with no lock of the store held: it must not wait. What
    /// takes time is done on a thread of the filler's, to which the `Fill` is moved. A filler does not hold a handle of the
    /// store, except in a `Fill`.
    fn offer(&self, fill: Fill);
}

/// A store's filler, and the session that holds its leases.
pub(super) struct Filling {
    pub(super) filler: Arc<dyn Filler>,
    pub(super) session: Arc<SessionCore>,
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Filling")
    }
}

/// The lease on a missing URI, held by a filler. Dropping it gives the lease to the next waiter.
#[derive(Debug)]
pub struct Fill {
    session: Session,
    lease: u64,
    uri: Arc<[u8]>,
    fence: Fence,
}

impl Fill {
    pub(super) fn new(session: Session, lease: u64, uri: Arc<[u8]>, fence: Fence) -> Self {
        Fill { session, lease, uri, fence }
    }

    /// Returns the URI.
    pub fn uri(&self) -> &[u8] {
        &self.uri
    }

    /// Begins the body, with `length` bytes reserved (0 if the length is unknown). It is written to [`PrivateObject::file`].
    pub fn begin(&self, length: u64) -> Result<PrivateObject, StoreError> {
        self.session.create(None, length, Some(&self.uri))
    }

    /// Publishes the body: the waiting clients get it. `expires` is as in [`Commit::expires`]. After an error the lease goes to the
    /// next waiter; [`StoreError::Conflict`] means that something was deleted, or published, since the filler was asked.
    pub fn commit(self, mut body: PrivateObject, length: u64, expires: i64) -> Result<Entry, StoreError> {
        // What a client has published meanwhile is newer.
        body.commit(Commit { expires, if_version: 0, fence: Some(self.fence), ..Commit::new(&self.uri, length) })
    }

    /// Reports that there is nothing to share: LEASE of the URI is refused for that time, an hour at most.
    pub fn refuse(self, time: Duration) {
        // Unknown means that the lease has ended by itself.
        let _ = self.session.unlease(self.lease, time);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        // Unknown means that it was committed or refused, or that the lease has ended by itself.
        let _ = self.session.unlease(self.lease, Duration::ZERO);
    }
}

impl Store {
    /// Sets what fills missing URIs, once per store.
    pub fn set_filler(&self, filler: Arc<dyn Filler>) -> Result<(), StoreError> {
        let session = self.session(None)?;
        let filling = Filling { filler, session: session.core.clone() };
        let twice = || StoreError::Setup("the store has a filler already; remedy: set it once".into());
        self.inner.filling.set(filling).map_err(|_| twice())?;
        // The session stays attached for as long as the store: its handle would keep the store open.
        session.into_attached();
        Ok(())
    }
}
