//! Reading and writing a record's file.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};

use crate::outage::Outage;
use crate::record::bytes::Malformed;
use crate::record::reading::Unreadable;

/// Reads all of `buf` at an offset.
pub(crate) fn read_exact_at(file: &OwnedFd, mut buf: &mut [u8], mut offset: u64) -> Result<(), Unreadable> {
    while !buf.is_empty() {
        match pread(file, &mut *buf, offset as i64) {
            Ok(0) => return Err(Malformed("length").into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(unreadable(errno)),
        }
    }
    Ok(())
}

/// Classifies the error of a system call on a record's file: a shortage or a lack of permission, which passes and
/// concerns every record, or a file that cannot be read.
pub(crate) fn unreadable(errno: Errno) -> Unreadable {
    const PASSES: [Errno; 7] =
        [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::EACCES, Errno::EPERM, Errno::EBADF];
    if PASSES.contains(&errno) { Unreadable::Outage(Outage::Io) } else { Malformed("file: it cannot be read").into() }
}

/// Writes all of `bytes` at an offset.
pub(crate) fn write_all_at(file: impl AsFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Outage> {
    while !bytes.is_empty() {
        match pwrite(&file, bytes, offset as i64) {
            Ok(0) => return Err(Outage::Full),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Outage::from(&std::io::Error::from(errno))),
        }
    }
    Ok(())
}
