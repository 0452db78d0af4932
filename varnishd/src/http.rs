//! varnishd's `struct http`, read and written.

use varnishd_sys::bindings::{
    HTTP_HDR_FIRST, HTTP_HDR_METHOD, HTTP_HDR_REASON, HTTP_HDR_URL, http, http_GetStatus, txt,
};

use crate::cast::http_ref;

/// A head of varnishd's that does not change during `'a`.
#[derive(Clone, Copy)]
pub struct View<'a>(&'a http);

impl<'a> View<'a> {
    /// Returns a view of `head`.
    ///
    /// # Safety
    /// `head` must be null or a head of the calling thread's transaction that is neither changed nor freed during `'a`.
    pub(crate) unsafe fn new(head: *const http) -> View<'a> {
        // SAFETY: by contract.
        View(unsafe { http_ref(head) })
    }

    fn field(&self, index: u32) -> &'a [u8] {
        if index >= u32::from(self.0.nhd) {
            return &[];
        }
        // SAFETY: `hd` has `shd` elements, of which the first `nhd` are in use.
        let text: txt = unsafe { *self.0.hd.add(index as usize) };
        if text.b.is_null() || text.e < text.b {
            return &[];
        }
        // SAFETY: a txt's two pointers are the ends of one string, which lives as long as the head.
        unsafe { std::slice::from_raw_parts(text.b.cast::<u8>(), text.e.offset_from_unsigned(text.b)) }
    }

    /// Returns the method of a request.
    pub fn method(&self) -> &'a [u8] {
        self.field(HTTP_HDR_METHOD)
    }

    /// Returns the URL of a request.
    pub fn url(&self) -> &'a [u8] {
        self.field(HTTP_HDR_URL)
    }

    /// Returns the reason of a response.
    pub fn reason(&self) -> &'a [u8] {
        self.field(HTTP_HDR_REASON)
    }

    /// Returns the status of a response.
    pub fn status(&self) -> u16 {
        // SAFETY: a checked head.
        unsafe { http_GetStatus(self.0) }
    }

    /// Returns the header lines.
    pub fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        (HTTP_HDR_FIRST..u32::from(self.0.nhd)).map(move |index| self.field(index))
    }

    /// Returns the value of the first header of this name, without white space around it.
    pub fn header(self, name: &[u8]) -> Option<&'a [u8]> {
        self.lines().find_map(|line| value_of(line, name))
    }
}

/// Returns the value of a header line, if its name is this one.
pub fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// Returns the name of a header line.
pub fn name_of(line: &[u8]) -> &[u8] {
    line.split(|b| *b == b':').next().unwrap_or_default()
}

/// Returns the number of header lines that a head has room for.
///
/// # Safety
/// `head` must be a head of the calling thread's transaction.
pub(crate) unsafe fn max_lines(head: *const http) -> usize {
    // SAFETY: by contract.
    usize::from(unsafe { (*head).shd }).saturating_sub(HTTP_HDR_FIRST as usize)
}
