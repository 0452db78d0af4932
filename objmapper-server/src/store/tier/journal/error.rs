//! Failures of a journal, classified by the store's reaction: evict and retry, start empty, or report.

use std::io;

use rusqlite::ErrorCode;

use crate::store::StoreError;

/// A failure of a journal, classified by the store's reaction.
#[derive(Debug, Clone)]
pub(crate) enum JournalError {
    /// The file system or the quota has no room: the store evicts and tries again.
    NoSpace(String),
    /// A read or write failed: the file system has no room (SQLite reports EDQUOT so), or the disk is bad.
    Io(String),
    /// The files' content cannot be used: the store starts empty.
    Damaged(String),
    /// Any other failure: memory, descriptors, permissions.
    Other(String),
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => JournalError::NoSpace(text),
            Some(ErrorCode::SystemIoFailure) => JournalError::Io(text),
            Some(
                ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::NoLargeFileSupport
                | ErrorCode::FileLockingProtocolFailed,
            ) => JournalError::Other(text),
            // Corrupt, not a database, no such table, another type; and rusqlite's errors for impossible values.
            _ => JournalError::Damaged(text),
        }
    }
}

impl JournalError {
    /// Converts it for the store's callers. `full` returns true if the file system has no room, which is then the cause of an
    /// I/O error.
    pub(crate) fn into_store_error(self, full: impl FnOnce() -> bool) -> StoreError {
        match self {
            JournalError::NoSpace(text) => no_space(text),
            JournalError::Io(text) if full() => no_space(text),
            JournalError::Io(text) | JournalError::Damaged(text) | JournalError::Other(text) => StoreError::Index(text),
        }
    }
}

fn no_space(text: String) -> StoreError {
    StoreError::NoSpace { what: "the disk tier's index", source: io::Error::other(text) }
}

impl std::fmt::Display for JournalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (JournalError::NoSpace(text)
        | JournalError::Io(text)
        | JournalError::Damaged(text)
        | JournalError::Other(text)) = self;
        f.write_str(text)
    }
}
