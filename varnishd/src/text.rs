//! Strings for C, and strings of C's.

use std::ffi::{CStr, CString, c_char};

/// A text for C: it ends at its first NUL byte.
pub fn c_text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// A string of C's, without its NUL; `None` for null.
///
/// # Safety
/// `text` must be NUL-terminated and live for `'a`, or be null.
pub unsafe fn text<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: by contract.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A string of VCL's, in which null is the empty string.
///
/// # Safety
/// As for [`text`].
pub unsafe fn bytes<'a>(string: *const c_char) -> &'a [u8] {
    // SAFETY: by contract.
    unsafe { text(string) }.unwrap_or_default()
}
