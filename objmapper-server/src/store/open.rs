//! Opening a store: the tiers' directories, and what a restart finds on disk.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open as open_path};

use super::board::Board;
use super::disk_index::{DiskIndex, Loaded, Row};
use super::house::Wake;
use super::index::Index;
use super::lease::Leases;
use super::mount::MemoryMount;
use super::object::{Object, ObjectState, now_ms};
use super::publish::Ids;
use super::session::random_token;
use super::tier::Tier;
use super::tmpfs::MountAccess;
use super::{Inner, MIN_LIMIT, StoreConfig, StoreError, TierKind};

const STORE_DIR: &str = "objmapper-store";

pub(super) fn open(config: StoreConfig) -> Result<Inner, StoreError> {
    let mut mount = None;
    let mut memory = None;
    if let Some(tier) = config.memory {
        check_limit(TierKind::Memory, tier.limit)?;
        let made = match tier.mount {
            Some(given) => given,
            None => MemoryMount::new(tier.limit, MountAccess::Owner)?,
        };
        let dir = made.root().try_clone_to_owned().map_err(StoreError::io("duplicating a mount"))?;
        let tier = Tier::open(TierKind::Memory, dir, tier.limit)?;
        tier.clear().map_err(StoreError::io("emptying the memory tier"))?;
        (mount, memory) = (Some(made), Some(tier));
    }
    let mut disk = None;
    let mut lock = None;
    let mut disk_index = None;
    let mut loaded = Loaded { next_id: 1, ..Loaded::default() };
    if let Some(tier) = config.disk {
        check_limit(TierKind::Disk, tier.limit)?;
        let (dir, locked, index, found) = open_disk(&tier.dir)?;
        disk = Some(Tier::open(TierKind::Disk, dir, tier.limit)?);
        (lock, disk_index, loaded) = (Some(locked), Some(index), found);
    }
    if memory.is_none() && disk.is_none() {
        return Err(StoreError::Setup(
            "a store needs a memory tier, a disk tier, or both; neither is configured".into(),
        ));
    }
    let instance = if memory.is_some() { random_token()? } else { loaded.instance };
    let inner = Inner {
        memory,
        disk,
        _mount: mount,
        _lock: lock,
        disk_index,
        instance,
        board: Board::new()?,
        index: Index::new(),
        ids: Mutex::new(Ids { next: loaded.next_id, until: 0 }),
        first_id: loaded.next_id,
        found_at_start: Mutex::default(),
        policy_filled: AtomicBool::new(true),
        next_handle: AtomicU64::new(1),
        sessions: Mutex::new(HashMap::new()),
        leases: Leases::default(),
        expiry: Mutex::new(BTreeMap::new()),
        foreign: Mutex::new(BTreeMap::new()),
        foreign_cursor: AtomicU64::new(0),
        foreign_overruns: AtomicU64::new(0),
        leftovers: Mutex::default(),
        writer_overruns: AtomicU64::new(0),
        lost_files: AtomicU64::new(0),
        measuring: Mutex::new(()),
        evicting: Mutex::new(()),
        private_count: AtomicUsize::new(0),
        unsynced: AtomicBool::new(false),
        session_grace: config.session_grace,
        max_private: config.max_private,
        max_sessions: config.max_sessions,
        legacy_writable: config.legacy_writable,
        wake: Arc::new(Wake::default()),
        disk_wake: Arc::new(Wake::default()),
    };
    if inner.disk.is_some() {
        inner.restore(loaded)?;
    }
    Ok(inner)
}

fn check_limit(kind: TierKind, limit: u64) -> Result<(), StoreError> {
    if limit >= MIN_LIMIT {
        return Ok(());
    }
    Err(StoreError::Setup(format!("the {kind} tier's size is {limit} bytes, the least is {MIN_LIMIT} (1M)")))
}

/// Makes or opens the directory, takes its lock, reads its index.
fn open_disk(path: &Path) -> Result<(OwnedFd, OwnedFd, DiskIndex, Loaded), StoreError> {
    let setup = |what: &str, path: &Path, e: &dyn std::fmt::Display| {
        StoreError::Setup(format!(
            "the disk tier's directory: {what} {}: {e}; remedy: give a directory that this user may \
             write",
            path.display()
        ))
    };
    if !path.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| setup("making", path, &e))?;
    }
    // A directory of our own, which nobody else may enter: readers get in by a descriptor.
    let private = path.join(STORE_DIR);
    make_dir(&private, 0o700).map_err(|e| setup("making", &private, &e))?;
    let lock_path = private.join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock =
        open_path(&lock_path, flags, Mode::from_raw_mode(0o600)).map_err(|e| setup("opening", &lock_path, &e))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
        StoreError::Setup(format!(
            "the disk tier's directory {} is in use by another store ({e}); remedy: stop it, or give \
             each a directory of its own",
            path.display()
        ))
    })?;
    let objects = private.join("objects");
    make_dir(&objects, 0o755).map_err(|e| setup("making", &objects, &e))?;
    let dir = open_path(&objects, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| setup("opening", &objects, &e))?;
    // Whatever the umask was: other users' readers come in by this descriptor.
    rustix::fs::fchmod(dir.as_fd(), Mode::from_raw_mode(0o755))
        .map_err(|e| setup("setting the mode of", &objects, &e))?;
    let (index, loaded) = DiskIndex::open(&private.join("index.sqlite3"))?;
    Ok((dir, lock, index, loaded))
}

fn make_dir(path: &Path, mode: u32) -> std::io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

impl Inner {
    /// Enters what the disk index holds. Reads no body and opens no file: a row is proof enough.
    fn restore(&self, loaded: Loaded) -> Result<(), StoreError> {
        let disk = self.tier(TierKind::Disk)?;
        let sessions: HashMap<_, _> = loaded.sessions.iter().map(|token| (*token, self.add_session(*token))).collect();
        let mut pins: HashMap<_, Vec<_>> = HashMap::new();
        for (token, id) in &loaded.pins {
            if let Some(session) = sessions.get(token) {
                pins.entry(*id).or_default().push(session);
            }
        }
        if loaded.lost > 0 {
            log::warn!(
                "disk tier: {} objects dropped: the machine went down before they were safe on disk",
                loaded.lost
            );
        }
        let now = now_ms();
        let objects: Vec<_> = loaded.rows.into_iter().map(|row| Arc::new(object_of(row))).collect();
        let mut bytes = 0u64;
        let mut listed = Vec::with_capacity(objects.len());
        for object in &objects {
            bytes = bytes.saturating_add(object.charge());
            if let Some(holders) = pins.get(&object.id) {
                object.state.lock().pins = u32::try_from(holders.len()).unwrap_or(u32::MAX);
                disk.account.pinned.fetch_add(object.charge(), Relaxed);
                for session in holders {
                    session.state.lock().pins.insert(object.id, object.clone());
                }
            }
            if object.state.lock().listed {
                listed.push(object.clone());
            }
        }
        disk.account.add_existing(bytes);
        disk.account.objects.fetch_add(listed.len() as u64, Relaxed);
        let superseded = self.index.fill(listed);
        let mut orphaned = Vec::new();
        for object in &objects {
            if object.expires != 0 {
                self.expiry.lock().insert((object.expires, object.id), object.clone());
            }
            let known = object.ephemeral.map(|token| sessions.get(&token));
            if let Some(Some(session)) = known {
                session.state.lock().ephemeral.insert(object.id, object.clone());
            }
            if matches!(known, Some(None)) || object.expired(now) {
                orphaned.push(object.clone());
            }
            if object.growing.load(Relaxed) {
                self.foreign.lock().insert(object.id, object.clone());
            }
        }
        for old in &superseded {
            self.replaced(old);
        }
        for object in &orphaned {
            self.discard(object);
        }
        log::info!("disk tier: {} objects, {bytes} bytes", objects.len());
        *self.found_at_start.lock() = objects;
        self.policy_filled.store(false, Relaxed);
        // The limit may be lower than it was.
        if let Err(e) = self.make_room(disk, 0) {
            log::warn!("at the start {e}");
        }
        Ok(())
    }

    /// Makes what a restart found evictable, once: before the first eviction, or in the background.
    /// The caller holds `evicting`.
    pub(super) fn fill_policy(&self) {
        if self.policy_filled.load(Relaxed) {
            return;
        }
        if let Some(disk) = &self.disk {
            // The newest first, each behind the last: what was used since the start stays in front.
            for object in self.found_at_start.lock().iter().rev() {
                let state = object.state.lock();
                if state.listed && state.pins == 0 {
                    disk.policy.insert_oldest(object.clone());
                }
            }
        }
        self.policy_filled.store(true, Relaxed);
    }
}

fn object_of(row: Row) -> Object {
    Object {
        id: row.id,
        tier: TierKind::Disk,
        length: AtomicU64::new(row.length),
        charge: AtomicU64::new(row.charge),
        mtime: row.mtime,
        expires: row.expires,
        ephemeral: row.session,
        foreign: row.foreign,
        // Its writers may still be there: they are other processes.
        growing: AtomicBool::new(row.foreign),
        state: Mutex::new(ObjectState { pins: 0, listed: row.uri.is_some() }),
        uri: row.uri.unwrap_or_default(),
    }
}
