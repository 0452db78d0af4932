//! Errors that say what to do next.

use std::fmt;
use std::time::Instant;

use objmapper_proto::ext::Op;
use objmapper_proto::{EncodeError, Malformed, Status, UriError};

/// What went wrong with a call, and through [`Error::next_step`] what a caller should do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection at the moment. Nothing was sent; reconnection runs in the background.
    #[error("no connection to the store")]
    Down {
        /// Since when.
        since: Instant,
    },
    /// The deadline passed. The request may or may not have been carried out.
    #[error("no answer from the store in time ({what})")]
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
    /// The peer closed the connection before it answered. The request may or may not have been carried out.
    #[error("the store closed the connection")]
    Closed,
    /// A system call failed.
    #[error("{what}: {}", std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// Which.
        what: &'static str,
        /// Its errno.
        errno: i32,
    },
    /// The peer sent bytes that are no frame, or a frame that answers nothing. The connection is dropped.
    #[error("the store broke the protocol: {0}")]
    Protocol(ProtocolError),
    /// The store answered with a status other than OK.
    #[error("{op}: {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// The operation.
        op: OpName,
        /// The status.
        status: Status,
        /// The store's words for it; may be empty.
        message: Box<str>,
    },
    /// The operation needs the extensions, which this peer does not have.
    #[error("{0} is not offered by an objmapper v0.1 peer")]
    Unsupported(OpName),
    /// The URI cannot be sent to this peer.
    #[error("URI: {0}")]
    Uri(#[from] UriError),
    /// The request is too large for a frame.
    #[error("request too large: {0}")]
    TooLarge(#[from] EncodeError),
    /// A v0.1 store handed out a file that is already deleted: two clients created the URI at once.
    #[error("the store handed out a file that is already deleted")]
    Unlinked,
    /// The session that the object, lease or pin belonged to has ended: it is gone.
    #[error("the store no longer knows the session")]
    SessionLost,
    /// The client is being dropped.
    #[error("the client is shutting down")]
    ShutDown,
    /// The peer accepts connections and closes them before it has answered anything, in any protocol.
    #[error(
        "it accepts connections and closes them unanswered; objmapperd's log says why (--allow-uid, --allow-gid, \
         --max-connections)"
    )]
    HungUp,
}

/// How a peer broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Bytes that cannot be decoded.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The byte that should carry a descriptor is another one.
    #[error("{0:#04x} where the byte of a descriptor should be")]
    NoFdByte(u8),
    /// The byte that should carry descriptors came without them, or with another number of them.
    #[error("{got} descriptors where {expected} should be")]
    FdCount {
        /// How many the reply announced.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// Descriptors that no reply announced. They have been closed.
    #[error("{0} descriptors that no reply announced")]
    ExtraFds(usize),
    /// The kernel cut descriptors off: more than the protocol allows, or this process has no free ones.
    #[error("descriptors were cut off on receipt")]
    FdsCutOff,
    /// An answer to nothing that was asked.
    #[error("an answer with id {0} that no request has")]
    UnknownId(u32),
    /// An answer of another kind than its request.
    #[error("an answer of another kind than the request")]
    WrongKind,
    /// The peer speaks another version of the extensions.
    #[error("extensions version {0}")]
    ExtensionsVersion(u8),
}

/// An operation's name in an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpName {
    /// Of the extensions.
    Ext(Op),
    /// v0.1's get, which creates what is absent.
    GetOrCreate,
    /// v0.1's delete.
    Delete,
}

impl fmt::Display for OpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ext(op) => write!(f, "{op:?}"),
            Self::GetOrCreate => f.write_str("get-or-create"),
            Self::Delete => f.write_str("delete"),
        }
    }
}

/// What a caller should do after an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NextStep {
    /// The same call may well succeed if it is made again, now or a little later.
    Retry,
    /// The same call may succeed once the client has reconnected, which it does by itself.
    RetryAfterReconnect,
    /// Making the same call again cannot help.
    GiveUp,
}

impl Error {
    /// What to do next.
    #[must_use]
    pub fn next_step(&self) -> NextStep {
        match self {
            Self::Timeout { .. } | Self::Unlinked => NextStep::Retry,
            Self::Down { .. } | Self::Closed | Self::Io { .. } | Self::Protocol(_) | Self::HungUp => {
                NextStep::RetryAfterReconnect
            }
            Self::Status { status, .. } => match status {
                Status::Storage
                | Status::Memory
                | Status::Timeout
                | Status::Unavailable
                | Status::Busy
                | Status::Full
                | Status::Internal => NextStep::Retry,
                _ => NextStep::GiveUp,
            },
            Self::Unsupported(_) | Self::Uri(_) | Self::TooLarge(_) | Self::SessionLost | Self::ShutDown => {
                NextStep::GiveUp
            }
        }
    }

    /// Whether the same call may succeed if it is made again.
    ///
    /// After [`Error::Timeout`] and [`Error::Closed`] the first call may have been carried out all the same.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.next_step() != NextStep::GiveUp
    }

    /// Whether the connection is of no more use. The client replaces it by itself.
    #[must_use]
    pub fn should_reconnect(&self) -> bool {
        self.next_step() == NextStep::RetryAfterReconnect
    }

    /// Whether making the same call again cannot help.
    #[must_use]
    pub fn gives_up(&self) -> bool {
        self.next_step() == NextStep::GiveUp
    }

    /// The store's status, if it is why the call failed.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) fn io(what: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::Io { what, errno: errno.raw_os_error() }
    }
}

impl From<ProtocolError> for Error {
    fn from(e: ProtocolError) -> Self {
        Self::Protocol(e)
    }
}

impl From<Malformed> for Error {
    fn from(e: Malformed) -> Self {
        Self::Protocol(ProtocolError::Malformed(e))
    }
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;
