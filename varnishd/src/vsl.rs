//! Lines in the transaction log (vsl(7)). Those for the operator are `objmapper_log`'s.

use std::ops::Range;

use varnishd_sys::bindings::{SLT_FetchError, SLT_VCL_Log, VSLb, VSLbt, busyobj, txt, vsl_log};

use crate::text::c_text;

/// The log of a fetch.
pub fn of_fetch(bo: *mut busyobj) -> *mut vsl_log {
    // The member's address only: nothing is read.
    bo.cast::<u8>().wrapping_add(std::mem::offset_of!(busyobj, vsl)).cast()
}

/// A decision, in the transaction's log: `VCL_Log objmapper: …`.
///
/// # Safety
/// `vsl` must be null or the log of the calling thread's transaction.
pub unsafe fn decision(vsl: *mut vsl_log, text: &str) {
    if !vsl.is_null() {
        // SAFETY: by contract; a format that takes one string.
        unsafe { VSLb(vsl, SLT_VCL_Log, c"objmapper: %s".as_ptr(), c_text(text).as_ptr()) };
    }
}

/// Why a fetch failed, in the transaction's log.
///
/// # Safety
/// As for [`decision`].
pub unsafe fn fetch_error(vsl: *mut vsl_log, text: &str) {
    if !vsl.is_null() {
        // SAFETY: by contract; a format that takes one string.
        unsafe { VSLb(vsl, SLT_FetchError, c"objmapper: %s".as_ptr(), c_text(text).as_ptr()) };
    }
}

/// A line for a transaction's log. Made by hand: printf, or Rust's formatting, cost more than all else that a
/// delivery through a filter costs. 96 bytes at most.
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
    ///
    /// # Safety
    /// `vsl` must be the calling thread's transaction's.
    pub unsafe fn log(&self, vsl: *mut vsl_log) {
        let Range { start, end } = self.bytes[..self.len].as_ptr_range();
        // SAFETY: by contract; VSLbt copies the text.
        unsafe { VSLbt(vsl, SLT_VCL_Log, txt { b: start.cast(), e: end.cast() }) };
    }
}
