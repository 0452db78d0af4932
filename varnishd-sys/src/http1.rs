//! How varnishd writes a response of HTTP/1 (Varnish: `bin/varnishd/http1/cache_http1_line.c`, `cache/cache_filter.h`),
//! for a delivery filter that writes to the client itself.

use core::ffi::{c_int, c_uint, c_void};
use core::ptr::NonNull;

use crate::bindings::{stream_close_t, transport, vdp, vsl_log, vtim_real, ws};
use crate::obj_methods::ObjIterateFn;

/// `V1L_MAGIC`.
pub const V1L_MAGIC: c_uint = 0x2f21_42e5;

/// `struct v1l`: what is queued for a client, and what became of it. The private of [`VDP_v1l`].
#[repr(C)]
pub struct V1l {
    /// [`V1L_MAGIC`].
    pub magic: c_uint,
    /// The client's socket; negative if it is closed.
    pub wfd: *const c_int,
    /// Why no more can be written; `SC_NULL` while it can.
    pub werr: stream_close_t,
    /// What is queued.
    pub iov: *mut Iovec,
    /// Room in `iov`.
    pub siov: c_int,
    /// Used of it.
    pub niov: c_int,
    /// Bytes that are queued.
    pub liov: usize,
    /// Bytes of the chunk that is queued.
    pub cliov: usize,
    /// Where in `iov` the chunk's head goes; `siov` if the response is not chunked.
    pub ciov: c_int,
    /// When `send_timeout` has passed.
    pub deadline: vtim_real,
    /// The transaction's log.
    pub vsl: *mut vsl_log,
    /// Bytes written.
    pub cnt: u64,
    /// Where all this is.
    pub ws: *mut ws,
    /// What it goes back to.
    pub ws_snap: usize,
    /// Where the filter's pointer to this is.
    pub vdp_priv: *mut *mut c_void,
}

/// `struct iovec` (readv(2)).
#[repr(C)]
pub struct Iovec {
    /// The first byte.
    pub base: *mut c_void,
    /// How many.
    pub len: usize,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    const P: usize = size_of::<usize>();
    // As the C compiler lays it out on LP64: every member after `magic` is aligned to a pointer, but the pairs of ints.
    assert!(P == 8);
    assert!(offset_of!(V1l, wfd) == 8);
    assert!(offset_of!(V1l, werr) == 16);
    assert!(offset_of!(V1l, iov) == 24);
    assert!(offset_of!(V1l, siov) == 32);
    assert!(offset_of!(V1l, niov) == 36);
    assert!(offset_of!(V1l, liov) == 40);
    assert!(offset_of!(V1l, cliov) == 48);
    assert!(offset_of!(V1l, ciov) == 56);
    assert!(offset_of!(V1l, deadline) == 64);
    assert!(offset_of!(V1l, vsl) == 72);
    assert!(offset_of!(V1l, cnt) == 80);
    assert!(offset_of!(V1l, ws) == 88);
    assert!(offset_of!(V1l, ws_snap) == 96);
    assert!(offset_of!(V1l, vdp_priv) == 104);
    assert!(size_of::<V1l>() == 112);
};

impl V1l {
    /// What is private to the filter entry at the end of a delivery by HTTP/1, if it is that.
    ///
    /// # Safety
    /// `private` must be null or the private of an entry whose filter is [`VDP_v1l`].
    pub unsafe fn checked(private: *mut c_void) -> Option<NonNull<V1l>> {
        let found = NonNull::new(private.cast::<V1l>())?;
        // SAFETY: by contract; the magic number says whether it is what we think.
        (unsafe { (*found.as_ptr()).magic } == V1L_MAGIC).then_some(found)
    }
}

unsafe extern "C" {
    /// The filter at the end of a delivery by HTTP/1.
    pub static VDP_v1l: *const vdp;
    /// Range requests (Varnish: `cache/cache_range.c`): it only passes parts of what it is given.
    pub static VDP_range: vdp;
    /// HTTP/1 (Varnish: `http1/cache_http1_fsm.c`).
    pub static mut HTTP1_transport: transport;

    /// Writes what is queued; what became of it is also in `werr`.
    pub fn V1L_Flush(v1l: *mut V1l) -> stream_close_t;
    /// Hands bytes of an object to a delivery's first filter (Varnish: `cache/cache_deliver_proc.c`).
    pub fn VDP_ObjIterate(private: *mut c_void, flush: c_uint, ptr: *const c_void, len: isize) -> c_int;
}

// The types that varnishd declares for these.
const _: ObjIterateFn = VDP_ObjIterate;
