//! `OBJM.<ident>.*`: the counters of a storage beside those of `-s malloc`, which are `SMA.<ident>.*`.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use objmapper_client::Outage;

objmapper_counters::counters! {
/// The counters of one storage, in shared memory for varnishstat(1).
///
/// The documentation of each is what varnishstat shows. Gauges begin with `g_`.
pub struct Counters {
    /// Bodies in heap
    ///
    /// Bodies, or pieces of bodies, that live in varnishd's own memory.
    #[gauge]
    pub g_heap_pieces: AtomicU64,
    /// Bytes of bodies in heap
    #[gauge(format = "bytes")]
    pub g_heap_bytes: AtomicU64,
    /// Bytes of heap of cached bodies that objmapper could not take
    ///
    /// Among 'g_heap_bytes'. Their limit is the option 'fallback_heap'.
    #[gauge(format = "bytes")]
    pub g_fallback_bytes: AtomicU64,
    /// Bytes of heap of bodies that are delivered and not cached
    ///
    /// Among 'g_heap_bytes': 'fallback_heap' was used up when they came in. See 'c_transit'.
    #[gauge(format = "bytes")]
    pub g_transit_bytes: AtomicU64,
    /// Bodies in objmapper
    #[gauge]
    pub g_bodies: AtomicU64,
    /// Bytes of bodies in objmapper
    ///
    /// As the storage's limit counts them. objmapper itself counts whole pages.
    #[gauge(format = "bytes")]
    pub g_body_bytes: AtomicU64,
    /// Descriptors of cached bodies that are open
    #[gauge]
    pub g_fds: AtomicU64,
    /// Cached bodies that are mapped
    #[gauge]
    pub g_maps: AtomicU64,
    /// Bodies that are written, or that leave the cache unpublished
    ///
    /// Each holds two descriptors and a buffer of at most 256 KiB; one that objmapper refused to publish, and that heap
    /// could not take either, holds one descriptor until its readers are done.
    #[gauge]
    pub g_writing: AtomicU64,
    /// 1 while objmapper takes bodies
    ///
    /// 0 while it does not answer, and from a body that it could not take in full (create, write and publish) until it
    /// takes one again. While it does not, the background thread tries with a body of its own.
    #[gauge]
    pub g_happy: AtomicU64,
    /// Bodies opened again
    ///
    /// A body that is published stays open at first. Its descriptor had been closed since, to stay below 'fds' or
    /// because the process ran out of descriptors.
    #[counter]
    pub c_opened: AtomicU64,
    /// Bodies mapped
    ///
    /// The first time that a cached body is delivered by HTTP/1 without a filter, and again after its mapping was dropped.
    #[counter]
    pub c_mapped: AtomicU64,
    /// Descriptors closed to stay below 'fds'
    #[counter]
    pub c_fds_closed: AtomicU64,
    /// Mappings dropped to stay below 'maps'
    #[counter]
    pub c_maps_dropped: AtomicU64,
    /// Bodies published in objmapper
    #[counter]
    pub c_published: AtomicU64,
    /// Objects evicted ahead of need
    ///
    /// By the background thread, so that a fetch finds room. LRU evictions of a fetch itself are MAIN.n_lru_nuked only.
    #[counter]
    pub c_evicted_ahead: AtomicU64,
    /// Bodies kept in heap: objmapper is not connected, or does not serve this varnishd
    #[counter]
    pub c_fallback_down: AtomicU64,
    /// Bodies kept in heap: objmapper is full
    #[counter]
    pub c_fallback_full: AtomicU64,
    /// Bodies kept in heap: objmapper did not answer in time
    #[counter]
    pub c_fallback_timeout: AtomicU64,
    /// Bodies kept in heap: input or output, or no descriptors or memory
    #[counter]
    pub c_fallback_io: AtomicU64,
    /// Bodies kept in heap: objmapper broke the protocol or refused a request
    #[counter]
    pub c_fallback_protocol: AtomicU64,
    /// Bodies that begin in objmapper and continue in heap
    ///
    /// objmapper failed while the body came in. What is in the file is published alone, or copied to heap.
    #[counter]
    pub c_mixed: AtomicU64,
    /// Bodies that objmapper lost, or whose files cannot be read
    ///
    /// Their objects are taken out of the cache.
    #[counter]
    pub c_lost: AtomicU64,
    /// Bodies that could not be published
    ///
    /// They are copied to heap if 'fallback_heap' has room ('c_publish_copied'). Else they are delivered to the requests
    /// that wait for them, and leave the cache at once.
    #[counter]
    pub c_body_failed: AtomicU64,
    /// Bodies copied to heap because they could not be published
    #[counter]
    pub c_publish_copied: AtomicU64,
    /// Bodies delivered, but not cached
    ///
    /// objmapper could not take them, and 'fallback_heap' was used up. If the response is streamed, the fetch waits for
    /// its readers, so that the body never takes more than 1 MiB beyond what it had.
    #[counter]
    pub c_transit: AtomicU64,
    /// Bodies that could be neither cached nor delivered
    ///
    /// As 'c_transit', but the response is not streamed (ESI, 'beresp.do_stream') and all of its kind have taken as much
    /// as 'fallback_heap' again; or nothing waits for the body any more.
    #[counter]
    pub c_transit_failed: AtomicU64,
    /// Bodies published as records
    ///
    /// Other caches that use the store find them. They are among 'c_published'.
    #[counter]
    pub c_records: AtomicU64,
    /// Records not published: deleted meanwhile
    ///
    /// The URI was purged while its object was fetched. The object itself is not concerned.
    #[counter]
    pub c_record_conflict: AtomicU64,
    /// Records not published: other reasons
    #[counter]
    pub c_record_failed: AtomicU64,
    /// Records that became the body of an object, without a copy
    #[counter]
    pub c_adopted: AtomicU64,
    /// Records that were pinned, but could not become the body of an object
    ///
    /// There was no room for them below the limit, they could not be opened, or another filter writes the bytes. The
    /// body is copied.
    #[counter]
    pub c_adopt_fallback: AtomicU64,
    /// Deliveries without a copy
    ///
    /// Of bodies in objmapper, by the filter 'objmapper', in whole or in part.
    #[counter]
    pub c_zero_copy: AtomicU64,
    /// Bytes delivered without a copy
    #[counter(format = "bytes")]
    pub b_zero_copy: AtomicU64,
    /// Connections of clients on the same machine that were taken off BBR's pacing
    ///
    /// They had a large body sent without a copy, and have the congestion control 'reno' from then on.
    #[counter]
    pub c_unpaced: AtomicU64,
    /// Bytes of bodies in objmapper that were copied although the filter was there
    ///
    /// For any reason that c_copy_* counts, HTTP/2 and ESI's includes too.
    #[counter(format = "bytes")]
    pub b_copy: AtomicU64,
    /// Deliveries with a copy: in heap, or too small
    #[counter]
    pub c_copy_small: AtomicU64,
    /// Deliveries with a copy: streaming
    ///
    /// A client that keeps up with a running fetch is given bytes before they are in a file.
    #[counter]
    pub c_copy_streaming: AtomicU64,
    /// Deliveries with a copy: HTTP/2
    #[counter]
    pub c_copy_http2: AtomicU64,
    /// Deliveries with a copy: chunked
    ///
    /// The length was not known yet when the response began, or another filter changes it.
    #[counter]
    pub c_copy_chunked: AtomicU64,
    /// Deliveries with a copy: changed by another filter
    ///
    /// gunzip, esi, or one of another VMOD; and what ESI includes.
    #[counter]
    pub c_copy_filtered: AtomicU64,
    /// Deliveries with a copy: 'zero_copy=off'
    #[counter]
    pub c_copy_off: AtomicU64,
    /// Deliveries with a copy: the kernel could not, or there was no memory
    #[counter]
    pub c_copy_other: AtomicU64,
    /// Connections to objmapper lost
    #[counter]
    pub c_disconnects: AtomicU64,
    /// Connections to objmapper made again
    #[counter]
    pub c_reconnects: AtomicU64,
    /// 1 while objects are kept for the next start ('persist')
    ///
    /// 0 without 'persist', while the directory cannot be written, and after a removal could not be written: then nothing is
    /// kept until varnishd starts its child again.
    #[gauge]
    pub g_persisting: AtomicU64,
    /// Objects that the next start finds
    #[gauge]
    pub g_persisted: AtomicU64,
    /// Bytes of segments: heads and small bodies that the next start finds, and the room of removed ones
    #[gauge(format = "bytes")]
    pub g_persist_bytes: AtomicU64,
    /// Objects written for the next start
    #[counter]
    pub c_persisted: AtomicU64,
    /// Bytes of heads and small bodies written for the next start
    ///
    /// Records that are copied forward from mostly empty segments are among them.
    #[counter(format = "bytes")]
    pub b_persisted: AtomicU64,
    /// Objects not kept for the next start: the disk is slower than they come
    #[counter]
    pub c_persist_backlog: AtomicU64,
    /// Objects not kept for the next start: their head and their body in heap are too large
    #[counter]
    pub c_persist_large: AtomicU64,
    /// Objects not kept for the next start: their body is not in one place
    ///
    /// It begins in objmapper and continues in heap, or cannot be read: see 'c_mixed' and 'c_fallback_*'.
    #[counter]
    pub c_persist_mixed: AtomicU64,
    /// Errors: input or output on what is kept for the next start
    #[counter]
    pub c_err_persist: AtomicU64,
    /// Objects that this start found
    #[counter]
    pub c_reloaded: AtomicU64,
    /// Bytes of the objects that this start found
    #[counter(format = "bytes")]
    pub b_reloaded: AtomicU64,
    /// Milliseconds that it took to find them
    #[gauge]
    pub g_reload_ms: AtomicU64,
    /// Objects that this start dropped: expired
    #[counter]
    pub c_reload_expired: AtomicU64,
    /// Objects that this start dropped: above 'size'
    ///
    /// The newest are loaded first.
    #[counter]
    pub c_reload_size: AtomicU64,
    /// Objects that this start dropped: damaged, or of the future
    #[counter]
    pub c_reload_damaged: AtomicU64,
    /// Objects that this start dropped: their body is not in the store
    #[counter]
    pub c_reload_lost: AtomicU64,
    /// Objects that this start dropped: loading took too long
    ///
    /// Half of 'startup_timeout', or of 'cli_timeout' if that is longer.
    #[counter]
    pub c_reload_late: AtomicU64,
    /// Times that this start discarded everything
    ///
    /// 1: the storage started empty although objects had been kept. The child's log says why.
    #[counter]
    pub c_reload_discarded: AtomicU64,
    /// Errors: input or output on a body's file, or no descriptors or memory
    ///
    /// A body's file that finds its disk full is no error, but counted as 'c_fallback_full'.
    #[counter]
    pub c_err_io: AtomicU64,
    /// Errors: objmapper broke the protocol or refused a request
    #[counter]
    pub c_err_protocol: AtomicU64,
    /// Errors: a deadline passed
    #[counter]
    pub c_err_timeout: AtomicU64,
    /// Errors inside the engine
    ///
    /// A panic was caught at the boundary to varnishd. Please report it.
    #[counter]
    pub c_err_internal: AtomicU64,
}
}

impl Counters {
    /// Counts a store request that failed. An outage and a full store are states: what they cost is counted by
    /// [`Counters::fallback`] and by the outcome.
    pub(crate) fn outage(&self, kind: Outage) {
        match kind {
            Outage::Down | Outage::Full => {}
            Outage::Timeout => add(&self.c_err_timeout, 1),
            Outage::Io => add(&self.c_err_io, 1),
            Outage::Protocol => add(&self.c_err_protocol, 1),
        }
    }

    /// Counts a body that stays in heap because a store request failed.
    pub(crate) fn fallback(&self, kind: Outage) {
        let counter = match kind {
            Outage::Down => &self.c_fallback_down,
            Outage::Timeout => &self.c_fallback_timeout,
            Outage::Full => &self.c_fallback_full,
            Outage::Io => &self.c_fallback_io,
            Outage::Protocol => &self.c_fallback_protocol,
        };
        add(counter, 1);
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

/// Lowers a gauge.
pub fn sub(gauge: &AtomicU64, n: u64) {
    gauge.fetch_sub(n, Relaxed);
}
