//! The errors of the client. [`Error::is_retryable`] and [`Error::should_reconnect`] say what the caller may do;
//! [`Outage`](crate::Outage) is the kind by which a failure is counted.

use std::fmt;
use std::time::Instant;

use nix::errno::Errno;
use objmapper_proto::ext::Op;
use objmapper_proto::{EncodeError, Malformed, Status, UriError};

/// The failure of a call, or of an attempt to connect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no connection now. Nothing was sent; reconnection runs in the background.
    #[error("no connection to the store")]
    Down {
        /// The time at which the last connection was lost, or the client was made.
        since: Instant,
    },
    /// The deadline passed. The request may or may not have been carried out.
    #[error("no answer from the store in time ({what})")]
    Timeout {
        /// What the call waited for.
        what: &'static str,
    },
    /// The peer closed the connection before it answered. The request may or may not have been carried out.
    #[error("the store closed the connection")]
    Closed,
    /// A system call failed.
    #[error("{what}: {}", std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// The system call, or the step.
        what: &'static str,
        /// The errno.
        errno: i32,
    },
    /// The peer sent bytes that are not a frame, or an answer without a request. The connection is dropped.
    #[error("the store broke the protocol: {0}")]
    Protocol(ProtocolError),
    /// The store answered with a status other than OK.
    #[error("{op}: {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// The operation.
        op: OpName,
        /// The status.
        status: Status,
        /// The store's message; may be empty.
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
    /// A v0.1 store sent a file that is already deleted: two clients created the URI at once.
    #[error("the store sent a file that is already deleted")]
    Unlinked,
    /// The session of the object, lease or pin has ended, and it with the session.
    #[error("the store no longer knows the session")]
    SessionLost,
    /// The client is being dropped.
    #[error("the client is shutting down")]
    ShutDown,
    /// The peer accepts connections and closes them before it has answered anything, in any protocol. An objmapperd that refuses
    /// a client answers with the reason ([`Error::Status`]).
    #[error("it accepts connections and closes them unanswered; remedy: see that an objmapperd listens at the socket")]
    HungUp,
}

/// A violation of the protocol by the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Bytes that cannot be decoded.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Another byte stands where the byte of a descriptor must be.
    #[error("{0:#04x} where the byte of a descriptor should be")]
    NoFdByte(u8),
    /// The byte that should carry descriptors came without them, or with another number of them.
    #[error("{got} descriptors where {expected} should be")]
    FdCount {
        /// The number that the reply announced.
        expected: usize,
        /// The number that was received.
        got: usize,
    },
    /// Descriptors that no reply announced. The client has closed them.
    #[error("{0} descriptors that no reply announced")]
    ExtraFds(usize),
    /// The kernel truncated the descriptors: there were more than the protocol allows, or this process has none free.
    #[error("descriptors were truncated on receipt")]
    FdsCutOff,
    /// An answer without a request.
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
    /// An operation of the extensions.
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

impl Error {
    /// Returns true if the same call may succeed if it is repeated, now or later.
    ///
    /// After [`Error::Timeout`] and [`Error::Closed`] the first call may have been carried out.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Unlinked => true,
            Self::Status { status, .. } => matches!(
                status,
                Status::Storage
                    | Status::Memory
                    | Status::Timeout
                    | Status::Unavailable
                    | Status::Busy
                    | Status::Full
                    | Status::Internal
            ),
            _ => self.should_reconnect(),
        }
    }

    /// Returns true if there is no connection, or it is of no more use. The client makes another one by itself.
    #[must_use]
    pub fn should_reconnect(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Closed | Self::Io { .. } | Self::Protocol(_) | Self::HungUp)
    }

    /// Returns true for the failure of an attempt to connect that is the store's own answer: it does not serve this client.
    pub(crate) fn is_refusal(&self) -> bool {
        self.status().is_some()
    }

    /// Returns the store's status, if it is the reason of the failure.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) fn io(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Io { what, errno: errno as i32 }
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

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
