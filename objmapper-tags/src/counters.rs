//! `OBJM_L1.follow.*`: what was invalidated in varnishd's own cache.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

objmapper_counters::counters! {
/// The counters of one process, in shared memory for varnishstat(1).
///
/// The documentation of each is what varnishstat shows. Gauges begin with `g_`.
pub struct Counters {
    /// Bans of other caches that were applied here
    #[counter]
    pub c_bans: AtomicU64,
    /// Bans that varnishd could not be told as they are: everything was banned
    #[counter]
    pub c_bans_widened: AtomicU64,
    /// Purges of a key by other caches that were applied here
    #[counter]
    pub c_purges: AtomicU64,
    /// Purges of a tag by other caches that were applied here
    #[counter]
    pub c_tags: AtomicU64,
    /// Times that everything older was banned, because entries of other caches may have been missed
    #[counter]
    pub c_all: AtomicU64,
    /// Entries of other caches that came faster than they could be applied: everything was banned
    #[counter]
    pub c_overflow: AtomicU64,
    /// Objects that a purge of a key has invalidated, by objmapper
    #[counter]
    pub c_objects_by_key: AtomicU64,
    /// Objects that a purge of a tag has invalidated
    #[counter]
    pub c_objects_by_tag: AtomicU64,
    /// Objects that were being fetched when their key or a tag of theirs was purged
    #[counter]
    pub c_objects_in_flight: AtomicU64,
    /// Objects that were in the cache already and have been searched for tags
    #[counter]
    pub c_objects_searched: AtomicU64,
    /// Pairs of an object and a tag that are known
    #[gauge]
    pub g_tags: AtomicU64,
    /// Bytes that they take, about
    #[gauge(format = "bytes")]
    pub g_tag_bytes: AtomicU64,
    /// Entries of other caches that are still to be applied
    #[gauge]
    pub g_pending: AtomicU64,
}
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }
}
