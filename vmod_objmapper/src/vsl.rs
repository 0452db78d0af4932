//! What is logged: a line per decision in the transaction log, and for the operator a line per change of state.

use std::io::Write;

use varnishd::text::c_text;
use varnishd_sys::bindings::{SLT_FetchError, SLT_VCL_Log, VSLb, vsl_log};

/// A decision, in the transaction's log: `VCL_Log objmapper: …`.
///
/// # Safety
/// `vsl` must be null or the log of the calling thread's transaction.
pub(crate) unsafe fn decision(vsl: *mut vsl_log, text: &str) {
    if !vsl.is_null() {
        // SAFETY: by contract; a format that takes one string.
        unsafe { VSLb(vsl, SLT_VCL_Log, c"objmapper: %s".as_ptr(), c_text(text).as_ptr()) };
    }
}

/// Why a fetch failed, in the transaction's log.
///
/// # Safety
/// As for [`decision`].
pub(crate) unsafe fn fetch_error(vsl: *mut vsl_log, text: &str) {
    if !vsl.is_null() {
        // SAFETY: by contract; a format that takes one string.
        unsafe { VSLb(vsl, SLT_FetchError, c"objmapper: %s".as_ptr(), c_text(text).as_ptr()) };
    }
}

/// A line where an operator looks: the child's standard error, which varnishd passes to syslog. In one piece: the storage
/// engine's copy of the standard library, with a lock of its own, writes there too. A full or closed one is no reason to
/// fail.
pub(crate) fn operator(who: &str, text: &str) {
    let _ = std::io::stderr().write_all(format!("objmapper director {who}: {text}\n").as_bytes());
}
