//! Publication: a private object becomes the object of a URI. Removal, private objects, ids, and v0.1's way to publish are beside
//! it.
//!
//! The index in memory changes under the shard's `publish` lock only. A commit gives the file its name first, then commits the row
//! in the tier's journal, then enters the object. So a look-up finds complete objects only, and a crash between the steps leaves
//! a file without a row, which the next start removes.

mod foreign;
mod ids;
mod private;
mod removal;
mod writers;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;

pub(super) use ids::{ID_BLOCK, Ids};
#[cfg(feature = "daemon")]
pub(crate) use private::OutgoingWriter;
pub(super) use private::Private;
pub use private::{Commit, PrivateObject};
pub(super) use removal::Deletion;
pub(super) use writers::{GivenUp, MEASURE_INTERVAL};

use super::index::Shard;
use super::object::{ANY_VERSION, Object, ObjectState, check_uri, now_ms};
use super::session::SessionCore;
use super::tier::journal::Op;
use super::tier::{BodyFiles, Medium, Tier};
use super::{Entry, Inner, StoreError, Token};
use crate::sys;

impl Inner {
    /// Publishes a private object. Success closes the object, and so does a conflict of a commit without
    /// a fence.
    pub(crate) fn commit(
        &self,
        session: &Arc<SessionCore>,
        private: &Private,
        commit: Commit<'_>,
    ) -> Result<Entry, StoreError> {
        check_uri(commit.uri)?;
        let mut state = private.state.lock();
        if !state.open {
            return Err(StoreError::UnknownHandle);
        }
        let tier = &private.tier;
        let file = private.reader.as_fd();
        // First: after the server's own copy is closed, any writer is the client's.
        if private.outgoing.is_pending() {
            return Err(StoreError::Busy);
        }
        if !sys::has_no_writers(file).map_err(StoreError::io("asking for a lease"))? {
            return Err(StoreError::Busy);
        }
        // Measured after the last writer is gone, so it is final.
        let measure = tier.files.measure(file).map_err(StoreError::io("fstat"))?;
        if measure.length != commit.length {
            return Err(StoreError::Invalid(format!(
                "the commit says {} bytes, the file has {}",
                commit.length, measure.length
            )));
        }
        if tier.files.medium == Medium::Tmpfs
            && let Some(hole) = BodyFiles::hole(file, measure.length).map_err(StoreError::io("looking for holes"))?
        {
            return Err(StoreError::Invalid(format!(
                "the file has a hole: nothing was written at byte {hole} of {}; write all bytes of a body",
                measure.length
            )));
        }
        if measure.charge > state.reserved {
            self.reserve(tier, measure.charge - state.reserved)?;
            state.reserved = measure.charge;
        }
        let outcome = self.with_space(tier, || self.publish(session, private, tier, measure.charge, commit));
        match &outcome {
            Ok(_) => {
                // The published object has taken its charge over; the rest is freed.
                state.reserved -= measure.charge;
                self.close_private(private, &mut state);
            }
            Err(StoreError::Conflict(_)) if commit.fence.is_none() => self.close_private(private, &mut state),
            Err(_) => return outcome.map(|o| o.entry(false)),
        }
        drop(state);
        session.state.lock().privates.remove(&private.handle);
        let object = outcome?;
        if commit.pin || commit.ephemeral {
            self.adopt(session, &object, commit.pin);
        }
        self.lease_committed(&object.uri);
        Ok(object.entry(commit.pin))
    }

    fn publish(
        &self,
        session: &Arc<SessionCore>,
        private: &Private,
        tier: &Arc<Tier>,
        charge: u64,
        commit: Commit<'_>,
    ) -> Result<Arc<Object>, StoreError> {
        // Held until the object is visible: a delete that moves the fence in the meantime waits, and then finds the object.
        let _passed = match commit.fence {
            None => None,
            Some(fence) => {
                Some(self.board.pass(fence).ok_or(StoreError::Conflict("the fence has moved: something was deleted"))?)
            }
        };
        let shard = self.index.shard(commit.uri);
        let now = now_ms();
        let (object, old) = {
            let _publishing = shard.publish.lock();
            if private.uri_deleted.load(SeqCst) {
                return Err(StoreError::Conflict("the URI was deleted after the object was created"));
            }
            let current = shard.map.read().get(commit.uri).cloned();
            let version = current.as_ref().filter(|c| !c.expired(now)).map_or(0, |c| c.id);
            if commit.if_version != ANY_VERSION && commit.if_version != version {
                return Err(StoreError::Conflict("the object's version is another"));
            }
            let object = Arc::new(Object {
                id: self.link_new(tier, private.reader.as_fd())?,
                uri: Arc::from(commit.uri),
                tier: tier.clone(),
                length: AtomicU64::new(commit.length),
                charge: AtomicU64::new(charge),
                mtime: now,
                expires: commit.expires.max(0),
                ephemeral: commit.ephemeral.then_some(session.token),
                foreign: false,
                growing: AtomicBool::new(false),
                state: Mutex::new(ObjectState { pins: u32::from(commit.pin), listed: true }),
            });
            self.record(&object, commit.pin.then_some(session.token), current.as_deref()).inspect_err(|_| {
                let _ = tier.files.unlink(object.id);
            })?;
            let old = self.enter(shard, &object);
            (object, old)
        };
        if let Some(old) = old {
            self.replaced(&old);
        }
        Ok(object)
    }

    /// Writes the changes of the journals for a new object: its row, and the removal of the replaced object's URI. Where both are
    /// in one journal, they are one transaction.
    pub(super) fn record(
        &self,
        object: &Object,
        pinned_by: Option<Token>,
        current: Option<&Object>,
    ) -> Result<(), StoreError> {
        let (here, elsewhere) = match current {
            Some(current) if Arc::ptr_eq(&current.tier, &object.tier) => (Some(current.id), None),
            current => (None, current),
        };
        if object.tier.is_persistent() {
            object.tier.note_unsynced();
            object.tier.record(vec![Op::Insert { row: object.row(), pinned_by, replaces: here }])?;
        }
        // Afterwards: of two objects of one URI a start takes the newer one.
        elsewhere.map_or(Ok(()), |current| current.tier.record(vec![Op::Unlist(current.id)]))
    }

    /// Enters a new object into the index. Returns the replaced object, unlisted.
    pub(super) fn enter(&self, shard: &Shard, object: &Arc<Object>) -> Option<Arc<Object>> {
        let pinned = object.state.lock().pins > 0;
        let tier = &object.tier;
        tier.account.objects.fetch_add(1, Relaxed);
        if pinned {
            tier.account.pinned.fetch_add(object.charge(), Relaxed);
        }
        if object.expires != 0 {
            self.expiry.lock().insert((object.expires, object.id), object.clone());
        }
        let old = shard.map.write().insert(object.clone());
        if !pinned {
            // After the insertion: an object in the eviction order must be in the index.
            let state = object.state.lock();
            if state.pins == 0 && state.listed {
                tier.order.insert(object.clone());
            }
        }
        old
    }

    /// Frees a replaced object, unless it is pinned.
    pub(crate) fn replaced(&self, old: &Arc<Object>) {
        let freed = {
            let mut state = old.state.lock();
            std::mem::replace(&mut state.listed, false).then_some(state.pins == 0)
        };
        if freed.is_none() {
            return;
        }
        old.tier.account.objects.fetch_sub(1, Relaxed);
        old.tier.order.remove(old.id);
        if freed == Some(true) {
            old.forget_row();
            self.remove_file(old);
        }
    }
}
