//! The mappings through which the kernel reads bodies, and addresses that stand for bytes of files.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use crate::backing::Stored;

/// All bytes of a published body, read-only, without what its file has behind them.
///
/// Only the kernel may read there ([`MappedSpan`](crate::span::MappedSpan)). No peer can shorten or change such a file, but
/// its disk may fail, and it may have holes: reading a page that cannot be had is SIGBUS for a program, and EFAULT for a system call.
pub(crate) struct BodyMap {
    map: MmapRaw,
}

impl BodyMap {
    /// Maps the body at the beginning of its file.
    pub(crate) fn new(file: &File, stored: &Stored) -> io::Result<BodyMap> {
        let len = usize::try_from(stored.body_len).map_err(io::Error::other)?;
        Ok(BodyMap { map: MmapOptions::new().len(len).map_raw_read_only(file)? })
    }

    /// The address of the byte at `offset`, which must be below the length.
    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(offset as usize)
    }
}

/// Addresses that stand for bytes of files and lead nowhere: who hands them on pays for no mapping, and who reads them by
/// mistake gets a fault and not other bytes.
pub struct Nowhere {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: nobody reads or writes there.
unsafe impl Send for Nowhere {}
// SAFETY: as above.
unsafe impl Sync for Nowhere {}

impl Nowhere {
    /// Takes address space for them, once and for ever. `None`: there is none (RLIMIT_AS).
    pub fn get() -> Option<&'static Nowhere> {
        /// Longer bodies are handed out in pieces of this.
        const LEN: NonZeroUsize = NonZeroUsize::new(4 << 30).unwrap();
        static NOWHERE: OnceLock<Option<Nowhere>> = OnceLock::new();
        NOWHERE
            .get_or_init(|| {
                let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
                // SAFETY: a new mapping, where the kernel has room for it.
                let start = unsafe { mmap_anonymous(None, LEN, ProtFlags::PROT_NONE, flags) }.ok()?;
                Some(Nowhere { start, len: LEN })
            })
            .as_ref()
    }

    /// The first of them.
    pub fn start(&self) -> *const c_void {
        self.start.as_ptr()
    }

    /// How many; never none.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.len.get()
    }
}
