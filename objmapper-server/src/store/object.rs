//! A published object, and the [`Entry`] that callers get of it: the wire's.
//!
//! The file is named by the object's id and is freed exactly once: when the object is neither listed (found by its URI) nor pinned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use objmapper_proto::ext::{Entry, EntryFlags, Token};
use parking_lot::Mutex;

use super::StoreError;
use super::tier::Tier;
use super::tier::journal::{Op, Row};

/// The id of an object, which names its file. One store instance never uses an id twice.
pub type ObjectId = u64;

/// The value of `if_version` for an operation without a precondition.
pub const ANY_VERSION: u64 = u64::MAX;

/// Maximum length of a URI in bytes (objmapper v0.1's limit).
pub const MAX_URI: usize = 4096;

/// Returns the time in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Checks that a URI is canonical. Refuses URIs that v0.1 would alias, truncate or resolve outside of its directory.
pub fn check_uri(uri: &[u8]) -> Result<(), StoreError> {
    let problem = if uri.is_empty() {
        "it is empty"
    } else if uri.len() > MAX_URI {
        "it is longer than 4096 bytes"
    } else if uri[0] != b'/' {
        "it does not begin with '/'"
    } else if uri.contains(&0) {
        "it has a NUL byte"
    } else if uri[1..].split(|b| *b == b'/').any(|s| matches!(s, b"" | b"." | b"..")) {
        "it has an empty, '.' or '..' segment"
    } else {
        return Ok(());
    };
    Err(StoreError::InvalidUri(problem))
}

/// A published object. `length` and `charge` change only while it is foreign and still written.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) id: ObjectId,
    pub(crate) uri: Arc<[u8]>,
    pub(crate) tier: Arc<Tier>,
    pub(crate) length: AtomicU64,
    /// Bytes that the tier's account is charged for it.
    pub(crate) charge: AtomicU64,
    pub(crate) mtime: i64,
    pub(crate) expires: i64,
    /// The session whose end deletes the object.
    pub(crate) ephemeral: Option<Token>,
    pub(crate) foreign: bool,
    /// True if the object is foreign and a writable descriptor of it may be open: it must be measured again.
    pub(crate) growing: AtomicBool,
    pub(crate) state: Mutex<ObjectState>,
}

/// What keeps the object's file. The thread that brings it to `!listed && pins == 0` frees the file. That
/// happens once, because both change only under this lock and that state is final.
#[derive(Debug)]
pub(crate) struct ObjectState {
    pub(crate) pins: u32,
    pub(crate) listed: bool,
}

impl Object {
    /// Returns the object of a journal's row, without pins.
    pub(super) fn of_row(row: Row, tier: Arc<Tier>) -> Object {
        Object {
            id: row.id,
            tier,
            length: AtomicU64::new(row.length),
            charge: AtomicU64::new(row.charge),
            mtime: row.mtime,
            expires: row.expires,
            ephemeral: row.session,
            foreign: row.foreign,
            // Its writers are other processes, which may still run.
            growing: AtomicBool::new(row.foreign),
            state: Mutex::new(ObjectState { pins: 0, listed: row.uri.is_some() }),
            uri: row.uri.unwrap_or_default(),
        }
    }

    /// Returns the object's row.
    pub(super) fn row(&self) -> Row {
        Row {
            id: self.id,
            uri: Some(self.uri.clone()),
            length: self.length.load(Relaxed),
            charge: self.charge(),
            mtime: self.mtime,
            expires: self.expires,
            foreign: self.foreign,
            session: self.ephemeral,
        }
    }

    /// Queues the removal of the object's row.
    pub(super) fn forget_row(&self) {
        self.tier.record_later(Op::Forget(self.id));
    }

    pub(crate) fn expired(&self, now: i64) -> bool {
        self.expires != 0 && self.expires <= now
    }

    pub(crate) fn charge(&self) -> u64 {
        self.charge.load(Relaxed)
    }

    pub(crate) fn entry(&self, pinned: bool) -> Entry {
        Entry {
            object: self.id,
            version: self.id,
            tier: self.tier.kind,
            flags: EntryFlags::NONE
                .with(EntryFlags::EPHEMERAL, self.ephemeral.is_some())
                .with(EntryFlags::PINNED, pinned)
                .with(EntryFlags::FOREIGN, self.foreign),
            length: self.length.load(Relaxed),
            mtime: self.mtime,
            expires: self.expires,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_uris_only() {
        for good in [&b"/a"[..], b"/a/b.c", b"/...", b"/a/..b", &[&b"/"[..], &[b'x'; 4095]].concat()] {
            assert!(check_uri(good).is_ok(), "{good:?}");
        }
        let long = [&b"/"[..], &[b'x'; 4096]].concat();
        for bad in [&b""[..], b"a", b"/", b"/a/", b"//a", b"/a//b", b"/../x", b"/a/.", b"/a\0b", &long] {
            assert!(check_uri(bad).is_err(), "{bad:?}");
        }
    }
}
