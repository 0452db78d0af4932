//! The store: objects by URI, each a file in a tier; the same code in `objmapperd` and embedded.
//!
//! | file or folder | concept |
//! |---|---|
//! | `config`, `open` | configuration; opening a store, and the objects that a restart finds |
//! | `object`, `index`, `lookup` | one published object, its [`Entry`], canonical URIs; the object of each URI; from a URI to its body |
//! | `tier` | a place for bodies: directory, account, eviction order, and a journal if a restart finds what it holds |
//! | `publication` | private objects, commit, removal, ids, v0.1's objects, files that a client can still write |
//! | `reclaim` | getting bytes: reservations and evictions |
//! | `session` | a client's session, its pins, and what replies gave it that it may not have read |
//! | `lease`, `fill` | leases on missing URIs; the store's own answer to one, before its client's |
//! | `board` | counters shared with clients; the fences that order commits with deletes |
//! | `kept` | bodies that a client in this process keeps over a restart |
//! | `maintenance` | the store's threads |
//! | `stats`, `diagnostics`, `error` | figures; counters and log lines of failures; errors |
//!
//! Locks, in the order in which one may be taken while another is held: a delivery's state, a private object's state, a
//! fence's gate, `measuring`, a tier's `evicting`, a shard's `publish`, the lease table, a shard's `map` or a session's
//! state, an object's state, a tier's order. The list of files that were `given_up` may be taken under any of the first six, and nothing but
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

mod board;
mod config;
mod diagnostics;
mod error;
mod fill;
mod index;
mod kept;
mod lease;
mod lookup;
mod maintenance;
mod object;
mod open;
mod publication;
mod reclaim;
mod session;
mod stats;
mod tier;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

// The wire's types are the store's: there is one definition of each.
pub use objmapper_proto::ext::{Entry, Fence, Tier as TierKind, Token};

pub use config::{Damaged, DiskTier, MIN_LIMIT, MemoryTier, StoreConfig};
pub use error::StoreError;
pub use fill::{Fill, Filler};
pub use lease::{LeaseCallback, LeaseOutcome};
pub use object::{ANY_VERSION, MAX_URI, ObjectId, check_uri};
#[cfg(feature = "daemon")]
pub(crate) use publication::OutgoingWriter;
pub use publication::{Commit, PrivateObject};
pub use session::{Delivery, Grant, RequestGuard, Session};
pub use stats::{Listing, Stats, TierStats};
pub use tier::body_path;
pub use tier::memory::{MemoryMount, MountAccess, MountKind, ShmDirectory};

use board::Board;
use diagnostics::Diagnostics;
use fill::Filling;
use index::Index;
use maintenance::Wake;
use object::Object;
use publication::{Deletion, GivenUp, Ids};
use session::SessionCore;
use tier::Tiers;

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
    tiers: Tiers,
    /// Held because its drop removes the fallback directory.
    _mount: Option<MemoryMount>,
    instance: Token,
    board: Board,
    index: Index,
    ids: Ids,
    next_handle: AtomicU64,
    sessions: Mutex<HashMap<Token, Arc<SessionCore>>>,
    leases: lease::Leases,
    filling: OnceLock<Filling>,
    expiry: Mutex<BTreeMap<(i64, ObjectId), Arc<Object>>>,
    /// Objects whose `growing` is set.
    foreign: Mutex<BTreeMap<ObjectId, Arc<Object>>>,
    foreign_cursor: AtomicU64,
    /// Files without a name that are still open for writing.
    given_up: Mutex<Vec<GivenUp>>,
    diagnostics: Diagnostics,
    measuring: Mutex<()>,
    private_count: AtomicUsize,
    session_grace: Duration,
    max_private: usize,
    max_sessions: usize,
    legacy_writable: bool,
    wake: Arc<Wake>,
    disk_wake: Arc<Wake>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tiers.iter().for_each(|tier| tier.close());
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
        self.inner.tiers.of_kind(tier).map_err(io::Error::other)?.files.open_body(object)
    }

    /// Returns a tier's directory; bodies are at [`body_path`] below it.
    pub fn tier_dir(&self, tier: TierKind) -> Result<BorrowedFd<'_>, StoreError> {
        Ok(self.inner.tiers.of_kind(tier)?.files.dir.as_fd())
    }

    /// Returns true if the tier is configured.
    pub fn has_tier(&self, tier: TierKind) -> bool {
        self.inner.tiers.of_kind(tier).is_ok()
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
}
