//! A delivery (Varnish: `struct vdp_ctx` in `cache/cache_filter.h`): a list of filters, from the one that takes an object's bytes to
//! the one that sends them, and what becomes of the bytes.
//!
//! A filter is called with a piece and passes on what it makes of it ([`Delivery::pass`]). One that sends a piece itself counts it
//! with the next entry, as if it had been passed on ([`Delivery::count_sent`]).

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{NonNull, addr_eq, eq};

use varnishd_sys::bindings::{VDP_END, VDP_FLUSH, VDP_bytes, vdp_ctx, vdp_entry};
use varnishd_sys::http1::{VDP_ObjIterate, VDP_range, VDP_v1l};

use crate::boundary::Constant;
use crate::cast::has_magic;
use crate::http1::Line;
use crate::raw::{DeliveryAction, DeliveryFilter, RawConsumer, RawDelivery};
use crate::vsl::Log;

/// A delivery of the calling thread's, for `'a`.
#[derive(Clone, Copy)]
pub struct Delivery<'a>(NonNull<RawDelivery>, PhantomData<&'a RawDelivery>);

/// A filter of ours in a delivery.
pub struct Position<'a> {
    /// The filter's private.
    pub private: *mut c_void,
    /// Before it is nothing but `range`, which leaves parts out.
    pub is_first: bool,
    /// The HTTP/1 line behind it, if that is next and not chunked.
    pub line: Option<Line<'a>>,
}

/// Returns the entry at an address, if there is one.
///
/// # Safety
/// `entry` must be null or an entry of the calling thread's delivery that stays in its list during `'a`.
#[inline]
unsafe fn entry_at<'a>(entry: *const vdp_entry) -> Option<&'a vdp_entry> {
    // SAFETY: by contract.
    unsafe { has_magic(entry).then(|| &*entry) }
}

fn is_range(entry: &vdp_entry) -> bool {
    addr_eq(entry.vdp, &raw const VDP_range)
}

impl<'a> Delivery<'a> {
    /// Returns the delivery at an address; `None` if there is something else.
    ///
    /// # Safety
    /// `vdc` must be null or the calling thread's delivery, whose list of filters does not change for `'a`.
    #[inline]
    pub unsafe fn new(vdc: *const c_void) -> Option<Delivery<'a>> {
        let vdc = vdc.cast::<vdp_ctx>().cast_mut();
        // SAFETY: by contract.
        unsafe { has_magic(vdc).then(|| Delivery(NonNull::new_unchecked(vdc), PhantomData)) }
    }

    /// Returns the delivery that a filter of it was called with.
    ///
    /// # Safety
    /// `vdc` must be what varnishd called with, for the time of that call.
    #[inline]
    pub unsafe fn of_call(vdc: *mut RawDelivery) -> Option<Delivery<'a>> {
        // SAFETY: by contract.
        unsafe { Delivery::new(vdc.cast_const().cast()) }
    }

    /// Returns the delivery behind the consumer of a body.
    ///
    /// # Safety
    /// `func` and `private` must be what varnishd called an iteration with, in this thread, and the result is not used after it.
    pub(crate) unsafe fn of_consumer(func: RawConsumer, private: *mut c_void) -> Option<Delivery<'a>> {
        if !std::ptr::fn_addr_eq(func, VDP_ObjIterate as RawConsumer) {
            return None;
        }
        // SAFETY: the private of this function is a delivery.
        unsafe { Delivery::new(private) }
    }

    /// Returns the delivery's address, for [`Delivery::new`].
    pub fn address(self) -> *const c_void {
        self.as_ptr().cast_const().cast()
    }

    pub(crate) fn as_ptr(self) -> *mut RawDelivery {
        self.0.as_ptr()
    }

    fn entries(self) -> impl Iterator<Item = &'a vdp_entry> {
        // SAFETY: the calling thread's delivery.
        let mut next = unsafe { (*self.as_ptr()).vdp.vtqh_first };
        std::iter::from_fn(move || {
            // SAFETY: an entry of the list, or null.
            let entry = unsafe { entry_at(next) }?;
            next = entry.list.vtqe_next;
            Some(entry)
        })
    }

    /// Returns the HTTP/1 line at the end, if the delivery ends in one.
    fn line(self) -> Option<Line<'a>> {
        // SAFETY: an entry of this thread's delivery.
        unsafe { Line::of_entry(self.entries().last()?) }
    }

    /// Returns the HTTP/1 line, if it is next to the filter that was called.
    pub fn next_line(self) -> Option<Line<'a>> {
        // SAFETY: the calling thread's delivery, in a filter's call, which has set the next entry.
        unsafe { Line::of_entry(entry_at((*self.as_ptr()).nxt)?) }
    }

    /// Returns the position of a filter; `None` if the delivery does not have it.
    pub fn position_of(self, filter: &'static Constant<DeliveryFilter>) -> Option<Position<'a>> {
        let mut is_first = true;
        for entry in self.entries() {
            if eq(entry.vdp, filter.address()) {
                // SAFETY: the entry behind this one in the list, or null.
                let next = unsafe { entry_at(entry.list.vtqe_next) };
                // SAFETY: as above.
                let line = next.and_then(|next| unsafe { Line::of_entry(next) }).filter(|line| !line.is_chunked());
                return Some(Position { private: entry.priv_, is_first, line });
            }
            is_first &= is_range(entry);
        }
        None
    }

    /// Returns true if nothing but system calls reads the bytes: HTTP/1, with at most `range` before it.
    pub fn only_kernel_reads(self) -> bool {
        // SAFETY: a constant of varnishd's.
        let http1 = unsafe { VDP_v1l };
        self.entries().all(|entry| is_range(entry) || addr_eq(entry.vdp, http1)) && self.line().is_some()
    }

    /// Passes a piece to the next filter, and returns what that returned. Without bytes the address may be null.
    ///
    /// # Safety
    /// Called in a filter's call. The `len` bytes at `ptr` must be as `action` says: readable in the call, or until the end of the
    /// delivery.
    pub unsafe fn pass(self, action: DeliveryAction, ptr: *const c_void, len: isize) -> c_int {
        // SAFETY: by contract.
        unsafe { VDP_bytes(self.as_ptr(), action, ptr, len) }
    }

    /// Passes bytes that the next filter must not keep the address of. `is_end`: they are the last ones.
    pub fn pass_flushed(self, is_end: bool, bytes: &[u8]) -> c_int {
        // SAFETY: the bytes are readable in the call, and their address is not kept after it.
        unsafe { self.pass(if is_end { VDP_END } else { VDP_FLUSH }, bytes.as_ptr().cast(), bytes.len() as isize) }
    }

    /// Calls `count` with the entry behind the filter that was called.
    fn with_next(self, count: impl FnOnce(&mut vdp_entry)) {
        // SAFETY: the calling thread's delivery; no other reference to the entry is used meanwhile.
        if let Some(next) = unsafe { (*self.as_ptr()).nxt.as_mut() } {
            count(next);
        }
    }

    /// Counts with the next entry `size` bytes that the calling filter has sent in its place: as one call.
    pub fn count_sent(self, action: DeliveryAction, size: usize) {
        self.with_next(|next| {
            next.calls += 1;
            next.bytes_in += size as u64;
            if is_end(action) {
                next.end = VDP_END;
            }
        });
        self.set_done(size);
    }

    /// Counts with the next entry `size` bytes of a piece of which the rest is passed on.
    pub fn count_part_sent(self, size: usize) {
        self.with_next(|next| next.bytes_in += size as u64);
    }

    /// Sets the number of bytes of its piece that the calling filter is done with.
    pub fn set_done(self, size: usize) {
        // SAFETY: the calling thread's delivery.
        unsafe { (*self.as_ptr()).bytes_done = size as u64 };
    }

    /// Ends the delivery as one that is not whole: HTTP/2 ends such a stream with RST_STREAM instead of END_STREAM, HTTP/1 writes
    /// no last chunk.
    pub fn fail(self) {
        // SAFETY: the calling thread's delivery. The value is latched as for a filter that failed.
        unsafe {
            let its = self.as_ptr();
            if (*its).retval == 0 {
                (*its).retval = -1;
            }
        }
    }

    /// As [`Delivery::fail`], for a fault of the cache's. HTTP/1 closes the connection, and what is queued is not sent: a response of
    /// which the client has nothing yet is none, and may be asked for again.
    pub fn abort(self) {
        self.fail();
        if let Some(line) = self.line() {
            line.abort();
        }
    }

    /// Returns the log of the transaction.
    pub fn log(self) -> Log<'a> {
        // SAFETY: the calling thread's delivery.
        unsafe { Log::new((*self.as_ptr()).vsl) }
    }
}

/// Returns true if a piece is the last one.
pub fn is_end(action: DeliveryAction) -> bool {
    action == VDP_END
}
