//! The store: objects by URI, each a file in a tier; the same code in `objmapperd` and embedded.
//!
//! | file | concept |
//! |---|---|
//! | `object` | one object, its [`Entry`], canonical URIs |
//! | `index` | which URI names which object |
//! | `tier` | a directory of body files |
//! | `mount`, `tmpfs`, `userns` | the memory tier's file system; how it is made, and by whom |
//! | `account`, `evict` | a tier's bytes; what goes when room is needed |
//! | `board` | counters shared with clients; the fences that order commits with deletes |
//! | `private`, `publish` | create, reserve, abort; commit, delete, evict |
//! | `session`, `lease` | pins and their owner; who fetches a missing URI |
//! | `pin` | a session's pins |
//! | `grant`, `delivery` | what a reply gives its client; what replies gave that the client may not have read |
//! | `foreign` | objects of v0.1 clients |
//! | `writers` | files that a client can still write, held to what the account carries for them |
//! | `disk_dir` | the disk tier's directory, its lock and its owner |
//! | `disk_index`, `index_error` | the disk tier's database, and what its failures mean |
//! | `room` | a file system with less room than the limit |
//! | `maintenance` | the store's threads |
//!
//! Locks, in the order in which one may be taken while another is held: a delivery's state, a private object's state, a
//! fence's gate, `measuring`, `evicting`, a shard's `publish`, the lease table, a shard's `map` or a session's
//! state, an object's state, a tier's order. The list of `leftovers` may be taken under any of the first six, and nothing but
//! counters under it. System calls and database transactions happen under these seven only, and a look-up takes none of those (but for objects that a v0.1 client still writes).
//!
//! ```
//! use objmapper_server::store::{Commit, MemoryTier, Store, StoreConfig, TierChoice};
//! use std::io::Write;
//!
//! let memory = MemoryTier { limit: 16 << 20, mount: None };
//! let store = Store::open(StoreConfig { memory: Some(memory), ..StoreConfig::default() })?;
//! let session = store.session(None)?;
//!
//! let mut private = session.create(TierChoice::Any, 5, Some(b"/a"))?;
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
pub use object::{ANY_VERSION, Entry, MAX_URI, ObjectId, TierChoice, TierKind, Token, check_uri};
pub use objmapper_proto::ext::Fence;
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
    /// Bytes of bodies, in whole pages, that it never passes.
    pub limit: u64,
    /// Its file system, if it was made before; `None` makes one.
    pub mount: Option<MemoryMount>,
}

/// The disk tier's configuration.
#[derive(Debug, Clone)]
pub struct DiskTier {
    /// The directory; made (mode 0700) if it does not exist. All of the store is in
    /// `objmapper-store` below it.
    pub dir: PathBuf,
    /// Bytes of bodies, in whole pages, and of the index, that no reservation takes it past.
    pub limit: u64,
}

/// What happens to a disk tier whose index cannot be read, or is of another format. The store starts empty in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// Its files are removed.
    #[default]
    Discard,
    /// Its files are moved to `objmapper-store/damaged`, outside the limit, unless there are some already.
    Keep,
}

/// How to open a store. At least one tier is needed.
#[derive(Debug)]
pub struct StoreConfig {
    /// The memory tier.
    pub memory: Option<MemoryTier>,
    /// The disk tier.
    pub disk: Option<DiskTier>,
    /// For a disk tier that cannot be read.
    pub on_damage: OnDamage,
    /// How long a session without connections lives.
    pub session_grace: Duration,
    /// Most private objects at a time; each holds a descriptor of this process.
    pub max_private: usize,
    /// Most sessions at a time.
    pub max_sessions: usize,
    /// Give v0.1 clients writable descriptors of objects that exist, as v0.1 does.
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
    /// The tier.
    pub tier: TierKind,
    /// The limit in bytes.
    pub limit: u64,
    /// What bounds it now: the limit, or less where the file system has less room.
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
    /// Private objects, and files that were given up and that a client can still write.
    pub private: usize,
    /// Leases held.
    pub leases: usize,
    /// Objects whose file was found missing.
    pub lost_files: u64,
    /// Objects of v0.1 clients deleted because they outgrew the tier.
    pub foreign_overruns: u64,
    /// Files cut because a client had written more to them than it was charged for, and the tier had no room for it.
    pub writer_overruns: u64,
    /// Operations that met a file system or a quota without room; most were carried out after an eviction.
    pub no_space: u64,
    /// Operations that failed because of another error of a disk or of the index.
    pub storage_errors: u64,
    /// Files without a row that had a new body's name.
    pub orphan_names: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// URIs and their objects, in byte order of the URIs.
    pub entries: Vec<(Arc<[u8]>, Entry)>,
    /// Whether this was the last page; else the last URI is the cursor of the next.
    pub last: bool,
}

/// A handle of the store; clones are handles of the same store, usable from all threads at once.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Behind `inner`: joins the threads once the last handle has let go of it, so that the store
    /// is closed when the last handle's drop returns.
    _threads: Arc<maintenance::Threads>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    memory: Option<Tier>,
    disk: Option<Tier>,
    /// Kept: the fallback directory goes with it.
    _mount: Option<MemoryMount>,
    /// Locked: one process per disk directory.
    _lock: Option<OwnedFd>,
    disk_index: Option<DiskIndex>,
    instance: Token,
    board: Board,
    index: Index,
    ids: Mutex<Ids>,
    /// Ids below it are of former runs.
    first_id: ObjectId,
    /// What the disk index held, in the order of the ids, until the sweep for orphans is done.
    found_at_start: Mutex<Vec<Arc<Object>>>,
    /// Those of it that died with their session, until the same sweep removes them.
    leftovers: Mutex<Vec<Arc<Object>>>,
    room: Room,
    /// Whether what was found at the start is in the eviction order.
    policy_filled: AtomicBool,
    next_handle: AtomicU64,
    sessions: Mutex<HashMap<Token, Arc<SessionCore>>>,
    leases: lease::Leases,
    expiry: Mutex<BTreeMap<(i64, ObjectId), Arc<Object>>>,
    /// Objects whose `growing` is set.
    foreign: Mutex<BTreeMap<ObjectId, Arc<Object>>>,
    foreign_cursor: AtomicU64,
    foreign_overruns: AtomicU64,
    /// Without a name, and still open for writing somewhere.
    given_up: Mutex<Vec<writers::GivenUp>>,
    writer_overruns: AtomicU64,
    lost_files: AtomicU64,
    measuring: Mutex<()>,
    evicting: Mutex<()>,
    private_count: AtomicUsize,
    /// Bodies were committed to disk since the last checkpoint.
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

    /// Names this run of the store: changes whenever the memory tier starts empty.
    pub fn instance(&self) -> Token {
        self.inner.instance
    }

    /// Begins a session, or joins the one that `token` names.
    pub fn session(&self, token: Option<Token>) -> Result<Session, StoreError> {
        self.inner.attach(self, token)
    }

    /// Finds what `uri` names, without a session.
    pub fn lookup(&self, uri: &[u8]) -> Result<Option<Entry>, StoreError> {
        check_uri(uri)?;
        Ok(self.inner.find(None, uri, false)?.map(|(object, _)| object.entry(false)))
    }

    /// As [`Store::lookup`], with a read-only descriptor of the body.
    pub fn open_uri(&self, uri: &[u8]) -> Result<Option<(Entry, OwnedFd)>, StoreError> {
        check_uri(uri)?;
        self.inner.open_for(None, uri, false)
    }

    /// What a v0.1 "get" does: opens what `uri` names; creates an empty, writable, at once visible
    /// object where there is nothing.
    pub fn get_or_create(&self, tier: TierChoice, uri: &[u8]) -> Result<(Entry, OwnedFd), StoreError> {
        self.inner.get_or_create(tier, uri)
    }

    /// A read-only descriptor of an object's body. Not found means that it was evicted or deleted
    /// meanwhile; that of a pinned object is always there.
    pub fn open_body(&self, tier: TierKind, object: ObjectId) -> io::Result<OwnedFd> {
        self.inner.tier(tier).map_err(io::Error::other)?.open_body(object)
    }

    /// A tier's directory; bodies are at [`body_path`] below it.
    pub fn tier_dir(&self, tier: TierKind) -> Result<BorrowedFd<'_>, StoreError> {
        Ok(self.inner.tier(tier)?.dir.as_fd())
    }

    /// Whether such a tier is configured.
    pub fn has_tier(&self, tier: TierKind) -> bool {
        self.inner.tier(tier).is_ok()
    }

    /// Deletes what `uri` names, if `if_version` is [`ANY_VERSION`] or its version. Private objects
    /// created for it before can no longer be committed, and its fence moves, whatever the outcome.
    pub fn delete(&self, uri: &[u8], if_version: u64) -> Result<(), StoreError> {
        self.inner.delete(uri, if_version, Deletion::Purge)
    }

    /// As [`Store::delete`], but for a reader's housekeeping (a damaged body, say): neither does the
    /// fence move nor are private objects concerned.
    pub fn evict(&self, uri: &[u8], if_version: u64) -> Result<(), StoreError> {
        self.inner.delete(uri, if_version, Deletion::Housekeeping)
    }

    /// The board's file, for mapping: see EXTENSIONS.md of the crate `objmapper-proto`.
    pub fn board(&self) -> BorrowedFd<'_> {
        self.inner.board.fd()
    }

    /// Up to `max` objects whose URIs begin with `prefix`, after the URI `cursor` (empty: from the
    /// start). What exists during a whole walk is listed exactly once.
    pub fn list(&self, prefix: &[u8], cursor: &[u8], max: usize) -> Listing {
        let (objects, last) = self.inner.index.page(prefix, cursor, max);
        let entries = objects.iter().map(|o| (o.uri.clone(), o.entry(false))).collect();
        Listing { entries, last }
    }

    /// Figures.
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
