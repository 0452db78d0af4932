//! Reading a record from a store with extensions. Its file is opened below the tier's directory; length, trailer and
//! checksums are checked before any field is used.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use objmapper_client::{Entry, EntryFlags, Error, Session};

use crate::outage::Outage;
use crate::record::bytes::Malformed;
use crate::record::file_io::{read_exact_at, unreadable};
use crate::record::tail::{Kind, TRAILER_LEN, Trailer, check_body};

/// The bytes that are read first, from the file's end: enough for all but very long heads.
const FIRST_READ: usize = 16 << 10;

/// Why a record cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Its file is gone: the record was deleted or replaced.
    Gone,
    /// It does not validate, or its file cannot be read.
    Damaged(Malformed),
    /// It could not be read now, for a reason that is not the record's.
    Outage(Outage),
}

impl From<Malformed> for Unreadable {
    fn from(why: Malformed) -> Self {
        Self::Damaged(why)
    }
}

impl Unreadable {
    /// Classifies the error of opening a record's file.
    pub(crate) fn of_errno(errno: i32) -> Self {
        if errno == Errno::ENOENT as i32 { Self::Gone } else { unreadable(Errno::from_raw(errno)) }
    }
}

/// A record with a valid tail.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: OwnedFd,
    pub(crate) trailer: Trailer,
    /// The end of the file; at least the tail.
    end: Vec<u8>,
}

impl Opened {
    /// Opens the file of an entry, and checks its trailer and the checksum of its head.
    pub(crate) fn new(session: &Session, entry: &Entry) -> Result<Self, Unreadable> {
        if entry.flags.contains(EntryFlags::FOREIGN) {
            // The file was made by a v0.1 client, which may still write to it.
            return Err(Malformed("owner").into());
        }
        let file = session.open_entry(entry).map_err(|why| match why {
            Error::Io { errno, .. } => Unreadable::of_errno(errno),
            _ => Unreadable::Outage(Outage::Io),
        })?;
        let size = fstat(&file).map_err(unreadable)?.st_size;
        let size = u64::try_from(size).unwrap_or_default();
        if size != entry.length {
            return Err(Malformed("length").into());
        }
        Self::of_file(file, size)
    }

    /// Reads the tail of a file of `size` bytes, and checks it as [`Self::new`] does.
    pub(crate) fn of_file(file: OwnedFd, size: u64) -> Result<Self, Unreadable> {
        if size < TRAILER_LEN as u64 {
            return Err(Malformed("length").into());
        }
        let end = read_end(&file, size, FIRST_READ)?;
        let last = end.last_chunk::<TRAILER_LEN>().ok_or(Malformed("length"))?;
        let trailer = Trailer::parse(last, size)?;
        let end = if end.len() < trailer.tail_len() { read_end(&file, size, trailer.tail_len())? } else { end };
        let opened = Self { file, trailer, end };
        opened.trailer.check(opened.head())?;
        Ok(opened)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.trailer.kind
    }

    pub(crate) fn head(&self) -> &[u8] {
        let end = self.end.len() - TRAILER_LEN;
        // `end` contains at least the tail.
        self.end.get(end - self.trailer.head_len..end).unwrap_or_default()
    }

    /// Returns the body's last four bytes; `None` if it has fewer.
    pub(crate) fn last_bytes(&self) -> Result<Option<[u8; 4]>, Unreadable> {
        let mut last = [0; 4];
        let Some(offset) = self.trailer.body_len.checked_sub(last.len() as u64) else { return Ok(None) };
        read_exact_at(&self.file, &mut last, offset)?;
        Ok(Some(last))
    }

    /// Reads the whole body, and verifies its checksum.
    pub(crate) fn body(&self) -> Result<Box<[u8]>, Unreadable> {
        let len = usize::try_from(self.trailer.body_len).map_err(|_| Malformed("length"))?;
        let read_already = self.end.len() - self.trailer.tail_len();
        let body = if read_already == len {
            self.end[..len].into()
        } else {
            let mut body = vec![0; len].into_boxed_slice();
            read_exact_at(&self.file, &mut body, 0)?;
            body
        };
        check_body(&self.trailer, &body)?;
        Ok(body)
    }
}

/// Reads the last bytes of a file, at most `len`.
fn read_end(file: &OwnedFd, size: u64, len: usize) -> Result<Vec<u8>, Unreadable> {
    let len = usize::try_from(size).map_or(len, |size| size.min(len));
    let mut end = vec![0; len];
    read_exact_at(file, &mut end, size - len as u64)?;
    Ok(end)
}
