//! The mappings through which bodies are read.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

use crate::backing::Stored;

/// All bytes of a published body, read-only, without what its file has behind them.
///
/// Such a file cannot be shortened or changed by a peer: it is opened read-only by everybody, and objmapper published
/// it only after its last writable descriptor and mapping were gone. So reading through the mapping raises no SIGBUS.
pub(crate) struct BodyMap {
    map: MmapRaw,
}

impl BodyMap {
    /// Maps the body at the beginning of its file. `UnexpectedEof`: the file has not the length that it must have.
    pub(crate) fn new(file: &File, stored: &Stored) -> io::Result<BodyMap> {
        let size = file.metadata()?.len();
        if size != stored.file_len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the body's file has {size} bytes, not {}", stored.file_len),
            ));
        }
        Ok(BodyMap { map: map_read_only(file, 0, stored.body_len)? })
    }

    /// The address of the byte at `offset`, which must be below the length.
    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(offset as usize)
    }
}

/// `len` bytes of a body's file from `start` (a multiple of the page size) on, read-only. They may go beyond the file's
/// end: what is there must not be touched.
pub(crate) fn map_read_only(file: &File, start: u64, len: u64) -> io::Result<MmapRaw> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    MmapOptions::new().offset(start).len(len).map_raw_read_only(file)
}
