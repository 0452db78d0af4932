//! varnishd's `struct http`, read and written.

use std::ffi::{c_char, c_void};

use objmapper_l2::RequestView;
use varnishd::cast::http_ref;
use varnishd_sys::bindings::{
    HTTP_HDR_FIRST, HTTP_HDR_METHOD, HTTP_HDR_REASON, HTTP_HDR_URL, WS_Copy, WS_Release, WS_ReserveAll, http,
    http_GetStatus, txt, ws,
};

/// A head of varnishd's that nobody changes while we look at it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a>(&'a http);

impl<'a> View<'a> {
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

    /// The method of a request.
    pub(crate) fn method(&self) -> &'a [u8] {
        self.field(HTTP_HDR_METHOD)
    }

    /// The URL of a request.
    pub(crate) fn url(&self) -> &'a [u8] {
        self.field(HTTP_HDR_URL)
    }

    /// The reason of a response.
    pub(crate) fn reason(&self) -> &'a [u8] {
        self.field(HTTP_HDR_REASON)
    }

    /// The status of a response.
    pub(crate) fn status(&self) -> u16 {
        // SAFETY: a checked head.
        unsafe { http_GetStatus(self.0) }
    }

    /// The header lines.
    pub(crate) fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        (HTTP_HDR_FIRST..u32::from(self.0.nhd)).map(move |index| self.field(index))
    }

    /// The value of the first header of this name, without white space around it.
    pub(crate) fn header(self, name: &[u8]) -> Option<&'a [u8]> {
        self.lines().find_map(|line| value_of(line, name))
    }
}

impl RequestView for View<'_> {
    fn url(&self) -> &[u8] {
        View::url(self)
    }

    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        View::header(*self, name)
    }
}

/// The value of a header line, if its name is this one.
pub(crate) fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// The name of a header line.
pub(crate) fn name_of(line: &[u8]) -> &[u8] {
    line.split(|b| *b == b':').next().unwrap_or_default()
}

/// How many header lines a head has room for.
///
/// # Safety
/// `head` must be a head of the calling thread's transaction.
pub(crate) unsafe fn most_lines(head: *const http) -> usize {
    // SAFETY: by contract.
    usize::from(unsafe { (*head).shd }).saturating_sub(HTTP_HDR_FIRST as usize)
}

/// Bytes that are free in a workspace.
///
/// # Safety
/// `ws` must be the workspace of the calling thread's transaction, with nothing reserved.
pub(crate) unsafe fn free_room(ws: *mut ws) -> usize {
    // SAFETY: by contract; what is reserved is released at once.
    unsafe {
        let free = WS_ReserveAll(ws);
        WS_Release(ws, 0);
        free as usize
    }
}

/// A NUL-terminated copy in a workspace; `None` if it has no room. `parts` must not contain NUL bytes.
///
/// # Safety
/// `ws` must be the workspace of the calling thread's transaction.
pub(crate) unsafe fn copy(ws: *mut ws, text: &[u8]) -> Option<*const c_char> {
    let mut text = text.to_vec();
    text.push(0);
    let len = i32::try_from(text.len()).ok()?;
    // SAFETY: by contract; WS_Copy copies `len` bytes, or returns NULL.
    let copied = unsafe { WS_Copy(ws, text.as_ptr().cast::<c_void>(), len) };
    (!copied.is_null()).then_some(copied.cast_const().cast())
}
