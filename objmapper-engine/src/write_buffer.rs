//! Memory through which a body that comes in goes to its draft's file.
//!
//! The fetch reads the origin's bytes into it, readers that have caught up with the fetch are given them there, and when it
//! is full it is written to the file in one go: large writes make large folios, and cost a third of what a mapping of a
//! file on a disk does (DESIGN.md, "How a body is written").

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// A buffer for one body. It belongs to no limit: there is one for each fetch, one for each reader that is slow, and
/// one for a body whose file could not be written to its end.
pub(crate) struct WriteBuffer(Vec<UnsafeCell<MaybeUninit<u8>>>);

// SAFETY: the bytes are only reached through addresses. The fetch, which is one thread, writes where nobody reads:
// behind what is body. What is body is not written to again while anybody but the fetch has the buffer.
unsafe impl Sync for WriteBuffer {}

impl WriteBuffer {
    /// At most so many bytes: folios do not grow beyond much more, and this stays in the processor's cache between the
    /// fetch's read and the write to the file.
    pub(crate) const MAX_SIZE: usize = 256 << 10;

    /// Memory for `size` bytes, or `None`.
    pub(crate) fn new(size: usize) -> Option<WriteBuffer> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(size).ok()?;
        Some(WriteBuffer(memory))
    }

    /// How many bytes it has.
    pub(crate) fn size(&self) -> usize {
        self.0.capacity()
    }

    /// The address of a byte.
    pub(crate) fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        NonNull::new(self.0.as_ptr().cast::<u8>().cast_mut().wrapping_add(offset))
    }

    /// The first `len` bytes.
    ///
    /// # Safety
    /// They must have been written, and nobody may write to them while the slice lives.
    pub(crate) unsafe fn bytes(&self, len: usize) -> &[u8] {
        let len = len.min(self.size());
        // SAFETY: inside the allocation; initialised and unchanged by contract.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<u8>(), len) }
    }
}
