//! Shared-memory counters of varnishd that a stevedore touches.

use core::ffi::c_char;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::bindings::worker;

/// `struct VSC_sma` (generated from Varnish's `lib/libvsc/VSC_sma.vsc`): the seven counters of `-s malloc`.
///
/// varnishd updates its own under a lock; nothing but the engine that made them writes ours, so that they are atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VscSma {
    /// Allocator requests.
    pub c_req: AtomicU64,
    /// Allocator failures.
    pub c_fail: AtomicU64,
    /// Bytes allocated.
    pub c_bytes: AtomicU64,
    /// Bytes freed.
    pub c_freed: AtomicU64,
    /// Allocations outstanding.
    pub g_alloc: AtomicU64,
    /// Bytes outstanding.
    pub g_bytes: AtomicU64,
    /// Bytes available.
    pub g_space: AtomicU64,
}

/// A cluster of counters; opaque, always null here.
#[repr(C)]
pub struct VsmwCluster {
    _opaque: [u8; 0],
}

/// A segment of counters; opaque.
#[repr(C)]
pub struct VscSeg {
    _opaque: [u8; 0],
}

/// The beginning of `struct VSC_mgt` (generated from Varnish's `lib/libvsc/VSC_mgt.vsc`): the manager's counters.
#[repr(C)]
struct VscMgt {
    uptime: AtomicU64,
    child_start: AtomicU64,
}

unsafe extern "C" {
    /// The manager's counters (Varnish: `mgt/mgt_main.c`).
    static VSC_C_mgt: *const VscMgt;
    /// Publishes `SMA.<ident>.*`. The format is printf's.
    pub fn VSC_sma_New(cluster: *mut VsmwCluster, seg: *mut *mut VscSeg, fmt: *const c_char, ...) -> *mut VscSma;
}

/// Tells a child whether it is the first of its manager (Varnish: `mgt_launch_child`). The manager counts a child right behind
/// the fork, so that the second one may see 1 for a moment, as the first one does from then on: this waits up to
/// `patience` for the 2.
pub fn is_first_child(patience: Duration) -> bool {
    // SAFETY: `VSC_C_mgt` is set once, in `main` of the manager before any child is forked, to memory that is never freed
    // and that a child inherits; the layout is that of the supported branch (checked by `version::check`), and a counter is a
    // 64-bit word that is read atomically.
    let Some(counters) = (unsafe { VSC_C_mgt.as_ref() }) else { return true };
    let asked = Instant::now();
    loop {
        match counters.child_start.load(Relaxed) {
            0 => return true,
            1 if asked.elapsed() < patience => std::thread::sleep(Duration::from_millis(1)),
            started => return started == 1,
        }
    }
}

/// Where `n_object` is in `struct VSC_main_wrk`: the 35th of the members of group `wrk` in Varnish 7.7's
/// `lib/libvsc/VSC_main.vsc`.
const N_OBJECT_INDEX: usize = 34;

/// Counts one object less for this worker, as every `objfree` must (Varnish: `storage/storage_simple.c`);
/// `STV_NewObject` counts it up.
///
/// # Safety
/// `wrk` must be the valid worker that varnishd handed to the calling thread.
pub unsafe fn one_object_less(wrk: *mut worker) {
    // SAFETY: `wrk` is valid by contract; `wrk->stats` points to this worker's own VSC_main_wrk for as long as it
    // runs (cache_wrk.c), no other thread writes it, and `n_object` is at this index in the supported branch
    // (checked against the branch that runs by `version::check`).
    unsafe {
        let stats = (*wrk).stats.cast::<u64>().add(N_OBJECT_INDEX);
        stats.write(stats.read().wrapping_sub(1));
    }
}
