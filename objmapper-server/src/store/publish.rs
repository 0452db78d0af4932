//! Changes of a URI's object (commit, delete, eviction), and the removal of files.
//!
//! The index in memory changes under the shard's `publish` lock only. A commit gives the file its name first, then commits the row
//! in the disk index, then enters the object. So a look-up finds complete objects only, and a crash between the steps leaves
//! a file without a row, which the next start removes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use std::os::fd::{AsFd, BorrowedFd};

use parking_lot::Mutex;

use super::disk_index::{Op, Row};
use super::index::Shard;
use super::object::{ANY_VERSION, Object, ObjectId, ObjectState, check_uri, now_ms};
use super::{Entry};
use super::private::{Commit, Private};
use super::session::SessionCore;
use super::tier::Tier;
use super::{Inner, StoreError, TierKind};
use crate::sys;

/// Number of ids that one transaction of the disk index reserves.
pub(super) const ID_BLOCK: u64 = 1 << 16;

/// The reason of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// The URI's content has changed: nothing older may be published.
    Purge,
    /// This one body is of no more use.
    Housekeeping,
}

/// The source of object ids, which are also the versions. Ids grow, and none is given out twice.
#[derive(Debug)]
pub(crate) struct Ids {
    pub(crate) next: ObjectId,
    /// Ids below this one are reserved in the disk index.
    pub(crate) until: ObjectId,
    /// Ids that are not given out because files have them, until the files are removed.
    pub(crate) skipped: Vec<Range<ObjectId>>,
}

impl Inner {
    /// Evicts until `bytes` fit, and reserves them. Fails only if no evictable object is left.
    pub(crate) fn make_room(&self, tier: &Tier, bytes: u64) -> Result<(), StoreError> {
        let account = &tier.account;
        if account.try_add(bytes) {
            return Ok(());
        }
        let full = || StoreError::Full { tier: tier.kind, wanted: bytes, limit: account.bound() };
        if bytes > account.bound() {
            return Err(full());
        }
        // One thread at a time: objects that another thread has taken out of the order are not freed yet, and
        // an empty order would be taken for a tier without evictable objects.
        let _evicting = self.evicting.lock();
        self.fill_policy();
        loop {
            if account.try_add(bytes) {
                return Ok(());
            }
            let need = account.used().saturating_add(bytes).saturating_sub(account.bound());
            let victims = tier.policy.victims(need, 1);
            if victims.is_empty() {
                self.settle_leftovers();
                return if account.try_add(bytes) { Ok(()) } else { Err(full()) };
            }
            self.evict_all(tier, victims);
        }
    }

    /// Evicts an unpinned object. Returns false if it was pinned or removed in the meantime.
    pub(super) fn evict(&self, object: &Arc<Object>) -> bool {
        let shard = self.index.shard(&object.uri);
        let _publishing = shard.publish.lock();
        let freed = self.unlist(shard, object, |state| state.pins == 0).is_some();
        if freed {
            self.forget_row(object);
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
        if let Ok(tier) = self.tier(object.tier) {
            tier.account.objects.fetch_sub(1, Relaxed);
        }
        Some(state.pins == 0)
    }

    /// Removes the file of an object that is unlisted and unpinned, and every reference to the object.
    /// The caller removes its row in the disk index ([`Inner::forget_row`]).
    pub(crate) fn remove_file(&self, object: &Object) {
        let Ok(tier) = self.tier(object.tier) else { return };
        tier.policy.remove(object.id);
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
        let has_writer = object.growing.load(Relaxed) && self.leave_foreign(tier, object);
        match tier.unlink(object.id) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.lost_files.fetch_add(1, Relaxed);
            }
            Err(e) => self.note_error(&StoreError::io("removing a body")(e)),
        }
        // With a writer, the charge stays until the last writer is gone.
        if !has_writer {
            tier.account.sub(object.charge());
        }
    }

    /// Queues the removal of the object's row.
    pub(crate) fn forget_row(&self, object: &Object) {
        if let (TierKind::Disk, Some(index)) = (object.tier, &self.disk_index) {
            index.enqueue(vec![Op::Forget(object.id)]);
        }
    }

    pub(crate) fn flush_index(&self, kind: TierKind) {
        if let (TierKind::Disk, Some(index)) = (kind, &self.disk_index) {
            index.flush();
        }
    }

    /// Unlists an object in any state, and frees its file unless it is pinned. Used for expiry, the end
    /// of an ephemeral object, and a missing file.
    pub(crate) fn discard(&self, object: &Arc<Object>) {
        let shard = self.index.shard(&object.uri);
        let freed = {
            let _publishing = shard.publish.lock();
            let freed = self.unlist(shard, object, |_| true);
            if let (Some(_), TierKind::Disk, Some(index)) = (freed, object.tier, &self.disk_index) {
                index.enqueue(vec![Op::Unlist(object.id)]);
            }
            freed
        };
        match freed {
            Some(true) => {
                self.forget_row(object);
                self.remove_file(object);
            }
            Some(false) => {}
            None => return,
        }
        if let Ok(tier) = self.tier(object.tier) {
            tier.policy.remove(object.id);
        }
    }

    pub(crate) fn next_id(&self) -> Result<ObjectId, StoreError> {
        let mut ids = self.ids.lock();
        if ids.next >= ids.until {
            let until = ids.next.saturating_add(ID_BLOCK);
            self.apply(vec![Op::ReserveIds(until)])?;
            ids.until = until;
        }
        let id = ids.next;
        ids.next += 1;
        Ok(id)
    }

    /// Gives the file an id and the id's name. An existing file of that name is from a run whose index is lost: it is
    /// removed, and its id is not used, because a client may still know it.
    pub(crate) fn link_new(&self, tier: &Tier, file: BorrowedFd<'_>) -> Result<ObjectId, StoreError> {
        /// Number of existing files in a row after which the rest of the block is skipped: more are likely to follow.
        const MAX_STEPS: u32 = 64;
        let mut met = 0;
        loop {
            let id = self.next_id()?;
            match tier.publish(file, id) {
                Ok(()) => return Ok(id),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    self.room.orphan_names.fetch_add(1, Relaxed);
                    if let Err(e) = tier.unlink(id) {
                        log::debug!("removing a file without a row: {e}");
                    }
                    met += 1;
                    if met % MAX_STEPS == 0 {
                        self.skip_block();
                    }
                }
                Err(e) => return Err(StoreError::io("linking a body")(e)),
            }
        }
    }

    /// Skips the next block of ids, because files of another run have them. `objm-disk` removes those files.
    fn skip_block(&self) {
        let mut ids = self.ids.lock();
        let from = ids.next;
        ids.next = from.saturating_add(ID_BLOCK);
        let skipped = from..ids.next;
        ids.skipped.push(skipped);
        drop(ids);
        self.disk_wake.notify();
    }

    /// Returns true if this run has not given out `id`, which a file has, and excludes the id from use.
    pub(crate) fn skip_id(&self, id: ObjectId) -> bool {
        let mut ids = self.ids.lock();
        if id < ids.next {
            return ids.skipped.iter().any(|range| range.contains(&id));
        }
        let skipped = ids.next..id.saturating_add(1);
        ids.next = skipped.end;
        ids.skipped.push(skipped);
        true
    }

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
        let tier = self.tier(private.tier)?;
        let file = private.reader.as_fd();
        // First: after the server's own copy is closed, any writer is the client's.
        if private.outgoing.is_pending() {
            return Err(StoreError::Busy);
        }
        if !sys::has_no_writers(file).map_err(StoreError::io("asking for a lease"))? {
            return Err(StoreError::Busy);
        }
        // Measured after the last writer is gone, so it is final.
        let measure = tier.measure(file).map_err(StoreError::io("fstat"))?;
        if measure.length != commit.length {
            return Err(StoreError::Invalid(format!(
                "the commit says {} bytes, the file has {}",
                commit.length, measure.length
            )));
        }
        // The memory tier's file system allocates a hole when it is read through a mapping: where it has no room, the reader
        // gets SIGBUS. On a disk a hole reads as zeros.
        if tier.kind == TierKind::Memory
            && let Some(hole) = Tier::hole(file, measure.length).map_err(StoreError::io("looking for holes"))?
        {
            return Err(StoreError::Invalid(format!(
                "the file has a hole: nothing was written at byte {hole} of {}; write all bytes of a body",
                measure.length
            )));
        }
        if measure.charge > state.reserved {
            self.make_room(tier, measure.charge - state.reserved)?;
            state.reserved = measure.charge;
        }
        let outcome = self.with_room(tier, || self.publish(session, private, tier, measure.charge, commit));
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
        tier: &Tier,
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
                tier: tier.kind,
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
                let _ = tier.unlink(object.id);
            })?;
            let old = self.enter(shard, tier, &object);
            (object, old)
        };
        if let Some(old) = old {
            self.replaced(&old);
        }
        Ok(object)
    }

    /// Writes the changes of the disk index for a new object: its row, and the removal of the replaced object's URI.
    pub(crate) fn record(
        &self,
        object: &Object,
        pinned_by: Option<super::Token>,
        current: Option<&Object>,
    ) -> Result<(), StoreError> {
        let replaces = current.filter(|c| c.tier == TierKind::Disk).map(|c| c.id);
        if object.tier == TierKind::Disk {
            let row = Row {
                id: object.id,
                uri: Some(object.uri.clone()),
                length: object.length.load(Relaxed),
                charge: object.charge(),
                mtime: object.mtime,
                expires: object.expires,
                foreign: object.foreign,
                session: object.ephemeral,
            };
            self.unsynced.store(true, Relaxed);
            self.apply(vec![Op::Insert { row, pinned_by, replaces }])
        } else if let Some(id) = replaces {
            self.apply(vec![Op::Unlist(id)])
        } else {
            Ok(())
        }
    }

    /// Enters a new object into the index. Returns the replaced object, unlisted.
    pub(crate) fn enter(&self, shard: &Shard, tier: &Tier, object: &Arc<Object>) -> Option<Arc<Object>> {
        let pinned = object.state.lock().pins > 0;
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
                tier.policy.insert(object.clone());
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
        if let Ok(tier) = self.tier(old.tier) {
            tier.account.objects.fetch_sub(1, Relaxed);
            tier.policy.remove(old.id);
        }
        if freed == Some(true) {
            self.forget_row(old);
            self.remove_file(old);
        }
    }

    /// Deletes the object of `uri`. A purge also moves its fence and keeps private objects created for it from being committed.
    pub(crate) fn delete(&self, uri: &[u8], if_version: u64, deletion: Deletion) -> Result<(), StoreError> {
        check_uri(uri)?;
        match &self.disk {
            // A purge must not fail because the disk has no room for its row.
            Some(disk) => self.with_room(disk, || self.delete_once(uri, if_version, deletion)),
            None => self.delete_once(uri, if_version, deletion),
        }
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
                if let Some(index) = &self.disk_index {
                    index.flush();
                }
                return Err(StoreError::NotFound);
            };
            if object.tier == TierKind::Disk {
                self.apply(vec![Op::Unlist(object.id)])?;
            }
            let freed = self.unlist(shard, &object, |_| true);
            (object, freed)
        };
        if let Ok(tier) = self.tier(object.tier) {
            tier.policy.remove(object.id);
        }
        if freed == Some(true) {
            self.forget_row(&object);
            self.remove_file(&object);
        }
        if object.expired(now_ms()) { Err(StoreError::NotFound) } else { Ok(()) }
    }
}
