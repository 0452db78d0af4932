//! varnishd's parameters (`param.show`).
//!
//! The CLI thread may change a parameter at any time; every function reads the value as it is now.

use varnishd_sys::bindings::cache_param;

/// The limits of the room that a fetch asks a storage for, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct FetchChunks {
    /// `fetch_chunksize`, at least 1.
    pub chunk: usize,
    /// `fetch_maxchunksize`, at least 1.
    pub max: usize,
}

/// Returns the limits of the room that a fetch asks for.
pub fn fetch_chunks() -> FetchChunks {
    // SAFETY: `cache_param` points to varnishd's parameters for as long as the child runs; another thread may change
    // one at any time, hence volatile reads.
    unsafe {
        let params = cache_param;
        let read = |field: *const isize| usize::try_from(field.read_volatile()).unwrap_or(0).max(1);
        FetchChunks {
            chunk: read(&raw const (*params).fetch_chunksize),
            max: read(&raw const (*params).fetch_maxchunksize),
        }
    }
}

/// Returns `idle_send_timeout`, in seconds.
pub fn idle_send_timeout() -> f64 {
    // SAFETY: as in `fetch_chunks`; varnishd sets the pointer before it loads a VCL.
    unsafe { (&raw const (*cache_param).idle_send_timeout).read_volatile() }
}

/// Returns how long varnishd's manager waits for its child to start, in seconds: `startup_timeout`, or `cli_timeout` if that is
/// longer.
pub fn start_timeout() -> f64 {
    // SAFETY: as in `fetch_chunks`.
    unsafe {
        let params = cache_param;
        let startup = (&raw const (*params).startup_timeout).read_volatile();
        let cli = (&raw const (*params).cli_timeout).read_volatile();
        startup.max(cli)
    }
}
