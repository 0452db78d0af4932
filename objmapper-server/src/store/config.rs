//! Configuration of a store.

use std::path::PathBuf;
use std::time::Duration;

use super::tier::memory::MemoryMount;

/// The memory tier's configuration.
#[derive(Debug)]
pub struct MemoryTier {
    /// The limit in bytes, for bodies in whole pages.
    pub limit: u64,
    /// The tier's file system, if the caller has made it; `None` makes one.
    pub mount: Option<MemoryMount>,
}

/// The disk tier's configuration.
#[derive(Debug, Clone)]
pub struct DiskTier {
    /// The directory; created with mode 0700 if it does not exist. The store uses only
    /// `objmapper-store` below it.
    pub dir: PathBuf,
    /// The limit in bytes, for bodies in whole pages and for the index. No reservation passes it.
    pub limit: u64,
}

/// What becomes of a disk tier's index that cannot be used: it is damaged, of another version or program, or has ended the starts
/// that loaded it. The tier starts empty in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Damaged {
    /// It is moved to `objmapper-store/set-aside-N`, outside the limit: the newest two, a 64th of the limit at most.
    #[default]
    Keep,
    /// It is removed.
    Delete,
}

/// Configuration of a store. It needs at least one tier.
#[derive(Debug)]
pub struct StoreConfig {
    /// The memory tier.
    pub memory: Option<MemoryTier>,
    /// The disk tier.
    pub disk: Option<DiskTier>,
    /// What becomes of a disk tier's index that cannot be used.
    pub damaged: Damaged,
    /// The time that a session lives without connections.
    pub session_grace: Duration,
    /// The maximum number of private objects; each holds a descriptor of this process.
    pub max_private: usize,
    /// The maximum number of sessions.
    pub max_sessions: usize,
    /// If true, v0.1 clients get writable descriptors of existing objects, as from v0.1.
    pub legacy_writable: bool,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            memory: None,
            disk: None,
            damaged: Damaged::default(),
            session_grace: Duration::from_secs(60),
            max_private: 4096,
            max_sessions: 1024,
            legacy_writable: false,
        }
    }
}

/// The smallest limit of a tier.
pub const MIN_LIMIT: u64 = 1 << 20;
