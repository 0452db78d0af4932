//! Removal: an object leaves the index (eviction, deletion, expiry), and its file goes when nothing pins it.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::store::index::Shard;
use crate::store::object::{ANY_VERSION, Object, ObjectState, check_uri, now_ms};
use crate::store::tier::journal::Op;
use crate::store::{Inner, StoreError};

/// The reason of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// The URI's content has changed: nothing older may be published.
    Purge,
    /// This one body is of no more use.
    Housekeeping,
}

impl Inner {
    /// Evicts an unpinned object. Returns false if it was pinned or removed in the meantime.
    pub(in crate::store) fn evict(&self, object: &Arc<Object>) -> bool {
        let shard = self.index.shard(&object.uri);
        let _publishing = shard.publish.lock();
        let freed = self.unlist(shard, object, |state| state.pins == 0).is_some();
        if freed {
            object.forget_row();
        }
        freed
    }

    /// Takes the object out of the index if it is listed and `only_if` holds. The caller holds the
    /// shard's publish lock. Returns true if the file has no pin and is to be removed.
    pub(crate) fn unlist(
        &self,
        shard: &Shard,
        object: &Object,
        only_if: impl FnOnce(&ObjectState) -> bool,
    ) -> Option<bool> {
        let mut map = shard.map.write();
        let mut state = object.state.lock();
        if !state.listed || !only_if(&state) {
            return None;
        }
        state.listed = false;
        if map.get(&object.uri).is_some_and(|current| current.id == object.id) {
            map.remove(&object.uri);
        }
        object.tier.account.objects.fetch_sub(1, Relaxed);
        Some(state.pins == 0)
    }

    /// Removes the file of an object that is unlisted and unpinned, and every reference to the object.
    /// The caller removes its row ([`Object::forget_row`]).
    pub(crate) fn remove_file(&self, object: &Object) {
        let tier = &object.tier;
        tier.order.remove(object.id);
        if object.expires != 0 {
            self.expiry.lock().remove(&(object.expires, object.id));
        }
        if object.foreign {
            self.foreign.lock().remove(&object.id);
        }
        if let Some(token) = object.ephemeral {
            let session = self.sessions.lock().get(&token).cloned();
            if let Some(session) = session {
                session.state.lock().ephemeral.remove(&object.id);
            }
        }
        let has_writer = object.growing.load(Relaxed) && self.leave_foreign(object);
        match tier.files.unlink(object.id) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.diagnostics.lost_files.fetch_add(1, Relaxed);
            }
            Err(e) => self.diagnostics.note_error(&StoreError::io("removing a body")(e)),
        }
        // With a writer, the charge stays until the last writer is gone.
        if !has_writer {
            tier.account.sub(object.charge());
        }
    }

    /// Unlists an object in any state, and frees its file unless it is pinned. Used for expiry, the end
    /// of an ephemeral object, and a missing file.
    pub(crate) fn discard(&self, object: &Arc<Object>) {
        let shard = self.index.shard(&object.uri);
        let freed = {
            let _publishing = shard.publish.lock();
            let freed = self.unlist(shard, object, |_| true);
            if freed.is_some() {
                object.tier.record_later(Op::Unlist(object.id));
            }
            freed
        };
        match freed {
            Some(true) => {
                object.forget_row();
                self.remove_file(object);
            }
            Some(false) => {}
            None => return,
        }
        object.tier.order.remove(object.id);
    }

    /// Deletes the object of `uri`. A purge also moves its fence and keeps private objects created for it from being committed.
    pub(crate) fn delete(&self, uri: &[u8], if_version: u64, deletion: Deletion) -> Result<(), StoreError> {
        check_uri(uri)?;
        // A purge must not fail because a file system has no space for its row.
        let tiers: Vec<_> = self.tiers.persistent().collect();
        self.with_space_in(&tiers, || self.delete_once(uri, if_version, deletion))
    }

    fn delete_once(&self, uri: &[u8], if_version: u64, deletion: Deletion) -> Result<(), StoreError> {
        if deletion == Deletion::Purge {
            // First: commits that passed the fence are visible now, so the deletion finds them. Later commits fail.
            self.board.advance(uri);
        }
        let shard = self.index.shard(uri);
        let (object, freed) = {
            let _publishing = shard.publish.lock();
            let current = shard.map.read().get(uri).cloned();
            let live = current.as_ref().filter(|c| !c.expired(now_ms()));
            if if_version != ANY_VERSION && live.is_some_and(|c| c.id != if_version) {
                return Err(StoreError::Conflict("the object's version is another"));
            }
            if deletion == Deletion::Purge && (if_version == ANY_VERSION || live.is_some()) {
                for private in shard.map.write().privates_of(uri) {
                    private.uri_deleted.store(true, SeqCst);
                }
            }
            let Some(object) = current else {
                // An earlier eviction may be queued only. A crash must not bring back an object that is reported as absent.
                self.tiers.persistent().for_each(|tier| tier.flush());
                return Err(StoreError::NotFound);
            };
            object.tier.record(vec![Op::Unlist(object.id)])?;
            let freed = self.unlist(shard, &object, |_| true);
            (object, freed)
        };
        object.tier.order.remove(object.id);
        if freed == Some(true) {
            object.forget_row();
            self.remove_file(&object);
        }
        if object.expired(now_ms()) { Err(StoreError::NotFound) } else { Ok(()) }
    }
}
