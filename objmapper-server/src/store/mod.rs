//! The store: objects by URI, each a file in a tier; the same code in `objmapperd` and embedded.
//!
//! | file | concept |
//! |---|---|
//! | `object` | one published object, its [`Entry`], canonical URIs |
//! | `index` | the object of each URI |
//! | `tier` | a directory of body files |
//! | `mount`, `tmpfs`, `userns` | the memory tier's file system, and the ways to make it |
//! | `account`, `evict` | the accounting of a tier's bytes; the order of eviction |
//! | `board` | counters shared with clients; the fences that order commits with deletes |
//! | `private`, `publish` | create, reserve, abort; commit, delete, evict |
//! | `session`, `lease` | a client's session; leases on missing URIs |
//! | `pin` | a session's pins |
//! | `grant`, `delivery` | what a reply gives its client; the grants of replies that the client may not have read |
//! | `foreign` | objects of v0.1 clients |
//! | `writers` | files that a client can still write, held to what the account carries for them |
//! | `open` | opening a store, and what a restart finds on disk |
//! | `disk_dir` | the disk tier's directory, its lock and its owner |
//! | `disk_index`, `index_error` | the disk tier's database, and its failures |
//! | `room` | a file system with less room than the limit |
//! | `maintenance` | the store's threads |
//!
//! Locks, in the order in which one may be taken while another is held: a delivery's state, a private object's state, a
//! fence's gate, `measuring`, `evicting`, a shard's `publish`, the lease table, a shard's `map` or a session's
//! state, an object's state, a tier's order. The list of `leftovers` may be taken under any of the first six, and nothing but
//! counters under it. System calls and database transactions happen under these seven only, and a look-up takes none of those (but for objects that a v0.1 client still writes).
//!
//! ```
//! use objmapper_server::store::{Commit, MemoryTier, Store, StoreConfig};
//! use std::io::Write;
//!
//! let memory = MemoryTier { limit: 16 << 20, mount: None };
//! let store = Store::open(StoreConfig { memory: Some(memory), ..StoreConfig::default() })?;
//! let session = store.session(None)?;
//!
//! let mut private = session.create(None, 5, Some(b"/a"))?;
//! let file = private.file().unwrap().try_clone_to_owned()?;
//! std::fs::File::from(file).write_all(b"hello")?; // closed again here: the commit demands it
//! let entry = private.commit(Commit { pin: true, ..Commit::new(b"/a", 5) })?;
//!
//! let (found, body) = session.open(b"/a", false)?.unwrap();
//! assert_eq!(found.object, entry.object);
//! assert_eq!(std::io::read_to_string(std::fs::File::from(body))?, "hello");
//! session.release(&[entry.object]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod account;
mod board;
mod delivery;
mod disk_dir;
mod disk_index;
mod error;
mod evict;
mod foreign;
mod grant;
mod index;
mod index_error;
mod lease;
mod maintenance;
mod mount;
mod object;
mod open;
mod pin;
mod private;
mod publish;
mod room;
mod session;
mod tier;
mod tmpfs;
mod userns;
mod writers;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

pub use delivery::{Delivery, RequestGuard};
pub use error::StoreError;
pub use grant::Grant;
pub use lease::{LeaseCallback, LeaseOutcome};
pub use mount::{MemoryMount, MountKind, ShmDirectory};
pub use object::{ANY_VERSION, MAX_URI, ObjectId, check_uri};
// The wire's types are the store's: there is one definition of each.
pub use objmapper_proto::ext::{Entry, Fence, Tier as TierKind, Token};
#[cfg(feature = "daemon")]
pub(crate) use private::OutgoingWriter;
pub use private::{Commit, PrivateObject};
pub use session::Session;
pub use tier::body_path;
pub use tmpfs::MountAccess;

use board::Board;
use disk_index::DiskIndex;
use index::Index;
use maintenance::Wake;
use object::Object;
use publish::{Deletion, Ids};
use room::Room;
use session::SessionCore;
use tier::Tier;

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

/// Treatment of a disk tier whose index cannot be read, or is of another format. The store starts empty in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// Its files are removed.
    #[default]
    Discard,
    /// Its files are moved to `objmapper-store/damaged`, outside the limit. If that exists, they are removed.
    Keep,
}

/// Configuration of a store. It needs at least one tier.
#[derive(Debug)]
pub struct StoreConfig {
    /// The memory tier.
    pub memory: Option<MemoryTier>,
    /// The disk tier.
    pub disk: Option<DiskTier>,
    /// Treatment of a disk tier that cannot be read.
    pub on_damage: OnDamage,
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
            on_damage: OnDamage::default(),
            session_grace: Duration::from_secs(60),
            max_private: 4096,
            max_sessions: 1024,
            legacy_writable: false,
        }
    }
}

/// The smallest limit of a tier.
pub const MIN_LIMIT: u64 = 1 << 20;

/// A tier's figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierStats {
    /// The tier that the figures are of.
    pub tier: TierKind,
    /// The limit in bytes.
    pub limit: u64,
    /// The bound now: the limit, or less if the file system has less room.
    pub bound: u64,
    /// Bytes of all live files, in whole pages (listed, pinned, private, or still open for writing), and of the index. Never
    /// above the limit.
    pub used: u64,
    /// Bytes of the index.
    pub index: u64,
    /// Bytes of pinned objects.
    pub pinned: u64,
    /// Objects that can be looked up.
    pub objects: u64,
    /// Objects evicted since the start.
    pub evictions: u64,
    /// Bytes evicted since the start.
    pub evicted_bytes: u64,
}

/// The store's figures at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// One per tier.
    pub tiers: Vec<TierStats>,
    /// Sessions, those in their grace time included.
    pub sessions: usize,
    /// Private objects, and files of former private objects that a client can still write.
    pub private: usize,
    /// Leases that are held.
    pub leases: usize,
    /// Objects whose file was missing.
    pub lost_files: u64,
    /// Objects of v0.1 clients deleted because they outgrew the tier.
    pub foreign_overruns: u64,
    /// Files truncated because a client had written more than was charged for them, and the tier had no room for it.
    pub writer_overruns: u64,
    /// Operations that found no room in the file system or the quota; most succeeded after an eviction.
    pub no_space: u64,
    /// Operations that failed because of another error of a disk or of the index.
    pub storage_errors: u64,
    /// Files without a row that had the name for a new body.
    pub orphan_names: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// URIs and their objects, in byte order of the URIs.
    pub entries: Vec<(Arc<[u8]>, Entry)>,
    /// True if this is the last page. Otherwise the last URI is the cursor of the next page.
    pub last: bool,
}

/// A handle of a store. Clones are handles of the same store; all threads may use them at once.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Declared after `inner`, so that it is dropped after it: the last handle joins the threads, and the store
    /// is closed when its drop returns.
    _threads: Arc<maintenance::Threads>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    memory: Option<Tier>,
    disk: Option<Tier>,
    /// Held because its drop removes the fallback directory.
    _mount: Option<MemoryMount>,
    /// The lock of the disk tier's directory, which one process at a time may use.
    _lock: Option<OwnedFd>,
    disk_index: Option<DiskIndex>,
    instance: Token,
    board: Board,
    index: Index,
    ids: Mutex<Ids>,
    /// Ids below this one are of former runs.
    first_id: ObjectId,
    /// Objects that the disk index held at the start, in the order of their ids, until the sweep for orphans ends.
    found_at_start: Mutex<Vec<Arc<Object>>>,
    /// Ephemeral objects among them whose session has ended, until the same sweep removes them.
    leftovers: Mutex<Vec<Arc<Object>>>,
    room: Room,
    /// True once the objects found at the start are in the eviction order.
    policy_filled: AtomicBool,
    next_handle: AtomicU64,
    sessions: Mutex<HashMap<Token, Arc<SessionCore>>>,
    leases: lease::Leases,
    expiry: Mutex<BTreeMap<(i64, ObjectId), Arc<Object>>>,
    /// Objects whose `growing` is set.
    foreign: Mutex<BTreeMap<ObjectId, Arc<Object>>>,
    foreign_cursor: AtomicU64,
    foreign_overruns: AtomicU64,
    /// Files without a name that are still open for writing.
    given_up: Mutex<Vec<writers::GivenUp>>,
    writer_overruns: AtomicU64,
    lost_files: AtomicU64,
    measuring: Mutex<()>,
    evicting: Mutex<()>,
    private_count: AtomicUsize,
    /// True if bodies were committed to disk since the last checkpoint.
    unsynced: AtomicBool,
    session_grace: Duration,
    max_private: usize,
    max_sessions: usize,
    legacy_writable: bool,
    wake: Arc<Wake>,
    disk_wake: Arc<Wake>,
}

impl Inner {
    pub(crate) fn tier(&self, kind: TierKind) -> Result<&Tier, StoreError> {
        let tier = match kind {
            TierKind::Memory => &self.memory,
            TierKind::Disk => &self.disk,
            TierKind::Other(_) => &None,
        };
        tier.as_ref().ok_or(StoreError::NoSuchTier(kind))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let (Some(disk), Some(index)) = (&self.disk, &self.disk_index) {
            let closed = rustix::fs::syncfs(&disk.dir)
                .map_err(|e| e.to_string())
                .and_then(|()| index.close_cleanly().map_err(|e| e.to_string()));
            if let Err(e) = closed {
                log::error!("closing the disk tier: {e}");
            }
        }
    }
}

impl Store {
    /// Opens a store and starts its threads (`objm-maintain`, and `objm-disk` with a disk tier). They
    /// end when the last handle of the store is dropped, which also closes the disk tier cleanly.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let inner = Arc::new(open::open(config)?);
        let threads = Arc::new(maintenance::start(&inner)?);
        Ok(Store { inner, _threads: threads })
    }

    /// Returns the store's instance, which changes whenever the memory tier starts empty.
    pub fn instance(&self) -> Token {
        self.inner.instance
    }

    /// Begins a session, or joins the one that `token` names.
    pub fn session(&self, token: Option<Token>) -> Result<Session, StoreError> {
        self.inner.attach(self, token)
    }

    /// Looks up the object of `uri`, without a session.
    pub fn lookup(&self, uri: &[u8]) -> Result<Option<Entry>, StoreError> {
        check_uri(uri)?;
        Ok(self.inner.find(None, uri, false)?.map(|(object, _)| object.entry(false)))
    }

    /// Looks up as [`Store::lookup`] does, and opens the body read-only.
    pub fn open_uri(&self, uri: &[u8]) -> Result<Option<(Entry, OwnedFd)>, StoreError> {
        check_uri(uri)?;
        self.inner.open_for(None, uri, false)
    }

    /// Carries out a v0.1 "get": opens the object of `uri`, and creates an empty, writable, immediately visible
    /// object if there is none.
    pub fn get_or_create(&self, tier: Option<TierKind>, uri: &[u8]) -> Result<(Entry, OwnedFd), StoreError> {
        self.inner.get_or_create(tier, uri)
    }

    /// Opens an object's body read-only. The error `NotFound` means that the object was evicted or deleted in the
    /// meantime; the body of a pinned object can always be opened.
    pub fn open_body(&self, tier: TierKind, object: ObjectId) -> io::Result<OwnedFd> {
        self.inner.tier(tier).map_err(io::Error::other)?.open_body(object)
    }

    /// Returns a tier's directory; bodies are at [`body_path`] below it.
    pub fn tier_dir(&self, tier: TierKind) -> Result<BorrowedFd<'_>, StoreError> {
        Ok(self.inner.tier(tier)?.dir.as_fd())
    }

    /// Returns true if the tier is configured.
    pub fn has_tier(&self, tier: TierKind) -> bool {
        self.inner.tier(tier).is_ok()
    }

    /// Deletes the object of `uri`, if `if_version` is [`ANY_VERSION`] or its version. Whatever the outcome, private objects
    /// created for the URI before can no longer be committed, and its fence moves.
    pub fn delete(&self, uri: &[u8], if_version: u64) -> Result<(), StoreError> {
        self.inner.delete(uri, if_version, Deletion::Purge)
    }

    /// Deletes one object that is of no more use, such as one with a damaged body. Unlike [`Store::delete`] it neither moves the
    /// fence nor affects private objects.
    pub fn evict(&self, uri: &[u8], if_version: u64) -> Result<(), StoreError> {
        self.inner.delete(uri, if_version, Deletion::Housekeeping)
    }

    /// Returns the board's file, for mapping: see EXTENSIONS.md of the crate `objmapper-proto`.
    pub fn board(&self) -> BorrowedFd<'_> {
        self.inner.board.fd()
    }

    /// Lists up to `max` objects whose URIs begin with `prefix` and come after the URI `cursor`; an empty cursor begins at the
    /// start. An object that exists during all of a walk is listed exactly once.
    pub fn list(&self, prefix: &[u8], cursor: &[u8], max: usize) -> Listing {
        let (objects, last) = self.inner.index.page(prefix, cursor, max);
        let entries = objects.iter().map(|o| (o.uri.clone(), o.entry(false))).collect();
        Listing { entries, last }
    }

    /// Returns the store's figures.
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let tiers = inner.memory.iter().chain(&inner.disk).map(|tier| {
            let account = &tier.account;
            let (bodies, index) = (account.bodies(), account.index.load(Relaxed));
            TierStats {
                tier: tier.kind,
                limit: account.limit,
                bound: account.bound(),
                used: bodies.saturating_add(index),
                index,
                pinned: account.pinned.load(Relaxed),
                objects: account.objects.load(Relaxed),
                evictions: account.evictions.load(Relaxed),
                evicted_bytes: account.evicted_bytes.load(Relaxed),
            }
        });
        Stats {
            tiers: tiers.collect(),
            sessions: inner.sessions.lock().len(),
            private: inner.private_count.load(Relaxed),
            leases: inner.leases.held(),
            lost_files: inner.lost_files.load(Relaxed),
            foreign_overruns: inner.foreign_overruns.load(Relaxed),
            writer_overruns: inner.writer_overruns.load(Relaxed),
            no_space: inner.room.no_space.load(Relaxed),
            storage_errors: inner.room.errors.load(Relaxed),
            orphan_names: inner.room.orphan_names.load(Relaxed),
        }
    }
}
