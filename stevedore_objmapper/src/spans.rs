//! The part of a file that the bytes are which are being passed on, for a delivery filter that sends from files.
//!
//! While the iterator is in a call of a body's consumer, this thread knows which file the call's bytes are in ([`SpanGuard`]). A filter
//! further down looks a part up with the address that it was passed ([`lookup`]), which may lie anywhere in those bytes (a Range).
//! An iteration inside another one (ESI) has a guard of its own. A filter that cannot read the file says so ([`unreadable`]) before
//! the call returns; the guard's end reports it.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null;
use std::sync::LazyLock;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

use objmapper_abi::{DeliveryMode, How, OnIterate, Span};
use objmapper_engine::engine::Engine;
use objmapper_engine::maps::PlaceholderRange;
use objmapper_engine::options::ZeroCopy;
use objmapper_engine::span::FileSpan;
use varnishd::delivery::Delivery;

/// The listener that chooses the mode of a delivery: an [`OnIterate`], or null.
static LISTENER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// The bytes that this thread is passing on.
#[derive(Clone, Copy)]
struct Current {
    start: *const u8,
    len: usize,
    span: Span,
}

const NOTHING: Current = Current { start: null(), len: 0, span: Span { fd: -1, how: How::Auto, offset: 0 } };

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(NOTHING) };
    /// The error with which reading the file failed that is being passed on; 0 for none.
    static FAILED: Cell<c_int> = const { Cell::new(0) };
}

/// See [`objmapper_abi::Delivery::on_iterate`].
pub(crate) fn set_listener(listener: Option<OnIterate>) {
    LISTENER.store(listener.map_or(std::ptr::null_mut(), |listener| listener as *mut c_void), Release);
}

/// See [`objmapper_abi::Delivery::span`].
pub(crate) fn lookup(ptr: *const u8, len: usize) -> Option<Span> {
    let current = CURRENT.get();
    let skip = ptr.addr().checked_sub(current.start.addr())?;
    let inside = len > 0 && skip < current.len && len <= current.len - skip;
    inside.then(|| Span { offset: current.span.offset + skip as u64, ..current.span })
}

/// See [`objmapper_abi::Delivery::unreadable`].
pub(crate) fn unreadable(errno: c_int) {
    FAILED.set(errno);
}

/// The way in which the body of one delivery is passed on.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    pub(crate) mode: DeliveryMode,
    /// How the filter sends from files.
    pub(crate) how: How,
}

impl Route {
    /// Bytes, for a consumer that is not a delivery.
    pub(crate) const BYTES: Route = Route { mode: DeliveryMode::Bytes, how: How::Auto };

    /// Returns the route of a delivery, whose body is about to be iterated.
    pub(crate) fn of(engine: &Engine, delivery: Delivery<'_>) -> Route {
        let listener = LISTENER.load(Acquire);
        let asked = if listener.is_null() {
            DeliveryMode::Bytes
        } else {
            // SAFETY: what `set_listener` put there, which is a function that stays loaded.
            let listener = unsafe { std::mem::transmute::<*mut c_void, OnIterate>(listener) };
            // SAFETY: the delivery is the calling thread's, which is about to iterate its object.
            unsafe { listener(delivery.address()) }
        };
        let (may_send, how) = match engine.options.zero_copy {
            ZeroCopy::Auto => (true, How::Auto),
            ZeroCopy::Sendfile => (true, How::Sendfile),
            ZeroCopy::Splice => (true, How::Splice),
            ZeroCopy::Off => (false, How::Auto),
        };
        let mode = match asked {
            DeliveryMode::Kernel => DeliveryMode::Kernel,
            DeliveryMode::Both if may_send => DeliveryMode::Both,
            DeliveryMode::Spans if may_send && PlaceholderRange::get().is_none() => DeliveryMode::Both,
            DeliveryMode::Spans if may_send => DeliveryMode::Spans,
            _ if delivery.only_kernel_reads() => DeliveryMode::Kernel,
            _ => DeliveryMode::Bytes,
        };
        Route { mode, how }
    }

    /// Returns true if pages may be on their way to a client when the consumer returns.
    pub(crate) fn may_send_pages(self) -> bool {
        matches!(self.mode, DeliveryMode::Both | DeliveryMode::Spans)
    }

    /// Returns the addresses that stand for the bytes of a file, if the bytes themselves are not passed on.
    pub(crate) fn placeholder(self) -> Option<&'static PlaceholderRange> {
        if self.mode == DeliveryMode::Spans { PlaceholderRange::get() } else { None }
    }
}

/// As long as this lives, [`lookup`] finds the bytes at an address.
pub(crate) struct SpanGuard {
    /// One iteration may run inside another (ESI).
    outer: (Current, c_int),
}

impl SpanGuard {
    /// The `len` bytes at `start` are the first of `span`, which outlives this.
    pub(crate) fn new(start: *const u8, len: usize, span: &FileSpan, how: How) -> SpanGuard {
        let span = Span { fd: span.file.as_raw_fd(), how, offset: span.offset };
        SpanGuard { outer: (CURRENT.replace(Current { start, len, span }), FAILED.replace(0)) }
    }

    /// The bytes are not in a file.
    pub(crate) fn without_file() -> SpanGuard {
        SpanGuard { outer: (CURRENT.replace(NOTHING), FAILED.replace(0)) }
    }

    /// Ends the guard.
    ///
    /// # Errors
    /// The consumer could not read the file.
    pub(crate) fn end(self) -> io::Result<()> {
        match FAILED.get() {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for SpanGuard {
    fn drop(&mut self) {
        CURRENT.set(self.outer.0);
        FAILED.set(self.outer.1);
    }
}

/// Returns the number of bytes in multiples of which a file may be given back whose pages may be on their way to a client.
///
/// Taking pages out of a file leaves those alone that the kernel still sends, but only whole folios: of one that it
/// must divide it first clears the part that goes, in place (`truncate_inode_partial_folio` in Linux). A folio lies
/// at a multiple of its size, and is at most as large as a huge page.
pub(crate) fn largest_folio() -> u64 {
    static LARGEST: LazyLock<u64> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").unwrap_or_default();
        // Without huge pages folios are smaller.
        text.trim().parse::<u64>().ok().filter(|size| size.is_power_of_two()).unwrap_or(0).max(2 << 20)
    });
    *LARGEST
}
