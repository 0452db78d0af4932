//! A store's figures, and pages of its listing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::tier::Tier;
use super::{Entry, Store, TierKind};

/// A tier's figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierStats {
    /// The tier that the figures are of.
    pub tier: TierKind,
    /// The limit in bytes.
    pub limit: u64,
    /// The bound now: the limit, or less if the file system has less room.
    pub bound: u64,
    /// Bytes of all live files, in whole pages (listed, pinned, private, or still open for writing), and of the index. Never
    /// above the limit.
    pub used: u64,
    /// Bytes of the index.
    pub index: u64,
    /// Bytes of pinned objects.
    pub pinned: u64,
    /// Objects that can be looked up.
    pub objects: u64,
    /// Objects evicted since the start.
    pub evictions: u64,
    /// Bytes evicted since the start.
    pub evicted_bytes: u64,
}

/// The store's figures at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// One per tier.
    pub tiers: Vec<TierStats>,
    /// Sessions, those in their grace time included.
    pub sessions: usize,
    /// Private objects, and files of former private objects that a client can still write.
    pub private: usize,
    /// Leases that are held.
    pub leases: usize,
    /// Objects whose file was missing.
    pub lost_files: u64,
    /// Objects of v0.1 clients deleted because they outgrew the tier.
    pub foreign_overruns: u64,
    /// Files truncated because a client had written more than was charged for them, and the tier had no room for it.
    pub writer_overruns: u64,
    /// Operations that found no room in the file system or the quota; most succeeded after an eviction.
    pub no_space: u64,
    /// Operations that failed because of another error of a disk or of the index.
    pub storage_errors: u64,
    /// Files without a row that had the name for a new body.
    pub orphan_names: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// URIs and their objects, in byte order of the URIs.
    pub entries: Vec<(Arc<[u8]>, Entry)>,
    /// True if this is the last page. Otherwise the last URI is the cursor of the next page.
    pub last: bool,
}

impl Tier {
    fn stats(&self) -> TierStats {
        let account = &self.account;
        let (bodies, index) = (account.bodies(), account.journal.load(Relaxed));
        TierStats {
            tier: self.kind,
            limit: account.limit,
            bound: account.bound(),
            used: bodies.saturating_add(index),
            index,
            pinned: account.pinned.load(Relaxed),
            objects: account.objects.load(Relaxed),
            evictions: account.evictions.load(Relaxed),
            evicted_bytes: account.evicted_bytes.load(Relaxed),
        }
    }
}

impl Store {
    /// Returns the store's figures.
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let diagnostics = &inner.diagnostics;
        Stats {
            tiers: inner.tiers.iter().map(|tier| tier.stats()).collect(),
            sessions: inner.sessions.lock().len(),
            private: inner.private_count.load(Relaxed),
            leases: inner.leases.held(),
            lost_files: diagnostics.lost_files.load(Relaxed),
            foreign_overruns: diagnostics.foreign_overruns.load(Relaxed),
            writer_overruns: diagnostics.writer_overruns.load(Relaxed),
            no_space: diagnostics.no_space.load(Relaxed),
            storage_errors: diagnostics.storage_errors.load(Relaxed),
            orphan_names: diagnostics.orphan_names.load(Relaxed),
        }
    }
}
