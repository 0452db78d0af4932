//! Why a store request failed, each with its counter.

use objmapper_client::{Error, Status};

/// Why a store request failed. Each kind has a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Outage {
    /// The store is not connected: no request was sent.
    #[error("down")]
    Down,
    /// The store did not answer in time.
    #[error("timeout")]
    Timeout,
    /// The store has no room.
    #[error("full")]
    Full,
    /// Input or output failed, or descriptors ran out.
    #[error("io")]
    Io,
    /// The store violated the protocol or refused the request.
    #[error("protocol")]
    Protocol,
}

impl From<&Error> for Outage {
    fn from(why: &Error) -> Self {
        match why {
            Error::Down { .. } | Error::Closed | Error::ShutDown | Error::SessionLost => Self::Down,
            Error::Timeout { .. } => Self::Timeout,
            Error::Io { .. } | Error::Unlinked => Self::Io,
            Error::Status { status, .. } => match status {
                Status::Full | Status::Memory => Self::Full,
                Status::Timeout => Self::Timeout,
                Status::Storage => Self::Io,
                Status::Unavailable => Self::Down,
                _ => Self::Protocol,
            },
            _ => Self::Protocol,
        }
    }
}
