//! The limit of the heap that is used by bodies which the store could not take.
//!
//! A storage's limit may be that of a disk. If the disk is full, or objmapperd is full or down, everything that the
//! limit still allows would go to varnishd's heap, which may be more than the machine has. So this part of the heap has
//! a limit of its own (option `fallback_heap`), below the storage's:
//!
//! | charge | counts | limit |
//! |---|---|---|
//! | [`Charge::Cached`] | bytes of bodies that stay in the cache | `fallback_heap` |
//! | [`Charge::Transit`] | bytes of bodies that are delivered and not cached ([`crate::transit`]) | `fallback_heap` once more, and [`crate::transit::WINDOW`] for each body whose readers are known |
//!
//! Bodies that are in heap because they are small are not charged.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::account::UNLIMITED;
use crate::counters::Counters;
use crate::memory;

/// The default is one part in so many of the memory that the process may use.
const DEFAULT_PART: u64 = 8;
/// The smallest default in bytes; it holds a few bodies.
const MIN_DEFAULT: u64 = 16 << 20;

/// What a piece of heap is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Charge {
    /// Not charged: the body is small.
    #[default]
    None,
    /// A cached body that the store could not take.
    Cached,
    /// A body in transit: the limit of [`Charge::Cached`] is reached.
    Transit,
}

/// The bytes charged, and the limit of each charge.
pub(crate) struct FallbackHeap {
    limit: u64,
    counters: &'static Counters,
}

impl FallbackHeap {
    /// With a limit of `asked` bytes, or of a part of the machine's memory; never more than the storage's `size`.
    pub(crate) fn new(asked: Option<u64>, size: u64, counters: &'static Counters) -> FallbackHeap {
        FallbackHeap { limit: limit(asked, memory::available(), size), counters }
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    fn gauge(&self, charge: Charge) -> Option<&AtomicU64> {
        match charge {
            Charge::None => None,
            Charge::Cached => Some(&self.counters.g_fallback_bytes),
            Charge::Transit => Some(&self.counters.g_transit_bytes),
        }
    }

    /// Returns true if so many bytes could be charged now.
    pub(crate) fn has(&self, charge: Charge, bytes: u64) -> bool {
        self.gauge(charge).is_none_or(|gauge| bytes <= self.limit.saturating_sub(gauge.load(Relaxed)))
    }

    /// Charges `bytes`. Returns false if the limit does not allow it.
    #[must_use]
    pub(crate) fn take(&self, charge: Charge, bytes: u64) -> bool {
        let Some(gauge) = self.gauge(charge) else { return true };
        gauge.fetch_update(Relaxed, Relaxed, |used| used.checked_add(bytes).filter(|sum| *sum <= self.limit)).is_ok()
    }

    /// Charges `bytes`, whatever the limit.
    pub(crate) fn take_anyway(&self, charge: Charge, bytes: u64) {
        if let Some(gauge) = self.gauge(charge) {
            gauge.fetch_add(bytes, Relaxed);
        }
    }

    /// Ends the charge of `bytes`.
    pub(crate) fn give_back(&self, charge: Charge, bytes: u64) {
        if let Some(gauge) = self.gauge(charge) {
            gauge.fetch_sub(bytes, Relaxed);
        }
    }
}

fn limit(asked: Option<u64>, memory: Option<u64>, size: u64) -> u64 {
    let default = || memory.map_or(MIN_DEFAULT, |memory| (memory / DEFAULT_PART).max(MIN_DEFAULT));
    asked.unwrap_or_else(default).min(size).min(UNLIMITED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_of_the_memory_and_never_more_than_the_size() {
        const G: u64 = 1 << 30;
        assert_eq!(limit(None, Some(16 * G), UNLIMITED), 2 * G);
        assert_eq!(limit(None, Some(16 * G), G), G);
        assert_eq!(limit(None, Some(64 << 20), UNLIMITED), MIN_DEFAULT);
        assert_eq!(limit(None, None, UNLIMITED), MIN_DEFAULT);
        assert_eq!(limit(Some(5 * G), Some(16 * G), UNLIMITED), 5 * G);
        assert_eq!(limit(Some(5 * G), Some(16 * G), G), G);
    }

    #[test]
    fn each_charge_has_the_limit_and_comes_back() {
        let counters: &'static Counters = Box::leak(Box::default());
        let heap = FallbackHeap { limit: 100, counters };
        assert!(heap.take(Charge::Cached, 60) && !heap.take(Charge::Cached, 41) && heap.take(Charge::Cached, 40));
        assert!(heap.take(Charge::None, 1 << 40) && heap.take(Charge::Transit, 100) && !heap.take(Charge::Transit, 1));
        heap.take_anyway(Charge::Transit, 50);
        heap.give_back(Charge::Transit, 150);
        heap.give_back(Charge::None, 1 << 40);
        heap.give_back(Charge::Cached, 100);
        assert_eq!((counters.g_fallback_bytes.load(Relaxed), counters.g_transit_bytes.load(Relaxed)), (0, 0));
    }
}
