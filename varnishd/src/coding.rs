//! What a response's head says of the coding of a stored body, as varnishd's filters make it say when they code the body
//! (Varnish: `cache/cache_gzip.c`, `cache/cache_esi_fetch.c`).

use varnishd_sys::bindings::{RFC2616_Vary_AE, RFC2616_Weaken_Etag};

use crate::attributes::body_flags;
use crate::fetch::Busyobj;

impl Busyobj<'_> {
    /// Has the head of the response say that its body is coded as an object's with these flags ([`body_flags`]): the ETag is
    /// weak if the body is not coded as the origin's was, and Vary names Accept-Encoding if it is gzip'ed.
    ///
    /// # Safety
    /// No view of the response that was made before may be used afterwards.
    pub unsafe fn describe_coding(self, flags: u8) {
        // SAFETY: the calling thread's response. Where the workspace is full, varnishd marks it, and fails the fetch.
        unsafe {
            let head = (*self.as_ptr()).beresp;
            if flags & body_flags::RECODED != 0 {
                RFC2616_Weaken_Etag(head);
            }
            if flags & body_flags::GZIPPED != 0 {
                RFC2616_Vary_AE(head);
            }
        }
    }
}
