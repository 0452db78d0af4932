//! varnishd's regular expressions, compiled as those of bans are (Varnish: `cache/cache_ban_build.c`).

use std::ffi::CString;
use std::ptr::{NonNull, null};

use varnishd_sys::bindings::{VRE_ERROR_NOMATCH, VRE_compile, VRE_free, VRE_match, vre_t};

/// A compiled expression.
pub struct Regex(NonNull<vre_t>);

// SAFETY: a compiled expression is not written to by matching (pcre2 keeps what a match needs elsewhere), and is freed by
// its one owner.
unsafe impl Send for Regex {}
// SAFETY: as above.
unsafe impl Sync for Regex {}

impl Regex {
    /// Compiles an expression; `None` for one that cannot be compiled.
    pub fn compile(pattern: &[u8]) -> Option<Regex> {
        let pattern = CString::new(pattern).ok()?;
        let (mut error, mut offset) = (0, 0);
        // SAFETY: lib/libvarnish/vre.c reads a string and returns an expression of the caller's, or NULL.
        let compiled = unsafe { VRE_compile(pattern.as_ptr(), 0, &raw mut error, &raw mut offset, 1) };
        NonNull::new(compiled).map(Regex)
    }

    /// Returns whether the expression matches; `None` if that cannot be found out (a limit, or a NUL byte in `subject`).
    pub fn is_match(&self, subject: &[u8]) -> Option<bool> {
        let subject = CString::new(subject).ok()?;
        // SAFETY: a live expression and a NUL-terminated subject (length 0 says so); no limits but the built-in ones.
        let matched = unsafe { VRE_match(self.0.as_ptr(), subject.as_ptr(), 0, 0, null()) };
        // SAFETY: a constant of varnishd's.
        let no_match = unsafe { VRE_ERROR_NOMATCH };
        match matched {
            0.. => Some(true),
            _ if matched == no_match => Some(false),
            _ => None,
        }
    }
}

impl Drop for Regex {
    fn drop(&mut self) {
        let mut compiled = self.0.as_ptr();
        // SAFETY: its one owner frees it, once.
        unsafe { VRE_free(&raw mut compiled) };
    }
}
