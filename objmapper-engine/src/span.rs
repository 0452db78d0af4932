//! Bytes of a body that somebody reads: at an address, or in a file.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::maps::BodyMap;
use crate::write_buffer::WriteBuffer;

/// Bytes of a body that can be read for as long as this lives (and, for bytes in heap, the object).
pub struct Span {
    /// The first one.
    pub ptr: NonNull<u8>,
    /// How many there are; not 0.
    pub len: usize,
    /// The body's length now.
    pub total: u64,
    pub(crate) hold: Hold,
}

/// What keeps a span readable.
pub(crate) enum Hold {
    /// varnishd's reference to the object.
    Object,
    /// The buffer of a draft.
    Buffer(#[expect(dead_code, reason = "held for its Drop")] Arc<WriteBuffer>),
    /// The mapping of a published body.
    Stored(#[expect(dead_code, reason = "held for its Drop")] Arc<BodyMap>),
}

impl Span {
    /// Do the bytes stay where they are until the object is dereferenced? Only those of a settled body in heap do.
    pub fn is_stable(&self) -> bool {
        matches!(self.hold, Hold::Object)
    }
}

/// Bytes of a body, as part of a file.
pub struct FileSpan {
    /// The file, which stays as it is, and readable.
    pub file: Arc<File>,
    /// Where in it the first byte is.
    pub offset: u64,
    /// How many there are; not 0.
    pub len: u64,
    /// The body's length now.
    pub total: u64,
}

impl FileSpan {
    /// Is the file shorter than it must be? Only a lost body's is.
    pub fn is_lost(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.len() < self.offset + self.len)
    }
}

/// Why there is no span.
#[derive(Debug)]
pub enum NoSpan {
    /// The offset is at or behind the end of what is there now.
    End,
    /// The body cannot be had any more.
    Lost(std::io::Error),
    /// The process has no descriptors or memory left; the body itself is well.
    NotNow(std::io::Error),
    /// The bytes are there, but have no address (they are in a draft, or cannot be mapped): read them with
    /// [`Body::read_at`](crate::body::Body::read_at).
    Unmapped,
}
