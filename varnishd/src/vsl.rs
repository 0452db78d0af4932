//! Lines in the transaction log (vsl(7)). Those for the operator are `objmapper_log`'s.

use std::marker::PhantomData;
use std::ops::Range;

use varnishd_sys::bindings::{SLT_FetchError, SLT_VCL_Log, VSLb, VSLbt, txt, vsl_log};

use crate::text::c_text;

/// The log of the calling thread's transaction, for `'a`; or none, into which nothing is written.
#[derive(Clone, Copy)]
pub struct Log<'a>(*mut vsl_log, PhantomData<&'a vsl_log>);

impl Log<'_> {
    /// Returns the log at an address.
    ///
    /// # Safety
    /// `log` must be null or the log of the calling thread's transaction, for the lifetime of the result.
    pub(crate) unsafe fn new<'a>(log: *mut vsl_log) -> Log<'a> {
        Log(log, PhantomData)
    }

    pub(crate) fn as_ptr(self) -> *mut vsl_log {
        self.0
    }

    /// Writes a decision: `VCL_Log objmapper: …`.
    pub fn decision(self, text: &str) {
        if !self.0.is_null() {
            // SAFETY: by contract of `new`; a format that takes one string.
            unsafe { VSLb(self.0, SLT_VCL_Log, c"objmapper: %s".as_ptr(), c_text(text).as_ptr()) };
        }
    }

    /// Writes why a fetch failed: `FetchError objmapper: …`.
    pub fn fetch_error(self, text: &str) {
        if !self.0.is_null() {
            // SAFETY: by contract of `new`; a format that takes one string.
            unsafe { VSLb(self.0, SLT_FetchError, c"objmapper: %s".as_ptr(), c_text(text).as_ptr()) };
        }
    }
}

/// A line for a transaction's log, of at most 96 bytes. It is made by hand, because printf, or Rust's formatting, would cost more than
/// the rest of a delivery through a filter.
pub struct Line {
    bytes: [u8; 96],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line::new()
    }
}

impl Line {
    /// An empty line.
    #[must_use]
    pub fn new() -> Line {
        Line { bytes: [0; 96], len: 0 }
    }

    /// Appends a text.
    pub fn text(&mut self, text: &str) -> &mut Line {
        self.add(text.as_bytes())
    }

    /// Appends a number, in decimal.
    pub fn number(&mut self, number: u64) -> &mut Line {
        let (mut digits, mut at, mut left) = ([b'0'; 20], 20, number);
        while left > 0 || at == 20 {
            at -= 1;
            digits[at] += (left % 10) as u8;
            left /= 10;
        }
        self.add(&digits[at..])
    }

    /// What does not fit is left out.
    fn add(&mut self, part: &[u8]) -> &mut Line {
        let room = &mut self.bytes[self.len..];
        let len = part.len().min(room.len());
        room[..len].copy_from_slice(&part[..len]);
        self.len += len;
        self
    }

    /// Writes the line as a decision: `VCL_Log`.
    pub fn write(&self, log: Log<'_>) {
        if !log.0.is_null() {
            let Range { start, end } = self.bytes[..self.len].as_ptr_range();
            // SAFETY: by contract of `Log::new`; the text is copied.
            unsafe { VSLbt(log.0, SLT_VCL_Log, txt { b: start.cast(), e: end.cast() }) };
        }
    }
}
