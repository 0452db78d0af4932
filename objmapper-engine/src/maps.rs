//! The mapping of a published body.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

/// All bytes of a published body, read-only.
///
/// Such a file cannot be shortened or changed by a peer: it is opened read-only by everybody, and objmapper published
/// it only after its last writable descriptor and mapping were gone. So reading through the mapping raises no SIGBUS.
pub(crate) struct BodyMap {
    map: MmapRaw,
}

impl BodyMap {
    /// Maps the first `len` bytes. `UnexpectedEof`: the file is not that long.
    pub(crate) fn new(file: &File, len: u64) -> io::Result<BodyMap> {
        let size = file.metadata()?.len();
        if size != len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the body's file has {size} bytes, not {len}"),
            ));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        Ok(BodyMap { map: MmapOptions::new().len(len).map_raw_read_only(file)? })
    }

    /// The address of the byte at `offset`, which must be below the length.
    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(offset as usize)
    }
}
