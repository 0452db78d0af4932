//! varnishd's regular expressions, for bans: compiled as `ban_parse_regexp` (cache/cache_ban_build.c) does.

use std::ffi::CString;
use std::ptr::{NonNull, null};

use objmapper_records::{Regex, Regexes};
use varnishd_sys::bindings::{VRE_ERROR_NOMATCH, VRE_compile, VRE_free, VRE_match, vre_t};

/// varnishd's.
pub(crate) struct Vre;

struct Compiled(NonNull<vre_t>);

// SAFETY: a compiled expression is not written to by matching (pcre2 keeps what a match needs elsewhere), and is freed by
// its one owner.
unsafe impl Send for Compiled {}
// SAFETY: as above.
unsafe impl Sync for Compiled {}

impl Regexes for Vre {
    fn compile(&self, pattern: &[u8]) -> Option<Box<dyn Regex>> {
        let pattern = CString::new(pattern).ok()?;
        let (mut error, mut offset) = (0, 0);
        // SAFETY: VRE_compile (lib/libvarnish/vre.c) reads a string and returns an expression of the caller's, or NULL.
        let compiled = unsafe { VRE_compile(pattern.as_ptr(), 0, &raw mut error, &raw mut offset, 1) };
        Some(Box::new(Compiled(NonNull::new(compiled)?)))
    }
}

impl Regex for Compiled {
    fn is_match(&self, subject: &[u8]) -> Option<bool> {
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

impl Drop for Compiled {
    fn drop(&mut self) {
        let mut compiled = self.0.as_ptr();
        // SAFETY: its one owner frees it, once.
        unsafe { VRE_free(&raw mut compiled) };
    }
}
