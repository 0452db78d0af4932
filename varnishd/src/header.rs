//! A header of a fetch's request by a name that is not varnishd's own, set and removed (Varnish: `cache/cache_http.c`).

use std::ffi::CStr;

use varnishd_sys::bindings::{http_SetHeader, http_Unset};
use varnishd_sys::branch::header_name;

use crate::fetch::Busyobj;
use crate::http::{View, max_lines};

/// The bytes that a workspace may lose to alignment.
const ALIGNMENT: usize = 16;

/// The name of a header.
#[derive(Debug, Clone, Copy)]
pub struct Header(&'static CStr);

impl Header {
    /// Returns the header with this name, given as varnishd keeps names: a byte with the length of the rest, the name, and a
    /// colon.
    ///
    /// # Panics
    /// At compile time, if the length is wrong or the colon is missing.
    #[must_use]
    pub const fn new(counted: &'static CStr) -> Header {
        let bytes = counted.to_bytes();
        assert!(bytes.len() > 2 && bytes[0] as usize == bytes.len() - 1, "the first byte is not the length");
        assert!(bytes[bytes.len() - 1] == b':', "no colon");
        Header(counted)
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &'static [u8] {
        let bytes = self.0.to_bytes();
        &bytes[1..bytes.len() - 1]
    }
}

impl Busyobj<'_> {
    /// Removes all lines of this name from the request.
    ///
    /// # Safety
    /// No view of the request that was made before may be used afterwards.
    pub unsafe fn unset_request_header(self, header: Header) {
        // SAFETY: the calling thread's request; the name is a constant of the form that varnishd asserts.
        unsafe { http_Unset((*self.as_ptr()).bereq, header_name(header.0)) };
    }

    /// Replaces all lines of this name in the request by one. Returns false, and leaves none, if there is no room for it. `value`
    /// must not contain NUL bytes or line ends.
    ///
    /// # Safety
    /// As for [`Self::unset_request_header`].
    pub unsafe fn set_request_header(self, header: Header, value: &[u8]) -> bool {
        let line = [header.name(), b": ", value].concat();
        let workspace = self.workspace();
        // SAFETY: by contract; the calling thread's request and workspace.
        unsafe {
            self.unset_request_header(header);
            let bereq = (*self.as_ptr()).bereq;
            let fits =
                line.len() + ALIGNMENT <= workspace.free_room() && View::new(bereq).lines().count() < max_lines(bereq);
            let line = if fits { workspace.copy(&line) } else { None };
            line.inspect(|line| http_SetHeader(bereq, *line)).is_some()
        }
    }
}
