//! Mappings of bodies: the only mmap.
//!
//! Another process may hold the same file, so its bytes are never lent out as `&[u8]`: they are copied, or
//! reached through a raw pointer by who knows what may happen to them.

use std::os::fd::{AsFd, AsRawFd};

use memmap2::{MmapOptions, MmapRaw};

use crate::error::{Error, Result};

/// How a mapping may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// For reading.
    ReadOnly,
    /// For reading and writing, shared with the file.
    ReadWrite,
}

/// A piece of a file in memory; unmapped when dropped.
///
/// Only map what nobody shortens: published bodies of a store with extensions
/// ([`Found::is_immutable`](crate::Found::is_immutable)) and one's own private objects. A read beyond the
/// end of a file that was shortened ends the process with SIGBUS.
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
    access: Access,
}

impl Mapping {
    /// Maps `len` bytes from `offset` (which need not be a multiple of the page size).
    ///
    /// # Errors
    /// [`Error::Io`]: EINVAL if `len` is 0 or the file is shorter than that, or what mmap says.
    pub fn new(fd: impl AsFd, offset: u64, len: usize, access: Access) -> Result<Self> {
        let failed = Error::io("map");
        let size = rustix::fs::fstat(&fd).map_err(Error::io("fstat"))?.st_size;
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        if len == 0 || end.is_none_or(|end| i64::try_from(end).is_ok_and(|end| end > size) || end > i64::MAX as u64) {
            return Err(failed(rustix::io::Errno::INVAL));
        }
        let fd = fd.as_fd().as_raw_fd();
        let mut options = MmapOptions::new();
        options.offset(offset).len(len);
        let map = match access {
            Access::ReadOnly => options.map_raw_read_only(fd),
            Access::ReadWrite => options.map_raw(fd),
        };
        let map = map.map_err(|e| Error::Io { what: "mmap", errno: e.raw_os_error().unwrap_or_default() })?;
        Ok(Self { map, access })
    }

    /// Its length, in bytes; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// How it may be used.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its first byte. Good for [`Self::len`] bytes while this mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.map.as_ptr()
    }

    /// Its first byte, for writing; `None` if it is read-only.
    #[must_use]
    pub fn as_mut_ptr(&self) -> Option<*mut u8> {
        (self.access == Access::ReadWrite).then(|| self.map.as_mut_ptr())
    }

    /// Copies from `offset` into `buf`; how many bytes, less than `buf` has only at the end.
    pub fn read_at(&self, buf: &mut [u8], offset: usize) -> usize {
        let n = buf.len().min(self.len().saturating_sub(offset));
        if n > 0 {
            // SAFETY: `offset + n <= self.len()`, and the mapping is readable for that many bytes as long as
            // `self` lives. `buf` is a live exclusive slice of at least `n` bytes, so that it cannot overlap
            // a mapping that no slice is ever made of. Another process may change the bytes meanwhile: they
            // are copied as they are and every value is valid for `u8`.
            unsafe { std::ptr::copy_nonoverlapping(self.as_ptr().add(offset), buf.as_mut_ptr(), n) };
        }
        n
    }

    /// Copies `bytes` to `offset`; how many bytes, less than `bytes` has only at the end, none if the mapping
    /// is read-only.
    pub fn write_at(&self, bytes: &[u8], offset: usize) -> usize {
        let Some(start) = self.as_mut_ptr() else { return 0 };
        let n = bytes.len().min(self.len().saturating_sub(offset));
        if n > 0 {
            // SAFETY: `offset + n <= self.len()`, and the mapping is writable for that many bytes as long as
            // `self` lives. `bytes` is a live slice of at least `n` bytes and no slice is ever made of a
            // mapping, so that they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.add(offset), n) };
        }
        n
    }

    /// Tells the kernel how it will be used. Advice: what the kernel says to it does not matter.
    pub fn advise(&self, advice: memmap2::Advice) {
        let _ = self.map.advise(advice);
    }
}
