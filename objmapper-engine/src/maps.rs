//! Mappings of bodies, which only the kernel reads, and addresses that stand for bytes of files.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use crate::backing::StoredBody;

/// A read-only mapping of all bytes of a published body, without the tail that its file may have.
///
/// Only the kernel may read there ([`MappedSpan`](crate::span::MappedSpan)). No peer can shorten or change such a file, but
/// its disk may fail, and it may have holes: reading a page that cannot be had is SIGBUS for a program, and EFAULT for a system call.
pub(crate) struct BodyMap {
    map: MmapRaw,
}

impl BodyMap {
    /// Maps the body at the beginning of its file.
    pub(crate) fn new(file: &File, stored: &StoredBody) -> io::Result<BodyMap> {
        let len = usize::try_from(stored.body_len).map_err(io::Error::other)?;
        Ok(BodyMap { map: MmapOptions::new().len(len).map_raw_read_only(file)? })
    }

    /// Returns the address of the byte at `offset`, which must be below the length.
    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(offset as usize)
    }
}

/// A range of addresses without memory (PROT_NONE) that stand for bytes of files. A filter that passes them on needs no
/// mapping; a filter that reads them by mistake gets SIGSEGV and not other bytes.
pub struct PlaceholderRange {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: the range is never read or written.
unsafe impl Send for PlaceholderRange {}
// SAFETY: as above.
unsafe impl Sync for PlaceholderRange {}

impl PlaceholderRange {
    /// Returns the range of this process, which is reserved once and never unmapped. `None`: there is no address space
    /// (RLIMIT_AS).
    pub fn get() -> Option<&'static PlaceholderRange> {
        /// Longer bodies are passed on in pieces of this size.
        const LEN: NonZeroUsize = NonZeroUsize::new(4 << 30).unwrap();
        static RANGE: OnceLock<Option<PlaceholderRange>> = OnceLock::new();
        RANGE
            .get_or_init(|| {
                let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
                // SAFETY: a new mapping, where the kernel has room for it.
                let start = unsafe { mmap_anonymous(None, LEN, ProtFlags::PROT_NONE, flags) }.ok()?;
                Some(PlaceholderRange { start, len: LEN })
            })
            .as_ref()
    }

    /// Returns the first address.
    pub fn start(&self) -> *const c_void {
        self.start.as_ptr()
    }

    /// Returns the number of addresses; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len.get()
    }
}
