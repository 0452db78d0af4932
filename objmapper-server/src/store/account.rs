//! Exact accounting of a tier's bytes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The unit of accounting: a page of page cache, a block of the usual file systems.
pub(crate) const PAGE: u64 = 4096;

/// `bytes` rounded up to whole pages; saturates.
pub(crate) fn page_round(bytes: u64) -> u64 {
    bytes.saturating_add(PAGE - 1) / PAGE * PAGE
}

/// A tier's byte and object counts. `used` covers every live file of the tier (listed, pinned but
/// unlisted, private) in whole pages, and never passes `limit`.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) limit: u64,
    used: AtomicU64,
    pub(crate) pinned: AtomicU64,
    pub(crate) objects: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
}

impl Account {
    pub(crate) fn new(limit: u64) -> Self {
        Account {
            limit,
            used: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
        }
    }

    /// Takes `bytes` if they fit below the limit; all or nothing.
    pub(crate) fn try_add(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Relaxed, Relaxed, |used| used.checked_add(bytes).filter(|sum| *sum <= self.limit))
            .is_ok()
    }

    /// Counts what a restarted disk tier holds already, even above a limit that was lowered
    /// meanwhile: the first reservation then evicts down to it.
    pub(crate) fn add_existing(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn sub(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "account below zero");
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
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
}
