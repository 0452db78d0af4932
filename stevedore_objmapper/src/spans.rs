//! Which part of a file the bytes are that are being handed out, for a delivery filter that sends from files.
//!
//! While the iterator is in a call of the function that consumes a body, this thread knows which file the call's bytes are
//! in ([`Handing`]). A filter further down asks with the address that it was handed ([`lookup`]), which may lie
//! anywhere in those bytes (a Range).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null;
use std::sync::LazyLock;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

use objmapper_abi::{How, OnIterate, Span, Wish};
use objmapper_engine::engine::Engine;
use objmapper_engine::maps::PlaceholderRange;
use objmapper_engine::options::ZeroCopy;
use objmapper_engine::span::FileSpan;

use crate::delivery::Delivery;

/// Who is asked how a body shall be handed out: an [`OnIterate`], or null.
static LISTENER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// What this thread is handing out.
#[derive(Clone, Copy)]
struct Current {
    start: *const u8,
    len: usize,
    span: Span,
}

const NOTHING: Current = Current { start: null(), len: 0, span: Span { fd: -1, how: How::Auto, offset: 0 } };

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(NOTHING) };
    /// With what reading the file failed that is being handed out; 0: with nothing.
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

/// How whoever consumes a body wants to be given it.
#[derive(Clone, Copy)]
pub(crate) enum Handover {
    /// As bytes.
    Bytes,
    /// As bytes that nothing but system calls looks at.
    Kernel,
    /// As bytes, and as parts of files.
    Both(How),
    /// As parts of files, at addresses that lead nowhere.
    Spans(How, &'static PlaceholderRange),
}

impl Handover {
    /// What a delivery wants.
    pub(crate) fn of(engine: &Engine, delivery: Delivery) -> Handover {
        let how = match engine.options.zero_copy {
            ZeroCopy::Auto => Some(How::Auto),
            ZeroCopy::Sendfile => Some(How::Sendfile),
            ZeroCopy::Splice => Some(How::Splice),
            ZeroCopy::Off => None,
        };
        let listener = LISTENER.load(Acquire);
        let wish = if listener.is_null() {
            Wish::Bytes
        } else {
            // SAFETY: what `set_listener` put there, which is a function that stays loaded.
            let listener = unsafe { std::mem::transmute::<*mut c_void, OnIterate>(listener) };
            // SAFETY: the delivery is the calling thread's, which is about to iterate its object.
            unsafe { listener(delivery.private()) }
        };
        match (wish, how) {
            (Wish::Kernel, _) => Handover::Kernel,
            (Wish::Both, Some(how)) => Handover::Both(how),
            (Wish::Spans, Some(how)) => {
                PlaceholderRange::get().map_or(Handover::Both(how), |nowhere| Handover::Spans(how, nowhere))
            }
            _ if delivery.only_kernel_reads() => Handover::Kernel,
            _ => Handover::Bytes,
        }
    }

    /// May pages be on their way to a client when the consumer returns?
    pub(crate) fn may_send_pages(self) -> bool {
        !matches!(self, Handover::Bytes | Handover::Kernel)
    }
}

/// As long as this lives, `lookup` finds the bytes at an address.
pub(crate) struct Handing {
    /// One iteration may run inside another (ESI).
    outer: (Current, c_int),
}

impl Handing {
    /// The `len` bytes at `start` are the first of `span`, which outlives this.
    pub(crate) fn out(start: *const u8, len: usize, span: &FileSpan, how: How) -> Handing {
        let span = Span { fd: span.file.as_raw_fd(), how, offset: span.offset };
        Handing { outer: (CURRENT.replace(Current { start, len, span }), FAILED.replace(0)) }
    }

    /// What is handed out is not in a file.
    pub(crate) fn nothing() -> Handing {
        Handing { outer: (CURRENT.replace(NOTHING), FAILED.replace(0)) }
    }

    /// Ends it. `Err`: the consumer could not read the file.
    pub(crate) fn end(self) -> io::Result<()> {
        match FAILED.get() {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Handing {
    fn drop(&mut self) {
        CURRENT.set(self.outer.0);
        FAILED.set(self.outer.1);
    }
}

/// In multiples of how many bytes a file may be given back whose pages may be on their way to a client.
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
