//! The size limit of a storage, and the seven counters that every Varnish dashboard shows.
//!
//! `used` never exceeds the limit: bytes are taken by a compare-and-swap before they are allocated, and given back
//! after they are freed. The counters are updated beside it, and may differ from it by the calls under way.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The counters of `-s malloc`, with malloc's meaning (Varnish: `storage/storage_malloc.c`).
///
/// An *allocation* is an object's head with its attributes, one piece of a body in heap, a body in objmapper, an
/// auxiliary attribute, or a buffer.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SmaCounters {
    /// Allocator requests.
    pub c_req: AtomicU64,
    /// Allocator failures.
    pub c_fail: AtomicU64,
    /// Bytes allocated, ever.
    pub c_bytes: AtomicU64,
    /// Bytes freed, ever.
    pub c_freed: AtomicU64,
    /// Allocations outstanding.
    pub g_alloc: AtomicU64,
    /// Bytes outstanding.
    pub g_bytes: AtomicU64,
    /// Bytes available; 0 for a storage without limit.
    pub g_space: AtomicU64,
}

/// The largest integer of VCL, which stands for infinity (Varnish: `include/vrt.h`).
pub const UNLIMITED: u64 = 999_999_999_999_999;

/// Bytes in use under a limit. They never exceed it, not even for a moment.
#[derive(Debug)]
pub struct Account {
    limit: u64,
    used: AtomicU64,
    /// Bytes of evicted objects that another thread is about to free.
    leaving: AtomicU64,
    sma: &'static SmaCounters,
}

impl Account {
    /// An account of `limit` bytes ([`UNLIMITED`] for none) that shows itself in `sma`.
    pub fn new(limit: u64, sma: &'static SmaCounters) -> Self {
        if limit != UNLIMITED {
            sma.g_space.store(limit, Relaxed);
        }
        Account { limit, used: AtomicU64::new(0), leaving: AtomicU64::new(0), sma }
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Bytes that are left.
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// Bytes that are left when what was evicted is freed.
    pub fn free_soon(&self) -> u64 {
        self.free().saturating_add(self.leaving.load(Relaxed))
    }

    /// `bytes` that are in use belong to an evicted object, whose last reference another thread is about to drop.
    pub fn leaves(&self, bytes: u64) {
        self.leaving.fetch_add(bytes, Relaxed);
    }

    /// Ends what [`Account::leaves`] began: the bytes are about to be deallocated.
    pub fn left(&self, bytes: u64) {
        self.leaving.fetch_sub(bytes, Relaxed);
    }

    fn take(&self, bytes: u64) -> bool {
        let taken = self
            .used
            .fetch_update(Acquire, Relaxed, |used| used.checked_add(bytes).filter(|sum| *sum <= self.limit))
            .is_ok();
        if taken {
            self.sma.c_bytes.fetch_add(bytes, Relaxed);
            self.sma.g_bytes.fetch_add(bytes, Relaxed);
            if self.limit != UNLIMITED {
                self.sma.g_space.fetch_sub(bytes, Relaxed);
            }
        }
        taken
    }

    fn give_back(&self, bytes: u64) {
        self.sma.g_bytes.fetch_sub(bytes, Relaxed);
        if self.limit != UNLIMITED {
            self.sma.g_space.fetch_add(bytes, Relaxed);
        }
        // Last: the next allocation of these bytes lowers `g_space`, which must not pass below 0 on the way.
        self.used.fetch_sub(bytes, Release);
    }

    /// Requests an allocation of `bytes`. `false`: the limit does not allow it; this is counted as a failure.
    #[must_use]
    pub fn alloc(&self, bytes: u64) -> bool {
        self.sma.c_req.fetch_add(1, Relaxed);
        let taken = self.take(bytes);
        if taken {
            self.sma.g_alloc.fetch_add(1, Relaxed);
        } else {
            self.sma.c_fail.fetch_add(1, Relaxed);
        }
        taken
    }

    /// Counts that one allocation became two, which together have its bytes.
    pub fn divided(&self) {
        self.sma.c_req.fetch_add(1, Relaxed);
        self.sma.g_alloc.fetch_add(1, Relaxed);
    }

    /// Counts that two allocations became one, which has the bytes of both.
    pub fn united(&self) {
        self.sma.g_alloc.fetch_sub(1, Relaxed);
    }

    /// Takes an allocation back that the limit allowed and malloc(3) or objmapper refused, and counts a failure.
    pub fn alloc_failed(&self, bytes: u64) {
        self.give_back(bytes);
        self.sma.c_bytes.fetch_sub(bytes, Relaxed);
        self.sma.g_alloc.fetch_sub(1, Relaxed);
        self.sma.c_fail.fetch_add(1, Relaxed);
    }

    /// Frees an allocation whose outstanding size is `bytes`.
    pub fn dealloc(&self, bytes: u64) {
        self.give_back(bytes);
        self.sma.c_freed.fetch_add(bytes, Relaxed);
        self.sma.g_alloc.fetch_sub(1, Relaxed);
    }

    /// Requests `bytes` more for an outstanding allocation.
    #[must_use]
    pub fn grow(&self, bytes: u64) -> bool {
        self.sma.c_req.fetch_add(1, Relaxed);
        let taken = self.take(bytes);
        if !taken {
            self.sma.c_fail.fetch_add(1, Relaxed);
        }
        taken
    }

    /// Gives `bytes` of an outstanding allocation back.
    pub fn shrink(&self, bytes: u64) {
        self.give_back(bytes);
        self.sma.c_freed.fetch_add(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(limit: u64) -> (Account, &'static SmaCounters) {
        let sma: &'static SmaCounters = Box::leak(Box::default());
        (Account::new(limit, sma), sma)
    }

    #[test]
    fn never_above_the_limit_and_every_byte_comes_back() {
        let (account, sma) = account(1000);
        assert!(account.alloc(600));
        assert!(!account.alloc(401));
        assert!(account.alloc(400));
        assert_eq!((account.used(), account.free()), (1000, 0));
        assert!(!account.grow(1));
        account.shrink(100);
        assert!(account.grow(40));
        account.dealloc(600);
        account.dealloc(340);
        assert_eq!(account.used(), 0);
        let read = |c: &AtomicU64| c.load(Relaxed);
        assert_eq!(read(&sma.c_req), 5);
        assert_eq!(read(&sma.c_fail), 2);
        assert_eq!(read(&sma.c_bytes), 1040);
        assert_eq!(read(&sma.c_freed), 1040);
        assert_eq!((read(&sma.g_alloc), read(&sma.g_bytes), read(&sma.g_space)), (0, 0, 1000));
    }

    #[test]
    fn an_allocation_that_the_heap_refuses_leaves_no_trace_but_the_failure() {
        let (account, sma) = account(1000);
        assert!(account.alloc(600));
        account.alloc_failed(600);
        assert_eq!((account.used(), sma.c_fail.load(Relaxed), sma.c_bytes.load(Relaxed)), (0, 1, 0));
    }

    #[test]
    fn what_an_evicted_object_still_holds_is_free_soon_but_not_free() {
        let (account, _) = account(1000);
        assert!(account.alloc(600));
        account.leaves(600);
        assert_eq!((account.free(), account.free_soon()), (400, 1000));
        assert!(!account.alloc(401));
        account.left(600);
        account.dealloc(600);
        assert_eq!((account.free(), account.free_soon()), (1000, 1000));
    }

    #[test]
    fn an_unlimited_account_shows_no_space() {
        let (account, sma) = account(UNLIMITED);
        assert!(account.alloc(1 << 40));
        assert_eq!(sma.g_space.load(Relaxed), 0);
        assert_eq!(account.free(), UNLIMITED - (1 << 40));
    }

    #[test]
    fn threads_that_race_for_the_last_bytes_never_pass_the_limit() {
        let (account, _) = account(10_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if account.alloc(7) {
                            assert!(account.used() <= 10_000);
                            account.dealloc(7);
                        }
                    }
                });
            }
        });
        assert_eq!(account.used(), 0);
    }
}
