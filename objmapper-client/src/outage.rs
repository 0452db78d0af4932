//! The kinds of failure, and the outcome of a publication, that all users of a store share.
//!
//! [`Outage`] is the one classification of wire statuses, of the client's errors and of I/O errors. The storage engine and the
//! director count by it, so that the same event has the same kind in both:
//!
//! | kind | [`Error`] | [`Status`] | errno |
//! |---|---|---|---|
//! | `Down` | `Down`, `Closed`, `HungUp`, `SessionLost`, `ShutDown`, `Unsupported` | `Unavailable`, `Refused`, `UnknownSession` | |
//! | `Timeout` | `Timeout` | `Timeout` | |
//! | `Full` | `Io`, by its errno | `Full` | ENOSPC, EDQUOT, EFBIG |
//! | `Io` | `Io`, `Unlinked` | `Storage`, `Memory` | all others |
//! | `Protocol` | `Protocol`, `Uri`, `TooLarge` | all others | |
//!
//! `NotFound` and `Conflict` are answers, which callers take out before they classify. One that was not to be expected is of kind
//! `Protocol`.

use std::io;

use objmapper_proto::Status;

use crate::error::Error;

/// Why a request to the store failed. Each kind has a counter.
///
/// The numbers are part of the C table between storage engine and VMOD (objmapper-abi).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(i32)]
pub enum Outage {
    /// The store is not connected, has ended the session, or does not serve this client: the request was not carried out, or
    /// the connection was lost before its answer.
    #[error("down")]
    Down = 1,
    /// The store did not answer in time.
    #[error("timeout")]
    Timeout = 2,
    /// The store, or its file system, has no room.
    #[error("full")]
    Full = 3,
    /// Input or output failed, or descriptors or memory ran out.
    #[error("io")]
    Io = 4,
    /// The store violated the protocol or refused the request.
    #[error("protocol")]
    Protocol = 5,
}

impl Outage {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Down, Self::Timeout, Self::Full, Self::Io, Self::Protocol];

    fn of_errno(errno: Option<i32>) -> Self {
        match errno.map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT | nix::errno::Errno::EFBIG) => Self::Full,
            _ => Self::Io,
        }
    }
}

impl From<Status> for Outage {
    fn from(status: Status) -> Self {
        match status {
            Status::Unavailable | Status::Refused | Status::UnknownSession => Self::Down,
            Status::Timeout => Self::Timeout,
            Status::Full => Self::Full,
            Status::Storage | Status::Memory => Self::Io,
            Status::Ok
            | Status::NotFound
            | Status::InvalidRequest
            | Status::InvalidMode
            | Status::UriTooLong
            | Status::Unsupported
            | Status::Internal
            | Status::Protocol
            | Status::Version
            | Status::Capability
            | Status::Conflict
            | Status::Busy
            | Status::UnknownHandle => Self::Protocol,
        }
    }
}

impl From<&Error> for Outage {
    fn from(why: &Error) -> Self {
        match why {
            Error::Down { .. }
            | Error::Closed
            | Error::HungUp
            | Error::SessionLost
            | Error::ShutDown
            | Error::Unsupported(_) => Self::Down,
            Error::Timeout { .. } => Self::Timeout,
            Error::Io { errno, .. } => Self::of_errno(Some(*errno)),
            Error::Unlinked => Self::Io,
            Error::Status { status, .. } => Self::from(*status),
            Error::Protocol(_) | Error::Uri(_) | Error::TooLarge(_) => Self::Protocol,
        }
    }
}

impl From<&io::Error> for Outage {
    fn from(why: &io::Error) -> Self {
        match why.kind() {
            // write_all of the standard library: the file took nothing.
            io::ErrorKind::WriteZero => Self::Full,
            _ => Self::of_errno(why.raw_os_error()),
        }
    }
}

/// The outcome of a publication of a complete body under a fence. Except after [`Published::Done`], the body is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Published {
    /// The record is published: other caches find it.
    Done,
    /// All of the body, or a part of it, is not in the store: publish a copy.
    Elsewhere,
    /// The URI was deleted after its fence was read.
    Conflict,
    /// The request failed. After [`Outage::Timeout`] and [`Outage::Down`] the record may have been published.
    Outage(Outage),
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::errno::Errno;
    use objmapper_proto::ext::Op;

    use super::*;
    use crate::error::{OpName, ProtocolError};

    fn io(errno: Errno) -> Error {
        Error::Io { what: "a call", errno: errno as i32 }
    }

    #[test]
    fn every_error_has_its_kind() {
        let op = OpName::Ext(Op::Create);
        for (why, kind) in [
            (Error::Down { since: Instant::now() }, Outage::Down),
            (Error::Closed, Outage::Down),
            (Error::HungUp, Outage::Down),
            (Error::SessionLost, Outage::Down),
            (Error::ShutDown, Outage::Down),
            (Error::Unsupported(op), Outage::Down),
            (Error::Timeout { what: "an answer" }, Outage::Timeout),
            (io(Errno::ENOSPC), Outage::Full),
            (io(Errno::EDQUOT), Outage::Full),
            (io(Errno::EFBIG), Outage::Full),
            (io(Errno::EIO), Outage::Io),
            (io(Errno::EMFILE), Outage::Io),
            (io(Errno::ENOMEM), Outage::Io),
            (Error::Unlinked, Outage::Io),
            (ProtocolError::WrongKind.into(), Outage::Protocol),
            (objmapper_proto::UriError::Empty.into(), Outage::Protocol),
        ] {
            assert_eq!(Outage::from(&why), kind, "{why:?}");
            // A system call that the client makes and one that its user makes have the same kind.
            if let Error::Io { errno, .. } = why {
                assert_eq!(Outage::from(&io::Error::from_raw_os_error(errno)), kind, "{why:?}");
            }
        }
        assert_eq!(Outage::from(&io::Error::from(io::ErrorKind::OutOfMemory)), Outage::Io);
    }

    #[test]
    fn a_status_has_the_kind_of_its_error() {
        for &status in Status::ALL {
            let why = Error::Status { op: OpName::Ext(Op::Create), status, message: "".into() };
            assert_eq!(Outage::from(&why), Outage::from(status));
        }
    }
}
