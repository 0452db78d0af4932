//! Errors of the store. Every failure of an operation is a [`StoreError`]; `net` maps it to a status of the wire.

use std::io;

use super::TierKind;

/// A failure of a store operation. The text names what happened and, if there is one, the
/// remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URI is empty, over 4096 bytes, does not begin with `/`, or has a NUL, an empty, a `.` or
    /// a `..` segment.
    #[error("not a canonical URI: {0}")]
    InvalidUri(&'static str),
    /// A request contradicts itself or the store's state.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// There is no such object.
    #[error("object not found")]
    NotFound,
    /// A precondition failed, or the URI was deleted after the private object was created.
    #[error("conflict: {0}")]
    Conflict(&'static str),
    /// A process still holds a writable descriptor or mapping of the file.
    #[error("the object's file is still open for writing somewhere")]
    Busy,
    /// The session's token is unknown, or the session has ended.
    #[error("unknown session")]
    UnknownSession,
    /// The private object or the lease does not exist (any more).
    #[error("unknown handle")]
    UnknownHandle,
    /// The tier's limit is reached by objects that cannot be evicted.
    #[error(
        "the {tier} tier is full: {wanted} bytes wanted, {limit} is the limit, and what is left is pinned or private"
    )]
    Full {
        /// The full tier.
        tier: TierKind,
        /// Bytes asked for.
        wanted: u64,
        /// The tier's limit in bytes.
        limit: u64,
    },
    /// A count limit (private objects, sessions, leases) is reached.
    #[error("limit of {what} reached: {limit}")]
    TooMany {
        /// What the limit counts.
        what: &'static str,
        /// The configured limit.
        limit: usize,
    },
    /// The tier that was asked for is not configured.
    #[error("there is no {0} tier")]
    NoSuchTier(TierKind),
    /// The configuration or the environment is unusable; the text names the thing and the remedy.
    #[error("{0}")]
    Setup(String),
    /// The file system, or this user's quota on it, has no room left: bytes or inodes.
    #[error("{what}: the file system has no room left: {source}")]
    NoSpace {
        /// The operation.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The disk tier's index failed.
    #[error("disk index: {0}")]
    Index(String),
}

impl StoreError {
    /// Wraps an I/O error with the operation that failed; for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> StoreError {
        move |source| {
            let source = source.into();
            if is_no_space(&source) { StoreError::NoSpace { what, source } } else { StoreError::Io { what, source } }
        }
    }

    /// Returns true if a file system or a quota has no room left.
    pub fn is_no_space(&self) -> bool {
        matches!(self, StoreError::NoSpace { .. })
    }
}

/// Returns true for ENOSPC (bytes or inodes) and EDQUOT.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}
