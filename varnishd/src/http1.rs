//! How varnishd writes a response of HTTP/1 (Varnish: `http1/cache_http1_line.c`), for a filter that writes to the client itself.
//!
//! A *line* has a queue of addresses, which is written when it is full, when a filter asks for it, and at the end. A filter that writes
//! to the socket flushes the queue before, counts what it wrote, and keeps the line's deadline. An error that a line has seen stays:
//! nothing more is written, and the connection is closed for that reason.

use std::ffi::c_int;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, addr_eq};

use nix::sys::socket::{MsgFlags, sendmsg};
use varnishd_sys::bindings::{SC_NULL, SC_REM_CLOSE, SC_TX_ERROR, SLT_Debug, VAS_errtxt, VSLb, vdp_entry};
use varnishd_sys::http1::{V1L_Flush, V1l, VDP_v1l};

use crate::clock;

/// The line at the end of the calling thread's delivery, for `'a`.
#[derive(Clone, Copy)]
pub struct Line<'a>(NonNull<V1l>, PhantomData<&'a V1l>);

impl<'a> Line<'a> {
    /// Returns the line that an entry of a delivery is; `None` if it is another filter.
    ///
    /// # Safety
    /// `entry` must be one of the calling thread's delivery, which lives for `'a`.
    pub(crate) unsafe fn of_entry(entry: &vdp_entry) -> Option<Line<'a>> {
        // SAFETY: by contract; the private of this filter is a line.
        unsafe {
            if !addr_eq(entry.vdp, VDP_v1l) {
                return None;
            }
            V1l::checked(entry.priv_).map(|line| Line(line, PhantomData))
        }
    }

    fn as_ptr(self) -> *mut V1l {
        self.0.as_ptr()
    }

    fn has_error(self) -> bool {
        // SAFETY: the calling thread's line; an address is compared.
        unsafe { !addr_eq((*self.as_ptr()).werr, SC_NULL.as_ptr()) }
    }

    /// Returns the client's socket, if it can be written to.
    pub fn socket(self) -> Option<BorrowedFd<'a>> {
        // SAFETY: the calling thread's line; the socket stays open during the delivery.
        unsafe {
            let socket = *(*self.as_ptr()).wfd;
            (socket >= 0 && !self.has_error()).then(|| BorrowedFd::borrow_raw(socket))
        }
    }

    /// Returns true if the response is chunked.
    pub fn is_chunked(self) -> bool {
        // SAFETY: the calling thread's line.
        unsafe { (*self.as_ptr()).ciov < (*self.as_ptr()).siov }
    }

    /// Returns the seconds until `send_timeout` has passed; a negative number if it has.
    pub fn time_left(self) -> f64 {
        // SAFETY: the calling thread's line.
        unsafe { (*self.as_ptr()).deadline - clock::now() }
    }

    /// Counts bytes that were written to the socket.
    pub fn count_written(self, bytes: usize) {
        // SAFETY: the calling thread's line.
        unsafe { (*self.as_ptr()).cnt += bytes as u64 };
    }

    /// Writes what is queued, as far as it can with MSG_MORE, so that it can share a packet with what follows. The response must not
    /// be chunked.
    pub fn flush(self) {
        if let Some(socket) = self.socket() {
            // SAFETY: the calling thread's line: `niov` entries of `iov` are queued, with `liov` readable bytes. An `IoSlice` is
            // laid out as the C structure.
            unsafe {
                let its = self.as_ptr();
                if (*its).liov > 0 {
                    let queued = std::slice::from_raw_parts((*its).iov.cast::<IoSlice<'_>>(), (*its).niov as usize);
                    let flags = MsgFlags::from_bits_retain(nix::libc::MSG_MORE)
                        | MsgFlags::MSG_DONTWAIT
                        | MsgFlags::MSG_NOSIGNAL;
                    if let Ok(written) = sendmsg::<()>(socket.as_raw_fd(), queued, &[], flags, None) {
                        self.count_written(written);
                        self.take_off(written);
                    }
                }
            }
        }
        // The rest, if any: with its waiting and its errors.
        // SAFETY: the calling thread's line.
        unsafe { V1L_Flush(self.as_ptr()) };
    }

    /// Takes what was written off the queue.
    fn take_off(self, mut written: usize) {
        // SAFETY: the calling thread's line, with `niov` entries, of which at least `written` bytes are queued.
        unsafe {
            let its = self.as_ptr();
            (*its).liov -= written;
            // The usual case: varnishd's flush, which follows, looks at no entry when they have no bytes.
            if (*its).liov == 0 {
                return;
            }
            for index in 0..(*its).niov as usize {
                let entry = &mut *(*its).iov.add(index);
                let here = entry.len.min(written);
                entry.base = entry.base.cast::<u8>().add(here).cast();
                entry.len -= here;
                written -= here;
            }
        }
    }

    /// Logs that `send_timeout` has passed, after `last` bytes of `left`.
    pub fn log_total_timeout(self, last: isize, left: usize) {
        let text = c"Hit total send timeout, wrote = %zd/%zd; not retrying";
        // SAFETY: the transaction's log; a format that takes these two.
        unsafe { VSLb((*self.as_ptr()).vsl, SLT_Debug, text.as_ptr(), last, left) };
    }

    /// Logs that the client took none of `left` bytes for `idle_send_timeout`.
    pub fn log_idle_timeout(self, left: usize) {
        let text = c"Hit idle send timeout, wrote = %zd/%zd; retrying";
        // SAFETY: the transaction's log; a format that takes these two.
        unsafe { VSLb((*self.as_ptr()).vsl, SLT_Debug, text.as_ptr(), -1_isize, left) };
    }

    /// Ends the line: writing `left` bytes has failed with `errno`.
    pub fn write_failed(self, left: usize, errno: c_int) {
        let text = c"Write error, retval = %zd, len = %zd, errno = %s";
        // SAFETY: the transaction's log; a format that takes these three, of which the last is a static text (lib/libvarnish/vas.c).
        unsafe {
            let its = self.as_ptr();
            VSLb((*its).vsl, SLT_Debug, text.as_ptr(), -1_isize, left, VAS_errtxt(errno));
            let closed = errno == nix::libc::EPIPE;
            (*its).werr = if closed { SC_REM_CLOSE.as_ptr() } else { SC_TX_ERROR.as_ptr() };
        }
    }

    /// Ends the line: what is queued is dropped, and the connection is closed.
    pub(crate) fn abort(self) {
        if !self.has_error() {
            // SAFETY: the calling thread's line. With an error a flush drops what is queued, and closing the line returns it.
            unsafe { (*self.as_ptr()).werr = SC_TX_ERROR.as_ptr() };
        }
    }
}
