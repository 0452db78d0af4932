//! Memory through which a body that comes in goes to its draft's file.
//!
//! The fetch reads the origin's bytes into it, readers that have caught up with the fetch are given them there, and when it
//! is full it is written to the file in one go: large writes make large folios, and cost a third of what a mapping of a
//! file on a disk does (DESIGN.md, "How a body is written").

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// A buffer for one body. It is not charged to the storage's limit: there is one for each fetch, one for each slow
/// reader, and one for each body whose file could not be written to its end.
pub(crate) struct WriteBuffer(Vec<UnsafeCell<MaybeUninit<u8>>>);

// SAFETY: the bytes are only reached through addresses. The fetch, which is one thread, writes behind the bytes that
// are body, where no reader reads. Bytes that are body are not written again while a reader holds the buffer.
unsafe impl Sync for WriteBuffer {}

impl WriteBuffer {
    /// The largest buffer in bytes: folios do not grow much larger, and this much stays in the processor's cache
    /// between the fetch's read and the write to the file.
    pub(crate) const MAX_SIZE: usize = 256 << 10;

    /// Allocates a buffer of `size` bytes. `None`: there is no memory.
    pub(crate) fn new(size: usize) -> Option<WriteBuffer> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(size).ok()?;
        Some(WriteBuffer(memory))
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.0.capacity()
    }

    /// Returns the address of the byte at `offset`.
    pub(crate) fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        NonNull::new(self.0.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset))
    }

    /// Returns the first `len` bytes.
    ///
    /// # Safety
    /// The bytes have been written, and are not written to while the slice lives.
    pub(crate) unsafe fn bytes(&self, len: usize) -> &[u8] {
        let len = len.min(self.size());
        // SAFETY: inside the allocation; initialised and unchanged by contract.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<u8>(), len) }
    }
}
