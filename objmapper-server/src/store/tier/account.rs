//! Exact accounting of a tier's bytes.
//!
//! A reservation succeeds only if bodies and journal then stay at or below the bound, which is the lower of the operator's limit
//! and the file system's ceiling. The bytes of bodies are one atomic that a reservation changes by compare-and-swap, so that
//! no interleaving of reservations passes the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The unit of accounting: a page of page cache, a block of the usual file systems.
pub(crate) const PAGE: u64 = 4096;

/// Rounds `bytes` up to whole pages; saturates.
pub(crate) fn page_round(bytes: u64) -> u64 {
    bytes.saturating_add(PAGE - 1) / PAGE * PAGE
}

/// A tier's byte and object counts. `bodies` covers every live file of the tier (listed, pinned but
/// unlisted, private) in whole pages. No reservation takes `bodies` and `journal` together past `limit` or past
/// `ceiling`, whichever is lower.
#[derive(Debug)]
pub(crate) struct Account {
    /// The limit that the operator configured, in bytes.
    pub(crate) limit: u64,
    /// Bytes that the file system has room for ([`super::capacity`]); `u64::MAX` while that is more than the limit.
    ceiling: AtomicU64,
    /// Bytes of the journal, which is on the same file system. The journal updates the number.
    pub(crate) journal: Arc<AtomicU64>,
    bodies: AtomicU64,
    pub(crate) pinned: AtomicU64,
    pub(crate) objects: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
}

impl Account {
    pub(crate) fn new(limit: u64) -> Self {
        Account {
            limit,
            ceiling: AtomicU64::new(u64::MAX),
            journal: Arc::default(),
            bodies: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
        }
    }

    /// Returns the number of bytes that the tier may hold now.
    pub(crate) fn bound(&self) -> u64 {
        self.limit.min(self.ceiling.load(Relaxed))
    }

    /// Sets the number of bytes that the file system has room for.
    pub(crate) fn set_ceiling(&self, bytes: u64) {
        self.ceiling.store(bytes, Relaxed);
    }

    /// Reserves `bytes`. Returns false, and reserves nothing, if they do not fit below the bound.
    pub(crate) fn try_add(&self, bytes: u64) -> bool {
        let room = self.bound().saturating_sub(self.journal.load(Relaxed));
        self.bodies
            .fetch_update(Relaxed, Relaxed, |bodies| bodies.checked_add(bytes).filter(|sum| *sum <= room))
            .is_ok()
    }

    /// Counts what a restarted tier holds, even above a limit that was lowered
    /// since. The first reservation then evicts down to the limit.
    pub(crate) fn add_existing(&self, bytes: u64) {
        self.bodies.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn sub(&self, bytes: u64) {
        let before = self.bodies.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "account below zero");
    }

    /// Returns the bytes of bodies and journal.
    pub(crate) fn used(&self) -> u64 {
        self.bodies().saturating_add(self.journal.load(Relaxed))
    }

    /// Returns the bytes of bodies.
    pub(crate) fn bodies(&self) -> u64 {
        self.bodies.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_pages_and_saturates() {
        assert_eq!(page_round(0), 0);
        assert_eq!(page_round(1), 4096);
        assert_eq!(page_round(4096), 4096);
        assert_eq!(page_round(4097), 8192);
        assert!(page_round(u64::MAX) <= u64::MAX / PAGE * PAGE);
    }

    #[test]
    fn never_passes_the_limit() {
        let account = Account::new(10 * PAGE);
        assert!(account.try_add(10 * PAGE));
        assert!(!account.try_add(1));
        assert!(!account.try_add(u64::MAX));
        account.sub(PAGE);
        assert!(account.try_add(PAGE));
        assert_eq!(account.used(), account.limit);
    }

    #[test]
    fn the_journal_and_a_small_file_system_leave_less() {
        let account = Account::new(10 * PAGE);
        account.journal.store(2 * PAGE, Relaxed);
        assert!(!account.try_add(9 * PAGE) && account.try_add(8 * PAGE));
        assert_eq!(account.used(), account.limit);
        account.set_ceiling(9 * PAGE);
        account.sub(PAGE);
        assert!(!account.try_add(PAGE));
        account.set_ceiling(u64::MAX);
        assert!(account.try_add(PAGE));
    }
}
