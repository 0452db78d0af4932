//! `OBJM.<vcl>.<name>.*`: the counters of a director and its second level.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

objmapper_counters::counters! {
/// The counters of one director, in shared memory for varnishstat(1).
///
/// The documentation of each is what varnishstat shows. Gauges begin with `g_`.
pub struct Counters {
    /// Look-ups answered by objmapper
    #[counter]
    pub c_hits: AtomicU64,
    /// Look-ups that went to the origin
    #[counter]
    pub c_misses: AtomicU64,
    /// Stale records that the origin confirmed (304)
    #[counter]
    pub c_revalidated: AtomicU64,
    /// Stale records served because the origin did not answer
    #[counter]
    pub c_stale: AtomicU64,
    /// Requests that were not looked up
    #[counter]
    pub c_bypassed: AtomicU64,
    /// Bodies adopted from objmapper without a copy
    #[counter]
    pub c_adopted: AtomicU64,
    /// Bytes of adopted bodies
    #[counter(format = "bytes")]
    pub b_adopted: AtomicU64,
    /// Bytes of bodies copied from objmapper
    #[counter(format = "bytes")]
    pub b_copied: AtomicU64,
    /// Responses published
    #[counter]
    pub c_published: AtomicU64,
    /// Bytes of bodies published
    #[counter(format = "bytes")]
    pub b_published: AtomicU64,
    /// Responses not published: purged or banned meanwhile
    #[counter]
    pub c_publish_conflict: AtomicU64,
    /// Responses not published: another cache published first
    #[counter]
    pub c_publish_overtaken: AtomicU64,
    /// Responses not published: the store request failed
    #[counter]
    pub c_publish_failed: AtomicU64,
    /// Responses not published: too large for objmapper
    #[counter]
    pub c_publish_too_large: AtomicU64,
    /// Responses not published: they vary by too much
    #[counter]
    pub c_unmatchable: AtomicU64,
    /// Records renewed after a 304
    #[counter]
    pub c_renewed: AtomicU64,
    /// Fetches whose response cannot be shared: others do not wait
    #[counter]
    pub c_uncacheable: AtomicU64,
    /// Look-ups that wait for another's fetch
    #[gauge]
    pub g_waiting: AtomicU64,
    /// Look-ups that waited for another's fetch and found it
    #[counter]
    pub c_waited: AtomicU64,
    /// Look-ups that waited for another's fetch in vain
    #[counter]
    pub c_wait_timeout: AtomicU64,
    /// Look-ups that did not wait for another's fetch: they were it, or were told not to
    #[counter]
    pub c_not_waited: AtomicU64,
    /// Look-ups of a response that cannot be shared
    #[counter]
    pub c_refused: AtomicU64,
    /// Records removed because a ban or a purge matches them
    #[counter]
    pub c_outlawed: AtomicU64,
    /// Records removed because they do not validate or cannot be read
    #[counter]
    pub c_damaged: AtomicU64,
    /// Purges of a key or of tags
    #[counter]
    pub c_purges: AtomicU64,
    /// Purges that objmapper did not confirm
    #[counter]
    pub c_purge_failed: AtomicU64,
    /// Look-ups that missed because a ban was being recorded
    #[counter]
    pub c_bans_pending: AtomicU64,
    /// Bytes of the invalidation log that are in use
    ///
    /// Superseded entries do not count. When this comes near three quarters of the director's *log_size*, the oldest
    /// entries are dropped (c_log_trimmed).
    #[gauge(format = "bytes")]
    pub g_log_bytes: AtomicU64,
    /// Invalidations dropped from the log: older records are invalid
    ///
    /// The invalidation log has reached *log_size*. Every record that is older than a dropped entry is a miss.
    #[counter]
    pub c_log_trimmed: AtomicU64,
    /// Outages: not connected, or not served
    #[counter]
    pub c_out_down: AtomicU64,
    /// Outages: no answer in time
    #[counter]
    pub c_out_timeout: AtomicU64,
    /// Outages: full
    #[counter]
    pub c_out_full: AtomicU64,
    /// Outages: input or output, or no descriptors or memory
    #[counter]
    pub c_out_io: AtomicU64,
    /// Outages: protocol or refusal
    #[counter]
    pub c_out_protocol: AtomicU64,
    /// Microseconds spent in look-ups
    #[counter]
    pub t_find_us: AtomicU64,
    /// Microseconds of them spent waiting for another's fetch
    #[counter]
    pub t_wait_us: AtomicU64,
    /// Microseconds spent in publishing
    #[counter]
    pub t_publish_us: AtomicU64,
    /// 1 while objmapper can be used
    #[gauge]
    pub g_up: AtomicU64,
}
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// Lowers a gauge.
    pub fn sub(gauge: &AtomicU64, n: u64) {
        gauge.fetch_sub(n, Relaxed);
    }
}
