//! The delivery (Varnish: `struct vdp_ctx`) that consumes a body: what its filters do with the bytes, and how it is told
//! that the body cannot be had.

use std::ffi::c_void;
use std::ptr::{NonNull, addr_eq};

use varnishd::cast::has_magic;
use varnishd::delivery_filters;
use varnishd_sys::bindings::{SC_NULL, SC_TX_ERROR, vdp_ctx, vdp_entry};
use varnishd_sys::http1::{V1l, VDP_ObjIterate, VDP_range, VDP_v1l};
use varnishd_sys::obj_methods::ObjIterateFn;

/// A delivery of the calling thread's.
#[derive(Clone, Copy)]
pub(crate) struct Delivery(NonNull<vdp_ctx>);

impl Delivery {
    /// The delivery behind what a body is iterated with; `None`: it is something else.
    ///
    /// # Safety
    /// `func` and `private` must be what varnishd called `objiterator` with, in this thread. The result must not be used
    /// after that call.
    pub(crate) unsafe fn of(func: ObjIterateFn, private: *mut c_void) -> Option<Delivery> {
        if !std::ptr::fn_addr_eq(func, VDP_ObjIterate as ObjIterateFn) {
            return None;
        }
        let found = NonNull::new(private.cast::<vdp_ctx>())?;
        // SAFETY: the private of VDP_ObjIterate is a delivery.
        unsafe { has_magic(found.as_ptr()) }.then_some(Delivery(found))
    }

    /// As [`VDP_ObjIterate`] wants it.
    pub(crate) fn private(self) -> *mut c_void {
        self.0.as_ptr().cast()
    }

    fn entries<'a>(self) -> impl Iterator<Item = &'a vdp_entry> {
        // SAFETY: the list is this thread's, and does not change while its body is iterated.
        unsafe { delivery_filters::entries(self.0.as_ptr()) }
    }

    /// The HTTP/1 line at its end, if it ends there.
    fn line(self) -> Option<NonNull<V1l>> {
        let last = self.entries().last()?;
        // SAFETY: an entry of this thread's delivery.
        unsafe { delivery_filters::line(last) }
    }

    /// Returns true if nothing but system calls looks at the bytes: HTTP/1, with nothing before it that does more than
    /// leave some of them out.
    pub(crate) fn only_kernel_reads(self) -> bool {
        // SAFETY: VDP_v1l is a constant of varnishd's.
        let (range, http1) = unsafe { (&raw const VDP_range, VDP_v1l) };
        let looks = |entry: &vdp_entry| !addr_eq(entry.vdp, range) && !addr_eq(entry.vdp, http1);
        !self.entries().any(looks) && self.line().is_some()
    }

    /// The body ends here, and is not whole: HTTP/2 ends such a stream with RST_STREAM instead of END_STREAM, HTTP/1 writes
    /// no last chunk.
    pub(crate) fn fail(self) {
        // SAFETY: this thread's delivery. The value is latched as VDP_bytes does it for a filter that failed.
        unsafe {
            let its = self.0.as_ptr();
            if (*its).retval == 0 {
                (*its).retval = -1;
            }
        }
    }

    /// As [`Delivery::fail`], for a fault of ours. HTTP/1 closes the connection, and what is queued is not sent: a response of
    /// which the client has nothing yet is none, and may be asked for again.
    pub(crate) fn abort(self) {
        self.fail();
        if let Some(line) = self.line() {
            // SAFETY: this thread's delivery. With an error V1L_Flush drops what is queued, and V1L_Close returns it.
            unsafe {
                if addr_eq((*line.as_ptr()).werr, SC_NULL.as_ptr()) {
                    (*line.as_ptr()).werr = SC_TX_ERROR.as_ptr();
                }
            }
        }
    }
}
