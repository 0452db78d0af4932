//! Strings for C, and strings of C's.

use std::ffi::{CStr, CString, c_char};

use varnishd_sys::bindings::VSB_bcat;

use crate::raw::RawText;

/// Returns a text for C, which ends at its first NUL byte.
pub fn c_text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Returns a string of C's, without its NUL; `None` for null.
///
/// # Safety
/// `text` must be NUL-terminated and live for `'a`, or be null.
pub unsafe fn text<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: by contract.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Returns a string of VCL's, in which null is the empty string.
///
/// # Safety
/// As for [`text`].
pub unsafe fn bytes<'a>(string: *const c_char) -> &'a [u8] {
    // SAFETY: by contract.
    unsafe { text(string) }.unwrap_or_default()
}

/// Appends a text to one of varnishd's: a panic message, or a reply of the CLI.
///
/// # Safety
/// `to` must be what varnishd called with.
pub unsafe fn append(to: *mut RawText, text: &str) {
    // SAFETY: by contract; the bytes are copied.
    unsafe { VSB_bcat(to, text.as_ptr().cast(), isize::try_from(text.len()).unwrap_or(0)) };
}
