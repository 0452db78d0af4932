//! The capacity of a file system that other programs use, too, for the case that it is less than the tier's limit.
//!
//! ENOSPC, EDQUOT and exhausted inodes are limits like the operator's: something is evicted, and the operation is tried
//! again (`reclaim`). So that this stays rare, `objm-disk` looks at the file system once per second and sets the account's
//! *ceiling* below what is free there. A quota shows only when an operation fails. After a failure, or an aborted private
//! object (its writer may have reached the quota), a file is allocated to see if there is space. If not, the
//! ceiling is lowered to what is held, then raised as far as allocations succeed.
//!
//! The ceiling leaves a 64th of the file system free, bytes and inodes, for the journal, for directories, and for what other
//! programs write.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use objmapper_log::RateLimited;
use parking_lot::Mutex;

use super::Tier;
use super::account::Account;
use crate::store::StoreError;
use crate::store::diagnostics::{LOG_INTERVAL, warn};

/// Bounds of the bytes and inodes that are left free on the file system.
const MIN_RESERVE: u64 = 256 << 10;
const MAX_RESERVE: u64 = 1 << 30;
const MIN_INODES: u64 = 16;
const MAX_INODES: u64 = 1024;
/// Bounds of the bytes that are allocated to see if there is space.
pub(crate) const MIN_TRIAL: u64 = 256 << 10;
const MAX_TRIAL: u64 = 16 << 20;

/// What is known of the file system.
#[derive(Debug)]
pub(crate) struct Capacity {
    /// True if an operation failed, or may have failed, because the file system has no space.
    suspected: AtomicBool,
    /// True if there is less space than the file system reports.
    by_quota: AtomicBool,
    /// True if the last log line said that the ceiling is below the limit.
    reported: Mutex<bool>,
    pub(crate) log: RateLimited,
}

impl Default for Capacity {
    fn default() -> Self {
        Capacity {
            suspected: AtomicBool::new(false),
            by_quota: AtomicBool::new(false),
            reported: Mutex::new(false),
            log: RateLimited::new(1, LOG_INTERVAL),
        }
    }
}

impl Capacity {
    /// Requests a check, because an operation may have failed for want of space.
    pub(crate) fn suspect(&self) {
        self.suspected.store(true, Relaxed);
    }

    pub(crate) fn is_suspected(&self) -> bool {
        self.suspected.load(Relaxed)
    }
}

/// What one check of the file system found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    /// The new ceiling, unless the eviction below is for a quota: then the bytes held behind it are the ceiling at most.
    pub(crate) ceiling: u64,
    /// Objects to evict because inodes are missing.
    pub(crate) inodes: usize,
    /// Bytes to evict because a quota is reached; 0 if none is.
    pub(crate) over_quota: u64,
}

impl Tier {
    /// Looks at the file system. `unwritten` returns the bytes that are reserved and not written.
    pub(crate) fn check_capacity(&self, unwritten: impl FnOnce() -> u64) -> Result<Check, StoreError> {
        // Read before `statvfs`, so that bytes written in between are not counted as free.
        let used = self.account.used();
        let stat = self.files.statvfs().map_err(StoreError::io("asking a tier's file system for its space"))?;
        let suspected = self.capacity.suspected.swap(false, Relaxed);
        let total = stat.blocks().saturating_mul(stat.fragment_size());
        let reserve = (total / 64).clamp(MIN_RESERVE, MAX_RESERVE);
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let mut ceiling = used.saturating_add(free).saturating_sub(reserve);
        if ceiling < self.account.limit.saturating_mul(2) {
            ceiling = ceiling.saturating_sub(unwritten());
        }
        let mut over_quota = 0;
        if suspected || self.capacity.by_quota.load(Relaxed) {
            (ceiling, over_quota) = self.probe_capacity(ceiling, free.saturating_sub(reserve));
        }
        // A file system that allocates inodes on demand reports 0.
        let wanted = (stat.files() / 64).clamp(MIN_INODES, MAX_INODES);
        let inodes = if stat.files() > 0 { wanted.saturating_sub(stat.files_available()) as usize } else { 0 };
        Ok(Check { ceiling, inodes, over_quota })
    }

    /// Allocates a file to see if there is as much space as the file system reports. Returns the new ceiling and the bytes to evict
    /// because a quota is reached.
    fn probe_capacity(&self, ceiling: u64, free: u64) -> (u64, u64) {
        let account = &self.account;
        let trial = (account.bound() / 32).clamp(MIN_TRIAL, MAX_TRIAL);
        if free < trial || !self.files.has_space(0) {
            // The file system itself reports that it is full, of bytes or of inodes.
            self.capacity.by_quota.store(false, Relaxed);
            return (ceiling, 0);
        }
        if !self.files.has_space(trial) {
            self.capacity.by_quota.store(true, Relaxed);
            return (ceiling, trial);
        }
        if !self.capacity.by_quota.load(Relaxed) {
            return (ceiling, 0);
        }
        let risen = account.bound().max(account.used()).saturating_add(trial / 2);
        if risen >= ceiling.min(account.limit) {
            self.capacity.by_quota.store(false, Relaxed);
        }
        (ceiling.min(risen), 0)
    }

    /// Logs, once per change, if the file system and not the limit bounds the tier.
    pub(crate) fn report_capacity(&self) {
        let Account { limit, .. } = self.account;
        let (kind, bound) = (self.kind, self.account.bound());
        let mut reported = self.capacity.reported.lock();
        // A margin, so that a difference of a few bytes does not log both ways.
        let small = bound < if *reported { limit } else { limit - limit / 64 };
        if small == std::mem::replace(&mut *reported, small) {
            return;
        }
        if small {
            warn(
                &self.capacity.log,
                &format_args!(
                    "{kind} tier: its file system has room for {bound} bytes of its {limit}, and objects are evicted for that; \
                     remedy: give it a smaller size, or the file system more room{}",
                    if self.capacity.by_quota.load(Relaxed) { " (a quota, or inodes)" } else { "" }
                ),
            );
        } else {
            log::info!("{kind} tier: its file system has room for all of its {limit} bytes again");
        }
    }
}
