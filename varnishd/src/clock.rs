//! The clock that varnishd takes the times of objects from.

use varnishd_sys::bindings::VTIM_real;

/// Returns the time in seconds since 1970.
pub fn now() -> f64 {
    // SAFETY: the function only reads the clock.
    unsafe { VTIM_real() }
}
