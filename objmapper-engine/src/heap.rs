//! Plain memory of the process, accounted.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use crate::account::Account;

/// As malloc(3)'s: what varnishd expects of attribute and body memory.
const ALIGN: usize = 16;

/// A piece of heap of fixed address and size, uninitialised until somebody writes to it.
///
/// It is not freed by dropping it: [`HeapChunk::free`] needs the account it was taken from. (An object's memory is
/// always given back through its engine; a chunk that is dropped would leak, never dangle.)
#[derive(Debug)]
#[must_use]
pub struct HeapChunk {
    ptr: NonNull<u8>,
    size: usize,
}

// SAFETY: a HeapChunk is an exclusively owned allocation; it has no thread affinity, and the shared reference
// gives out only its address and size.
unsafe impl Send for HeapChunk {}
// SAFETY: as above.
unsafe impl Sync for HeapChunk {}

impl HeapChunk {
    /// `size` bytes, which the account is asked for. `None`: over the limit, out of memory, or `size` is 0.
    pub fn alloc(account: &Account, size: usize) -> Option<HeapChunk> {
        let layout = Layout::from_size_align(size, ALIGN).ok().filter(|l| l.size() > 0)?;
        if !account.alloc(size as u64) {
            return None;
        }
        // SAFETY: the layout's size is not 0.
        match NonNull::new(unsafe { alloc(layout) }) {
            Some(ptr) => Some(HeapChunk { ptr, size }),
            None => {
                account.alloc_failed(size as u64);
                None
            }
        }
    }

    /// Gives the memory back. Nobody may use its address any more.
    pub fn free(self, account: &Account) {
        // SAFETY: `ptr` came from `alloc` with this very layout (from_size_align accepted it there), and `self` is
        // consumed, so that it is freed once.
        unsafe { dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.size, ALIGN)) };
        account.dealloc(self.size as u64);
    }

    /// Fills it with the first bytes of another one, which must be initialised that far and at least as large.
    pub(crate) fn copy_from(&self, other: &HeapChunk) {
        let n = self.size.min(other.size);
        // SAFETY: both are live allocations of at least `n` bytes, distinct ones because each HeapChunk owns its own;
        // nobody else knows the address of `self` yet. The bytes of `other` were written by the fetch.
        unsafe { std::ptr::copy_nonoverlapping(other.ptr.as_ptr(), self.ptr.as_ptr(), n) };
    }

    /// Where it is.
    pub fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Its size in bytes; never 0.
    pub fn size(&self) -> usize {
        self.size
    }
}
