//! Bytes of a body that a reader asks for: at an address, in a file, or mapped for the kernel.
//!
//! A file may fail at any time: its disk answers EIO, its file system is shut down, a hole in it finds a full tmpfs. Reading
//! it by a system call ([`FileSpan::read`]) makes that an error code; reading it through a mapping makes it SIGBUS, which
//! ends the process. So varnishd and its filters only ever look at bytes in heap and in buffers. A mapping
//! ([`MappedSpan`]) is for the kernel alone, for which such a page is EFAULT.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;

use crate::maps::BodyMap;
use crate::write_buffer::WriteBuffer;

/// Bytes of a body from an offset on, as many as are in one place.
pub enum Part {
    /// At an address.
    Addressable(Span),
    /// In a file.
    InFile(FileSpan),
    /// In a file, and mapped for the kernel to read.
    Mapped(MappedSpan),
}

impl Part {
    /// Returns the number of bytes; never 0.
    pub fn len(&self) -> u64 {
        match self {
            Part::Addressable(span) => span.len as u64,
            Part::InFile(span) => span.len,
            Part::Mapped(span) => span.len,
        }
    }

    /// Returns false: a part is never empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The body's length when the part was made, in bytes.
    pub fn total(&self) -> u64 {
        match self {
            Part::Addressable(span) => span.total,
            Part::InFile(span) => span.total,
            Part::Mapped(span) => span.total,
        }
    }

    /// Returns true if and only if the bytes stay where they are until the object is dereferenced. Only those of a settled
    /// body in heap do.
    pub fn is_stable(&self) -> bool {
        matches!(self, Part::Addressable(Span { hold: Hold::Object, .. }))
    }
}

/// Bytes of a body that can be read for as long as this lives (and, for bytes in heap, the object).
pub struct Span {
    /// The address of the first byte.
    pub ptr: NonNull<u8>,
    /// The number of bytes; never 0.
    pub len: usize,
    /// The body's length when the part was made, in bytes.
    pub total: u64,
    pub(crate) hold: Hold,
}

/// What keeps the bytes of a span in place.
pub(crate) enum Hold {
    /// varnishd's reference to the object.
    Object,
    /// The buffer of a draft.
    Buffer(#[expect(dead_code, reason = "held for its Drop")] Arc<WriteBuffer>),
}

/// Bytes of a body, as part of a file.
#[derive(Clone)]
pub struct FileSpan {
    /// The file, open for reading.
    pub file: Arc<File>,
    /// The offset of the first byte in the file.
    pub offset: u64,
    /// The number of bytes; never 0.
    pub len: u64,
    /// The body's length when the part was made, in bytes.
    pub total: u64,
}

impl FileSpan {
    /// Reads the first bytes into `buffer`, as many as fit. Returns their number; never 0.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, NoSpan> {
        let want = buffer.len().min(usize::try_from(self.len).unwrap_or(usize::MAX));
        loop {
            match self.file.read_at(&mut buffer[..want], self.offset) {
                Ok(0) => {
                    return Err(NoSpan::Lost(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends too early")));
                }
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NoSpan::from_error(error)),
            }
        }
    }
}

/// Bytes of a published body at addresses that only the kernel may read (`writev`).
pub struct MappedSpan {
    pub(crate) map: Arc<BodyMap>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) total: u64,
}

impl MappedSpan {
    /// The address of the first byte.
    pub fn ptr(&self) -> *const u8 {
        self.map.at(self.offset)
    }

    /// Makes a call in which the kernel reads the bytes, and returns its result; an error if the call failed because
    /// the file could not be read. `failed` returns true for a result that is a failure and of which `errno` is still
    /// that of the system call.
    pub fn lend<T>(&self, call: impl FnOnce() -> T, failed: impl FnOnce(&T) -> bool) -> Result<T, io::Error> {
        Errno::clear();
        let result = call();
        let errno = Errno::last();
        if failed(&result) && errno == Errno::EFAULT { Err(Errno::EIO.into()) } else { Ok(result) }
    }
}

/// Why a part of a body cannot be returned.
#[derive(Debug)]
pub enum NoSpan {
    /// The offset is at or behind the body's present end, or the bytes were given back.
    End,
    /// The body's file is gone, or cannot be read.
    Lost(io::Error),
    /// The process or the system has no descriptors or memory left; the body itself is intact.
    NotNow(io::Error),
}

impl NoSpan {
    /// Classifies the error of a system call on a body's file.
    pub(crate) fn from_error(error: io::Error) -> NoSpan {
        if ran_out(&error) { NoSpan::NotNow(error) } else { NoSpan::Lost(error) }
    }
}

/// Returns true if the process or the system has run out of descriptors, mappings or memory.
pub(crate) fn ran_out(error: &io::Error) -> bool {
    const OUT: [Errno; 3] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM];
    OUT.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
