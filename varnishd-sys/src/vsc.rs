//! Counters in shared memory: those of varnishd that a stevedore touches, and segments of our own.

use core::ffi::{CStr, c_char, c_void};
use core::ops::Deref;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use objmapper_counters::CounterSet;

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
    /// Removes a segment. `class` must be the pointer that it was made with (Varnish: `common/common_vsc.c`).
    fn VRT_VSC_Destroy(class: *const c_char, seg: *mut VscSeg);
    /// Publishes `<class>.<ident>.*` (`shim.c`). `class` and `document` must stay where they are until it is removed.
    fn objm_vsc_alloc(
        seg: *mut *mut VscSeg,
        class: *const c_char,
        size: usize,
        document: *const u8,
        len: usize,
        fmt: *const c_char,
        ...
    ) -> *mut c_void;
}

/// Counters of our own in shared memory, as varnishstat(1) shows them. Removed when dropped.
pub struct Segment<T: CounterSet> {
    counters: NonNull<T>,
    seg: *mut VscSeg,
    class: &'static CStr,
}

// SAFETY: the counters are atomics (CounterSet) in memory that stays where it is until the segment is dropped; varnishd's
// functions take a lock of their own.
unsafe impl<T: CounterSet> Send for Segment<T> {}
// SAFETY: as above.
unsafe impl<T: CounterSet> Sync for Segment<T> {}

impl<T: CounterSet> Segment<T> {
    /// Publishes `<class>.<ident>.*`, all zero.
    pub fn new(class: &'static CStr, ident: &CStr) -> Segment<T> {
        let document = T::description().document();
        let mut seg = null_mut();
        // SAFETY: the format takes one string, which is copied; class and document are static. The memory is for `T` alone,
        // aligned to 16 bytes behind a header (VRT_VSC_Overhead), and zero: a `T` of atomics that are zero.
        let counters = unsafe {
            objm_vsc_alloc(
                &raw mut seg,
                class.as_ptr(),
                size_of::<T>(),
                document.as_ptr(),
                document.len(),
                c"%s".as_ptr(),
                ident.as_ptr(),
            )
        };
        // SAFETY: an address behind the header of a segment, which varnishd asserts to have.
        Segment { counters: unsafe { NonNull::new_unchecked(counters.cast::<T>()) }, seg, class }
    }
}

impl<T: CounterSet> Deref for Segment<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: made by `new`, and there until `drop`.
        unsafe { self.counters.as_ref() }
    }
}

impl<T: CounterSet> Drop for Segment<T> {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this class; nothing refers to the counters any more.
        unsafe { VRT_VSC_Destroy(self.class.as_ptr(), self.seg) };
    }
}

/// Returns true if this child is the first of its manager (Varnish: `mgt_launch_child`). The manager counts a child right behind
/// the fork, so that the second one may see 1 for a moment, as the first one does from then on: this waits up to
/// `patience` for the 2.
pub fn is_first_child(patience: Duration) -> bool {
    // SAFETY: `VSC_C_mgt` is set once, in `main` of the manager before any child is forked, to memory that is never freed
    // and that a child inherits; the layout is that of every branch that can be built for, and a counter is a
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

/// The index of `n_object` in `struct VSC_main_wrk`: it is the 35th of the members of group `wrk` in
/// `lib/libvsc/VSC_main.vsc`, in every branch that can be built for.
const N_OBJECT_INDEX: usize = 34;

/// Counts one object less for this worker, as every `objfree` must (Varnish: `storage/storage_simple.c`);
/// `STV_NewObject` counts it up.
///
/// # Safety
/// `wrk` must be the valid worker that varnishd handed to the calling thread.
pub unsafe fn one_object_less(wrk: *mut worker) {
    // SAFETY: by contract.
    unsafe { count_objects(wrk, u64::MAX) };
}

/// Counts an object that an earlier process has kept, as `STV_NewObject` counts a new one.
///
/// # Safety
/// As for [`one_object_less`].
pub unsafe fn one_object_more(wrk: *mut worker) {
    // SAFETY: by contract.
    unsafe { count_objects(wrk, 1) };
}

/// # Safety
/// As for [`one_object_less`].
unsafe fn count_objects(wrk: *mut worker, more: u64) {
    // SAFETY: `wrk` is valid by contract; `wrk->stats` points to this worker's own VSC_main_wrk for as long as it
    // runs (cache_wrk.c), no other thread writes it, and `n_object` is at this index in the release
    // that this was compiled for, which is the one that runs (`version::check`).
    unsafe {
        let stats = (*wrk).stats.cast::<u64>().add(N_OBJECT_INDEX);
        stats.write(stats.read().wrapping_add(more));
    }
}
