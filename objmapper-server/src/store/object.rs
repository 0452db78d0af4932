//! One published object, and what callers see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::StoreError;

/// Names a body's file for ever; never reused by one store instance.
pub type ObjectId = u64;

/// `if_version` of an operation without a precondition.
pub const ANY_VERSION: u64 = u64::MAX;

/// A session's name: 16 random bytes.
pub type Token = [u8; 16];

/// Longest URI in bytes (objmapper v0.1's limit).
pub const MAX_URI: usize = 4096;

/// Where an object's body lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TierKind {
    /// The private tmpfs.
    Memory = 1,
    /// The directory on disk.
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

/// Where to put a new object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TierChoice {
    /// Memory if there is such a tier and it can make room, else disk.
    Any,
    /// This tier or nothing.
    Only(TierKind),
}

/// What the store tells about an object: a copy, valid for the moment it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Names the body's file.
    pub object: ObjectId,
    /// Grows with every commit of the store.
    pub version: u64,
    /// The tier that holds the body.
    pub tier: TierKind,
    /// Dies with its session.
    pub ephemeral: bool,
    /// Pinned by the session that asked.
    pub pinned: bool,
    /// Written by a v0.1 client: no commit, the length may change.
    pub foreign: bool,
    /// Bytes of the body.
    pub length: u64,
    /// Milliseconds since 1970 of the commit.
    pub mtime: i64,
    /// Milliseconds since 1970 after which the object is a miss; 0 is never.
    pub expires: i64,
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Refuses what v0.1 would alias, cut or let escape.
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
    /// Bytes that the tier's account carries for it.
    pub(crate) charge: AtomicU64,
    pub(crate) mtime: i64,
    pub(crate) expires: i64,
    /// The session that it dies with.
    pub(crate) ephemeral: Option<Token>,
    pub(crate) foreign: bool,
    /// Foreign, and a writable descriptor of it may be open somewhere: it must be measured again.
    pub(crate) growing: AtomicBool,
    pub(crate) state: Mutex<ObjectState>,
}

/// Who keeps the object. The file is freed by whoever brings it to `!listed && pins == 0`; that
/// happens once, because both change only under this lock and never come back from there.
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
