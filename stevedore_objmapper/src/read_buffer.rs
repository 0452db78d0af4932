//! Buffers into which bodies are read for consumers that look at their bytes.
//!
//! They are in no storage's account: there is one for each delivery that is under way and reads. At most [`MAX_IDLE`] idle ones are
//! kept, so that a hit allocates nothing.

use std::ops::{Deref, DerefMut};

use parking_lot::Mutex;

/// Bytes of a buffer. Smaller ones cost more system calls and wake the client more often, larger ones leave the processor's
/// cache (DESIGN.md, "How a body is read").
pub(crate) const SIZE: usize = 128 << 10;

/// The number of idle buffers that are kept.
const MAX_IDLE: usize = 64;

static IDLE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer of [`SIZE`] bytes; it holds what was read last.
pub(crate) struct ReadBuffer(Box<[u8]>);

impl ReadBuffer {
    /// An idle one, or a new one.
    pub(crate) fn take() -> ReadBuffer {
        let idle = IDLE.lock().pop();
        ReadBuffer(idle.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        let mut idle = IDLE.lock();
        if idle.len() < MAX_IDLE {
            idle.push(buffer);
        }
    }
}
