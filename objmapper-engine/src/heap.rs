//! Pieces of heap, counted by the account. A piece is owned exclusively, has a fixed address, and is freed explicitly.

use std::alloc::{Layout, alloc, dealloc};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use crate::account::Account;
use crate::fallback::Charge;

/// The alignment that malloc(3) gives, which varnishd expects of attribute and body memory.
const ALIGN: usize = 16;

/// A piece of heap of fixed address and size, uninitialised until it is written to.
///
/// Dropping it does not free it: [`HeapChunk::free`] needs the account that it was taken from. A chunk that is dropped
/// leaks; it never dangles.
#[derive(Debug)]
#[must_use]
pub struct HeapChunk {
    ptr: NonNull<u8>,
    size: usize,
    charge: Charge,
}

// SAFETY: a HeapChunk is an exclusively owned allocation; it has no thread affinity, and the shared reference
// gives out only its address and size.
unsafe impl Send for HeapChunk {}
// SAFETY: as above.
unsafe impl Sync for HeapChunk {}

/// Returns the layout of `size` bytes; `None` if `size` is 0.
fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, ALIGN).ok().filter(|layout| layout.size() > 0)
}

impl HeapChunk {
    /// Allocates `size` bytes, counted by the account. `None`: over the limit, out of memory, or `size` is 0.
    pub fn alloc(account: &Account, size: usize) -> Option<HeapChunk> {
        let layout = layout(size)?;
        if !account.alloc(size as u64) {
            return None;
        }
        let chunk = HeapChunk::of(layout);
        if chunk.is_none() {
            account.alloc_failed(size as u64);
        }
        chunk
    }

    fn of(layout: Layout) -> Option<HeapChunk> {
        // SAFETY: the layout's size is not 0 (`layout`).
        NonNull::new(unsafe { alloc(layout) }).map(|ptr| HeapChunk { ptr, size: layout.size(), charge: Charge::None })
    }

    /// Allocates `size` bytes that the account has granted to another allocation, which the caller reduces by as many.
    /// `None`: out of memory, or `size` is 0.
    pub(crate) fn take_over(account: &Account, size: usize) -> Option<HeapChunk> {
        let chunk = HeapChunk::of(layout(size)?)?;
        account.divided();
        Some(chunk)
    }

    /// Undoes [`HeapChunk::take_over`]: frees the memory, and the account's bytes stay with the allocation that they
    /// came from.
    pub(crate) fn hand_back(self, account: &Account) {
        // SAFETY: as in `free`.
        unsafe { dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.size, ALIGN)) };
        account.united();
    }

    /// Frees the memory. The caller guarantees that its address is not used any more.
    pub fn free(self, account: &Account) {
        // SAFETY: `ptr` came from `alloc` with this very layout (from_size_align accepted it there), and `self` is
        // consumed, so that it is freed once.
        unsafe { dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.size, ALIGN)) };
        account.dealloc(self.size as u64);
    }

    /// Copies `bytes` into it, or as many of them as it holds. No other thread may know its address yet.
    pub(crate) fn copy_from(&self, bytes: &[u8]) {
        let n = self.size.min(bytes.len());
        // SAFETY: a live allocation of at least `n` bytes whose address no other thread knows: it does not overlap with
        // a slice.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr.as_ptr(), n) };
    }

    /// Fills it with the first bytes of a file. No other thread may know its address yet.
    pub(crate) fn fill_from(&self, file: &File) -> io::Result<()> {
        // SAFETY: a live allocation of `size` bytes that nothing else reads or writes: it was zeroed before the slice is made.
        let bytes = unsafe {
            self.ptr.as_ptr().write_bytes(0, self.size);
            std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.size)
        };
        file.read_exact_at(bytes, 0)
    }

    /// Sets what it is charged to, until [`Engine::free_piece`](crate::engine::Engine::free_piece).
    pub(crate) fn charged(self, charge: Charge) -> HeapChunk {
        HeapChunk { charge, ..self }
    }

    /// Returns what it is charged to.
    pub(crate) fn charge(&self) -> Charge {
        self.charge
    }

    /// Returns its address.
    pub fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Its size in bytes; never 0.
    pub fn size(&self) -> usize {
        self.size
    }
}
