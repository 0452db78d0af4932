//! A published object, and the [`Entry`] that callers get of it.
//!
//! The file is named by the object's id and is freed exactly once: when the object is neither listed (found by its URI) nor pinned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::StoreError;

/// The id of an object, which names its file. One store instance never uses an id twice.
pub type ObjectId = u64;

/// The value of `if_version` for an operation without a precondition.
pub const ANY_VERSION: u64 = u64::MAX;

/// A session's name: 16 random bytes.
pub type Token = [u8; 16];

/// Maximum length of a URI in bytes (objmapper v0.1's limit).
pub const MAX_URI: usize = 4096;

/// The tier of an object's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TierKind {
    /// The memory tier: a tmpfs.
    Memory = 1,
    /// The disk tier: a directory.
    Disk = 2,
}

impl std::fmt::Display for TierKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TierKind::Memory => "memory",
            TierKind::Disk => "disk",
        })
    }
}

/// The tier for a new object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TierChoice {
    /// The memory tier if it is configured and can make room, else the disk tier.
    Any,
    /// This tier; the operation fails if it has no room.
    Only(TierKind),
}

/// A copy of an object's attributes at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The object's id, which names the body's file.
    pub object: ObjectId,
    /// Grows with every commit of the store.
    pub version: u64,
    /// The tier that holds the body.
    pub tier: TierKind,
    /// True if the object is deleted with its session.
    pub ephemeral: bool,
    /// True if the requesting session pins the object.
    pub pinned: bool,
    /// True if a v0.1 client writes the object: there was no commit, and the length may change.
    pub foreign: bool,
    /// Bytes of the body.
    pub length: u64,
    /// Time of the commit in milliseconds since 1970.
    pub mtime: i64,
    /// Milliseconds since 1970 after which the object is a miss; 0 is never.
    pub expires: i64,
}

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
    pub(crate) tier: TierKind,
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
            tier: self.tier,
            ephemeral: self.ephemeral.is_some(),
            pinned,
            foreign: self.foreign,
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
