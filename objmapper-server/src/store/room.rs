//! The room of the disk tier's file system, for the case that it is less than the tier's limit.
//!
//! ENOSPC, EDQUOT and exhausted inodes are limits like the operator's: something is evicted, and the operation is tried
//! again. So that this stays rare, `objm-disk` looks at the file system once per second and sets the account's
//! *ceiling* below what is free there. A quota shows only when an operation fails. After a failure, or an aborted private
//! object (its writer may have reached the quota), a file is allocated to see if there is room. If not, the
//! ceiling is lowered to what is held, then raised as far as allocations succeed.
//!
//! The ceiling leaves a 64th of the file system free, bytes and inodes, for the index, for directories, and for what other
//! programs write.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use objmapper_log::RateLimited;
use parking_lot::Mutex;

use super::account::page_round;
use super::disk_index::Op;
use super::object::Object;
use super::private::Private;
use super::tier::Tier;
use super::{Inner, StoreError, TierKind};

/// Minimum interval between two log lines of one kind.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Evictions for one operation before it fails.
const MAX_ROUNDS: u32 = 8;
/// Minimum number of bytes of one eviction.
const MIN_SHARE: u64 = 1 << 20;
/// Minimum number of bodies of one eviction, for a file system that is out of inodes.
const MIN_FILES: usize = 16;
/// Bounds of the bytes and inodes that are left free on the file system.
const MIN_RESERVE: u64 = 256 << 10;
const MAX_RESERVE: u64 = 1 << 30;
const MIN_INODES: u64 = 16;
const MAX_INODES: u64 = 1024;
/// Bounds of the bytes that are allocated to see if there is room.
const MIN_TRIAL: u64 = 256 << 10;
const MAX_TRIAL: u64 = 16 << 20;

/// The state of the disk tier's file system.
#[derive(Debug)]
pub(crate) struct Room {
    /// Operations that found the file system full, since the start.
    pub(crate) no_space: AtomicU64,
    /// Other storage errors, since the start.
    pub(crate) errors: AtomicU64,
    /// Files without a row that had the name for a new body, since the start.
    pub(crate) orphan_names: AtomicU64,
    /// True if an operation failed, or may have failed, because the file system has no room.
    suspected: AtomicBool,
    /// True if there is less room than the file system reports.
    by_quota: AtomicBool,
    /// True if the last log line said that the ceiling is below the limit.
    reported: Mutex<bool>,
    log: RateLimited,
    error_log: RateLimited,
    lost_files: RateLimited,
    /// Limits the lines about pins and sessions that the index could not record, and that a restart loses.
    pub(crate) unsaved: RateLimited,
}

impl Default for Room {
    fn default() -> Self {
        let log = || RateLimited::new(1, LOG_INTERVAL);
        Room {
            no_space: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            orphan_names: AtomicU64::new(0),
            suspected: AtomicBool::new(false),
            by_quota: AtomicBool::new(false),
            reported: Mutex::new(false),
            log: log(),
            error_log: log(),
            lost_files: log(),
            unsaved: log(),
        }
    }
}

/// Logs a warning, unless its kind was logged a short time ago.
pub(crate) fn warn(kind: &RateLimited, message: &dyn Display) {
    if let Some(left_out) = kind.admit() {
        log::warn!("{message}{left_out}");
    }
}

impl Inner {
    /// Carries out `act`. If the file system has no room for it, evicts and tries again. The caller holds no lock
    /// that comes after `evicting` in the order of locks.
    pub(crate) fn with_room<T>(
        &self,
        tier: &Tier,
        mut act: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 0..MAX_ROUNDS {
            match act() {
                Err(e) if e.is_no_space() && self.evict_share(tier) => {}
                outcome => return outcome.inspect_err(|e| self.note_error(e)),
            }
        }
        act().inspect_err(|e| self.note_error(e))
    }

    /// Applies changes to the disk tier's index, with evictions as in [`Inner::with_room`].
    pub(crate) fn apply_with_room(&self, ops: impl Fn() -> Vec<Op>) -> Result<(), StoreError> {
        match &self.disk {
            Some(disk) => self.with_room(disk, || self.apply(ops())),
            None => Ok(()),
        }
    }

    /// Applies changes to the disk tier's index in one transaction. Does nothing without a disk tier.
    pub(crate) fn apply(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let (Some(index), Some(disk)) = (&self.disk_index, &self.disk) else { return Ok(()) };
        index.apply(ops).map_err(|e| e.into_store_error(|| !disk.has_room(MIN_TRIAL)))
    }

    /// Counts and logs an error that an operator has to know of.
    pub(crate) fn note_error(&self, error: &StoreError) {
        match error {
            StoreError::NoSpace { .. } => warn(&self.room.error_log, error),
            StoreError::Io { .. } | StoreError::Index(_) => {
                self.room.errors.fetch_add(1, Relaxed);
                warn(&self.room.error_log, error);
            }
            _ => {}
        }
    }

    /// Logs an object whose file was removed by another process.
    pub(crate) fn note_lost_file(&self, object: &Object) {
        warn(&self.room.lost_files, &format_args!("object {:016x} has lost its file", object.id));
    }

    /// Evicts a share of the tier because the file system has no room. Returns false if no object is evictable.
    fn evict_share(&self, tier: &Tier) -> bool {
        self.room.no_space.fetch_add(1, Relaxed);
        if tier.kind == TierKind::Disk {
            self.suspect_no_space();
            self.disk_wake.notify();
        }
        let _evicting = self.evicting.lock();
        self.fill_policy();
        let share = (tier.account.used() / 64).max(MIN_SHARE);
        self.evict_all(tier, tier.policy.victims(share, MIN_FILES)) > 0
    }

    /// Evicts `victims`, which the caller has taken out of the tier's order, and returns the number of evicted objects. The
    /// caller holds `evicting`.
    pub(super) fn evict_all(&self, tier: &Tier, victims: Vec<Arc<Object>>) -> usize {
        let gone: Vec<_> = victims.into_iter().filter(|v| self.evict(v)).collect();
        self.flush_index(tier.kind);
        for object in &gone {
            tier.account.evictions.fetch_add(1, Relaxed);
            tier.account.evicted_bytes.fetch_add(object.charge(), Relaxed);
            self.remove_file(object);
        }
        gone.len()
    }

    /// Requests a check of the room, because an operation may have failed without it.
    pub(crate) fn suspect_no_space(&self) {
        self.room.suspected.store(true, Relaxed);
    }

    pub(crate) fn is_no_space_suspected(&self) -> bool {
        self.room.suspected.load(Relaxed)
    }

    /// Checks the disk tier's file system, sets the ceiling, and logs a change.
    pub(crate) fn check_room(&self) {
        self.set_ceiling();
        if let Some(disk) = &self.disk {
            self.report(disk);
        }
    }

    /// Sets the disk tier's ceiling by the free space of the file system, and evicts down to it.
    pub(crate) fn set_ceiling(&self) {
        let Some(disk) = &self.disk else { return };
        let account = &disk.account;
        // Read before `statvfs`, so that bytes written in between are not counted as free.
        let used = account.used();
        let stat = match rustix::fs::fstatvfs(&disk.dir) {
            Ok(stat) => stat,
            Err(e) => {
                self.note_error(&StoreError::io("asking the disk tier's file system for its room")(e));
                return;
            }
        };
        let suspected = self.room.suspected.swap(false, Relaxed);
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let reserve = (total / 64).clamp(MIN_RESERVE, MAX_RESERVE);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let mut ceiling = used.saturating_add(free).saturating_sub(reserve);
        if ceiling < account.limit.saturating_mul(2) {
            ceiling = ceiling.saturating_sub(self.unwritten());
        }
        if suspected || self.room.by_quota.load(Relaxed) {
            ceiling = self.probe_room(disk, ceiling, free.saturating_sub(reserve));
        }
        // A file system that allocates inodes on demand reports 0.
        let inodes = (stat.f_files / 64).clamp(MIN_INODES, MAX_INODES);
        if stat.f_files > 0 && stat.f_favail < inodes {
            let _evicting = self.evicting.lock();
            self.fill_policy();
            let victims = disk.policy.victims(0, (inodes - stat.f_favail) as usize);
            self.evict_all(disk, victims);
        }
        account.set_ceiling(if ceiling < account.limit { ceiling } else { u64::MAX });
        if account.used() > account.bound()
            && let Err(e) = self.make_room(disk, 0)
        {
            warn(&self.room.log, &e);
        }
    }

    /// Allocates a file to see if there is as much room as the file system reports, and returns the new ceiling.
    fn probe_room(&self, disk: &Tier, ceiling: u64, free: u64) -> u64 {
        let account = &disk.account;
        let trial = (account.bound() / 32).clamp(MIN_TRIAL, MAX_TRIAL);
        if free < trial || !disk.has_room(0) {
            // The file system itself reports that it is full, of bytes or of inodes.
            self.room.by_quota.store(false, Relaxed);
            return ceiling;
        }
        if !disk.has_room(trial) {
            self.room.by_quota.store(true, Relaxed);
            let _evicting = self.evicting.lock();
            self.fill_policy();
            self.evict_all(disk, disk.policy.victims(trial, 1));
            return ceiling.min(account.used());
        }
        if !self.room.by_quota.load(Relaxed) {
            return ceiling;
        }
        let risen = account.bound().max(account.used()).saturating_add(trial / 2);
        if risen >= ceiling.min(account.limit) {
            self.room.by_quota.store(false, Relaxed);
        }
        ceiling.min(risen)
    }

    /// Returns the bytes that private objects of the disk tier have reserved and not written.
    fn unwritten(&self) -> u64 {
        let sessions: Vec<_> = self.sessions.lock().values().cloned().collect();
        let mut sum = 0u64;
        for session in sessions {
            let privates: Vec<Arc<Private>> = session.state.lock().privates.values().cloned().collect();
            for private in privates.iter().filter(|private| private.tier == TierKind::Disk) {
                let reserved = private.state.lock().reserved;
                let blocks = rustix::fs::fstat(&private.reader).map_or(0, |stat| stat.st_blocks);
                let written = page_round(u64::try_from(blocks).unwrap_or(0).saturating_mul(512));
                sum = sum.saturating_add(reserved.saturating_sub(written));
            }
        }
        sum
    }

    /// Logs, once per change, if the file system and not the limit bounds the tier.
    fn report(&self, disk: &Tier) {
        let account = &disk.account;
        let (bound, limit) = (account.bound(), account.limit);
        let mut reported = self.room.reported.lock();
        // A margin, so that a difference of a few bytes does not log both ways.
        let small = bound < if *reported { limit } else { limit - limit / 64 };
        if small == std::mem::replace(&mut *reported, small) {
            return;
        }
        if small {
            warn(
                &self.room.log,
                &format_args!(
                    "disk tier: its file system has room for {bound} bytes of its {limit}, and objects are evicted for that; \
                 remedy: give it a smaller size, or the file system more room{}",
                    if self.room.by_quota.load(Relaxed) { " (a quota, or inodes)" } else { "" }
                ),
            );
        } else {
            log::info!("disk tier: its file system has room for all of its {limit} bytes again");
        }
    }
}
