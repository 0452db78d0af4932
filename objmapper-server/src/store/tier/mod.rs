//! A tier: where bodies are, and all that belongs to that place.
//!
//! | part | file | what |
//! |---|---|---|
//! | directory | `files` | the files of bodies; of the disk tier also `directory`: who owns it, its lock, what was set aside |
//! | account | `account` | the bytes that are charged, below the limit |
//! | eviction order | `eviction` | what goes first when bytes are needed |
//! | journal | `journal` | what a restart finds; a tier without one starts empty |
//! | recovery | `recovery` | the objects that a restart found, until all of them are in their places |
//! | capacity | `capacity` | the room of a file system that other programs use, too |
//!
//! "Survives a restart" means "has a journal", in all of the store: nothing asks whether a tier is on a disk. What the two kinds
//! differ in besides is their file system ([`Medium`]). `memory` makes the one for the memory tier, `open` makes tiers.

pub(super) mod account;
mod capacity;
mod damage;
mod directory;
mod eviction;
mod files;
pub(super) mod journal;
pub(super) mod memory;
mod open;
pub(super) mod recovery;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::fcntl::Flock;
use parking_lot::Mutex;

pub(super) use capacity::{Capacity, MIN_TRIAL};
pub use files::body_path;
pub(super) use files::{BodyFiles, Medium};
pub(super) use open::{OpenedDisk, open_disk, open_memory};

use super::object::ObjectId;
use super::{StoreError, TierKind};
use account::Account;
use eviction::EvictionOrder;
use journal::{Journal, Op};
use recovery::Recovery;

/// One tier.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) kind: TierKind,
    pub(crate) files: BodyFiles,
    pub(crate) account: Account,
    pub(crate) order: EvictionOrder,
    pub(crate) capacity: Capacity,
    pub(crate) recovery: Recovery,
    /// Held by the thread that evicts: objects that another thread has taken out of the order are not freed yet, and an empty
    /// order would be taken for a tier without evictable objects.
    pub(crate) evicting: Mutex<()>,
    journal: Option<Journal>,
    /// True if bodies were committed since the last time that all were brought to stable storage.
    unsynced: AtomicBool,
    /// The lock of the directory, which one process at a time may use.
    _lock: Option<Flock<OwnedFd>>,
}

impl Tier {
    fn new(kind: TierKind, files: BodyFiles, limit: u64) -> Self {
        Tier {
            kind,
            files,
            account: Account::new(limit),
            order: EvictionOrder::default(),
            capacity: Capacity::default(),
            recovery: Recovery::default(),
            evicting: Mutex::new(()),
            journal: None,
            unsynced: AtomicBool::new(false),
            _lock: None,
        }
    }

    /// Returns true if a restart finds what was committed.
    pub(crate) fn is_persistent(&self) -> bool {
        self.journal.is_some()
    }

    /// Carries out changes of the journal in one transaction, and returns when it is committed. Does nothing without a journal.
    pub(crate) fn record(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.apply(ops).map_err(|e| e.into_store_error(|| !self.files.has_space(MIN_TRIAL)))
    }

    /// Queues a change for the journal's next transaction. Used for changes that a restart repairs if they are lost with this
    /// process. Does nothing without a journal.
    pub(crate) fn record_later(&self, op: Op) {
        if let Some(journal) = &self.journal {
            journal.enqueue(vec![op]);
        }
    }

    /// Carries out the queued changes of the journal.
    pub(crate) fn flush(&self) {
        if let Some(journal) = &self.journal {
            journal.flush();
        }
    }

    /// Notes that a body was committed which is not on stable storage.
    pub(crate) fn note_unsynced(&self) {
        self.unsynced.store(true, Relaxed);
    }

    /// Carries out the journal's queued changes, and its checkpoint if one is due.
    pub(crate) fn maintain_journal(&self) {
        if let Some(journal) = &self.journal {
            journal.flush();
            if journal.is_checkpoint_due() {
                journal.checkpoint();
            }
        }
    }

    /// Brings all bodies with ids up to `committed` to stable storage, and records that.
    pub(crate) fn sync(&self, committed: impl FnOnce() -> ObjectId) -> Result<(), StoreError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        if !self.unsynced.swap(false, Relaxed) {
            return Ok(());
        }
        // Read after the flag is cleared: every id up to this one belongs to a file that is written.
        let committed = committed();
        if let Err(e) = self.files.sync() {
            self.unsynced.store(true, Relaxed);
            return Err(StoreError::io("syncfs of a tier")(e));
        }
        journal.enqueue(vec![Op::Durable(committed)]);
        journal.flush();
        journal.checkpoint();
        Ok(())
    }

    /// Ends the tier in order. No other thread uses the store any more.
    pub(super) fn close(&self) {
        // Objects refer to their tier, so what refers to objects goes first.
        self.order.clear();
        self.recovery.clear();
        self.mark_clean();
    }

    /// Writes bodies and journal to disk, and marks the journal as clean.
    pub(super) fn mark_clean(&self) {
        let Some(journal) = &self.journal else { return };
        let closed = self
            .files
            .sync()
            .map_err(|e| e.to_string())
            .and_then(|()| journal.close_cleanly().map_err(|e| e.to_string()));
        if let Err(e) = closed {
            log::error!("closing the {} tier: {e}", self.kind);
        }
    }
}

/// The tiers of a store, in the order in which a new object without a preference tries them.
#[derive(Debug, Default)]
pub(crate) struct Tiers(Vec<Arc<Tier>>);

impl Tiers {
    pub(super) fn push(&mut self, tier: Tier) {
        self.0.push(Arc::new(tier));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the tier of this kind.
    pub(crate) fn of_kind(&self, kind: TierKind) -> Result<&Arc<Tier>, StoreError> {
        self.0.iter().find(|tier| tier.kind == kind).ok_or(StoreError::NoSuchTier(kind))
    }

    /// Returns the tiers that a new object may be in, the preferred one first.
    pub(crate) fn candidates(&self, kind: Option<TierKind>) -> Result<&[Arc<Tier>], StoreError> {
        let Some(kind) = kind else { return Ok(&self.0) };
        let at = self.0.iter().position(|tier| tier.kind == kind).ok_or(StoreError::NoSuchTier(kind))?;
        Ok(&self.0[at..=at])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Tier>> {
        self.0.iter()
    }

    /// Returns the tiers that have a journal.
    pub(crate) fn persistent(&self) -> impl Iterator<Item = &Arc<Tier>> {
        self.0.iter().filter(|tier| tier.is_persistent())
    }

    /// Carries out changes of what belongs to no tier (ids, sessions) in every journal.
    pub(crate) fn record_everywhere(&self, ops: impl Fn() -> Vec<Op>) -> Result<(), StoreError> {
        self.persistent().try_for_each(|tier| tier.record(ops()))
    }
}
