//! The operations of a v0.1 peer: get-or-create and delete.
//!
//! A v0.1 store cannot look up without creating, does not publish atomically, and gives every client a writable
//! descriptor. A body from it can be empty, torn, shortened at any time, or deleted already. So a
//! reader reads ([`V01Object::read_at`]) instead of mapping, takes an empty object for a miss, and uses
//! a body only after it has validated it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::uio::pread;
use objmapper_proto::ext::IfVersion;
use objmapper_proto::limits::MAX_V01_URI;
use objmapper_proto::v2::ClientFrame;
use objmapper_proto::{EncodeError, Mode, ObjUri, v1, v2};

use crate::answer::{Answer, Expect};
use crate::client::Client;
use crate::connection::Connection;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::objects::found_or_not;
use crate::state::Version;

/// A file received for a V1 or V2 request.
#[derive(Debug)]
pub struct V01Object {
    fd: OwnedFd,
    len: u64,
}

impl V01Object {
    /// Returns the size in bytes at the time of receipt.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if the file was empty. With v0.1 that is a miss, whatever the status: this request may
    /// have created the object, or its content is lost.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads at `offset`. Returns fewer bytes than `buf` has only at the end of the file, which may have moved.
    ///
    /// # Errors
    /// [`Error::Io`] if the read fails.
    pub fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<usize> {
        let wanted = buf.len();
        while !buf.is_empty() {
            // No file has a byte at an offset that off_t cannot express.
            let Ok(at) = i64::try_from(offset) else { break };
            match pread(&self.fd, buf, at) {
                Ok(0) => break,
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::io("pread")(e)),
            }
        }
        Ok(wanted - buf.len())
    }

    /// Returns the descriptor: open for reading and writing, close-on-exec, at offset 0.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn new(fd: OwnedFd) -> Result<Self> {
        let stat = fstat(&fd).map_err(Error::io("fstat"))?;
        if stat.st_nlink == 0 {
            // Two clients created it at once and this file was replaced: what is written to it is lost.
            return Err(Error::Unlinked);
        }
        Ok(Self { fd, len: u64::try_from(stat.st_size).unwrap_or_default() })
    }
}

impl AsFd for V01Object {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The tier for a new object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum V01Tier {
    /// The store decides.
    #[default]
    Default,
    /// The ephemeral tier (V2 only).
    Ephemeral,
}

impl Client {
    /// Returns the file of a URI, and creates an empty one if it is absent. Works with every peer.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Uri`] for a URI that v0.1 would misinterpret (nothing is sent then),
    /// [`Error::Unlinked`] and status [`Storage`](crate::Status::Storage) when two clients have created it at once.
    pub fn get_or_create(&self, uri: &ObjUri<'_>, tier: V01Tier) -> Result<V01Object> {
        uri.check_v01()?;
        let connection = self.inner.pool.pick()?;
        let flags = match (tier, connection.version) {
            (V01Tier::Default, _) => 0,
            (V01Tier::Ephemeral, Version::V1) => return Err(Error::Unsupported(OpName::GetOrCreate)),
            (V01Tier::Ephemeral, _) => v2::FLAG_EPHEMERAL,
        };
        let deadline = self.deadline();
        let answer = send(&connection, Expect::Fd, Mode::Fd, flags, uri.as_bytes(), deadline)?;
        let mut answer = answer.checked(OpName::GetOrCreate, &self.inner.pool.counters)?;
        let fd = answer.fds.pop().ok_or(ProtocolError::FdCount { expected: 1, got: 0 })?;
        V01Object::new(fd)
    }

    pub(crate) fn delete_v01(&self, connection: &Connection, uri: &ObjUri<'_>, if_version: IfVersion) -> Result<bool> {
        if if_version != IfVersion::Any {
            return Err(Error::Unsupported(OpName::Delete));
        }
        uri.check_v01()?;
        let mut path = Vec::with_capacity(b"/delete".len() + MAX_V01_URI);
        path.extend_from_slice(b"/delete");
        path.extend_from_slice(uri.as_bytes());
        let answer = send(connection, Expect::NoFd, Mode::Fd, 0, &path, self.deadline())?;
        Ok(found_or_not(answer.checked(OpName::Delete, &self.inner.pool.counters))?.is_some())
    }
}

fn send(
    connection: &Connection,
    expect: Expect,
    mode: Mode,
    flags: u8,
    uri: &[u8],
    deadline: Instant,
) -> Result<Answer> {
    let encode = |id: u32, out: &mut Vec<u8>| -> Result<(), EncodeError> {
        match connection.version {
            Version::V1 => v1::Request { mode: mode.byte(), uri }.encode(out),
            Version::V2 | Version::Extended => {
                ClientFrame::Request(v2::Request { id, flags, mode: mode.byte(), uri }).encode(out)
            }
        }
    };
    let ticket = connection.submit(expect, deadline, encode)?;
    connection.wait(&ticket, deadline)
}
