//! What a failure of the disk tier's index means for the store.

use std::io;

use rusqlite::ErrorCode;

use super::StoreError;

/// A failure of the index, by what can be done about it.
#[derive(Debug, Clone)]
pub(crate) enum IndexError {
    /// The file system or the quota has no room: make some and try again.
    NoSpace(String),
    /// A read or write failed: the file system has no room (SQLite reports EDQUOT so), or the disk is bad.
    Io(String),
    /// What the files hold cannot be used: start empty.
    Damaged(String),
    /// Anything else: memory, descriptors, permissions.
    Other(String),
}

impl From<rusqlite::Error> for IndexError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => IndexError::NoSpace(text),
            Some(ErrorCode::SystemIoFailure) => IndexError::Io(text),
            Some(
                ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::NoLargeFileSupport
                | ErrorCode::FileLockingProtocolFailed,
            ) => IndexError::Other(text),
            // Corrupt, no database, no such table, another type; and rusqlite's own, of values that cannot be.
            _ => IndexError::Damaged(text),
        }
    }
}

impl IndexError {
    /// As the store's callers see it. `full` tells whether an input or output error is one of want of room.
    pub(crate) fn into_store_error(self, full: impl FnOnce() -> bool) -> StoreError {
        match self {
            IndexError::NoSpace(text) => no_space(text),
            IndexError::Io(text) if full() => no_space(text),
            IndexError::Io(text) | IndexError::Damaged(text) | IndexError::Other(text) => StoreError::Index(text),
        }
    }
}

fn no_space(text: String) -> StoreError {
    StoreError::NoSpace { what: "the disk tier's index", source: io::Error::other(text) }
}

impl std::fmt::Display for IndexError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (IndexError::NoSpace(text) | IndexError::Io(text) | IndexError::Damaged(text) | IndexError::Other(text)) =
            self;
        f.write_str(text)
    }
}
