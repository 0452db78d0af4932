//! Counters in shared memory (varnishstat(1)).

use std::ffi::CStr;
use std::ptr::null_mut;

pub use varnishd_sys::vsc::Segment;
/// The counters of `-s malloc`.
pub use varnishd_sys::vsc::VscSma as MallocCounters;
/// Whether this child is the first of its manager.
pub use varnishd_sys::vsc::is_first_child;

/// Publishes a set of `SMA.<ident>.*`, which lives as long as the process.
pub fn malloc_counters(ident: &CStr) -> &'static MallocCounters {
    // SAFETY: a format that takes one string. The result is not null (varnishd asserts it), is never freed, and consists of atomics.
    unsafe { &*varnishd_sys::vsc::VSC_sma_New(null_mut(), null_mut(), c"%s".as_ptr(), ident.as_ptr()) }
}
