//! Opening a store: the tiers' directories, and what a restart finds on disk.
//!
//! The memory tier starts empty. The disk tier starts with what its index holds: a row is enough, no body is opened or read.
//! What the disk holds never keeps the store from opening. Without room, the oldest bodies are removed, then the index is kept
//! in memory; a damaged index is removed or set aside.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::board::Board;
use super::disk_dir::DiskDir;
use super::disk_index::{DiskIndex, IndexPlace, Loaded, Op, Row};
use super::index::Index;
use super::index_error::IndexError;
use super::lease::Leases;
use super::maintenance::Wake;
use super::mount::MemoryMount;
use super::object::{Object, ObjectId, ObjectState, now_ms};
use super::pin::Pin;
use super::publish::{ID_BLOCK, Ids};
use super::room::Room;
use super::session::random_token;
use super::tier::Tier;
use super::tmpfs::MountAccess;
use super::{DiskTier, Inner, MIN_LIMIT, OnDamage, StoreConfig, StoreError, TierKind};

/// The write-ahead log of the index is a 128th of the tier at most, within these bounds; twice that in a burst.
const MIN_WAL: u64 = 128 << 10;
const MAX_WAL: u64 = 16 << 20;
/// Bytes that are freed first for the index of a full disk.
const FIRST_GOAL: u64 = 4 << 20;
/// Ids that may have been given out and that an index without its end does not have.
const LOST_IDS: ObjectId = 4 * ID_BLOCK;

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
        let tier = Tier::new(TierKind::Memory, dir, tier.limit);
        tier.prepare()?;
        tier.clear().map_err(StoreError::io("emptying the memory tier"))?;
        (mount, memory) = (Some(made), Some(tier));
    }
    let mut disk = None;
    let mut lock = None;
    let mut disk_index = None;
    let mut loaded = Loaded { next_id: 1, ..Loaded::default() };
    let disk_wake = Arc::new(Wake::default());
    if let Some(tier) = config.disk {
        check_limit(TierKind::Disk, tier.limit)?;
        match open_disk(&tier, config.on_damage, &disk_wake) {
            Ok(opened) => (disk, lock, disk_index, loaded) = (Some(opened.0), Some(opened.1), Some(opened.2), opened.3),
            Err(e) if e.is_no_space() && memory.is_some() => {
                log::warn!(
                    "there is no disk tier until the next start: {e}; remedy: make room in {}",
                    tier.dir.display()
                );
            }
            Err(e) => return Err(e),
        }
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
        ids: Mutex::new(Ids { next: loaded.next_id, until: 0, skipped: Vec::new() }),
        first_id: loaded.next_id,
        found_at_start: Mutex::default(),
        leftovers: Mutex::default(),
        room: Room::default(),
        policy_filled: AtomicBool::new(true),
        next_handle: AtomicU64::new(1),
        sessions: Mutex::new(HashMap::new()),
        leases: Leases::default(),
        expiry: Mutex::new(BTreeMap::new()),
        foreign: Mutex::new(BTreeMap::new()),
        foreign_cursor: AtomicU64::new(0),
        foreign_overruns: AtomicU64::new(0),
        given_up: Mutex::default(),
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
        disk_wake,
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
    Err(StoreError::Setup(format!("the {kind} tier's size is {limit} bytes, the minimum is {MIN_LIMIT} (1M)")))
}

type OpenedDisk = (Tier, OwnedFd, DiskIndex, Loaded);

/// Makes or opens the directory, takes its lock, and reads its index. If the file system is full, the oldest bodies are
/// removed before anything is written; an index that cannot be used is removed or set aside.
fn open_disk(config: &DiskTier, on_damage: OnDamage, wake: &Arc<Wake>) -> Result<OpenedDisk, StoreError> {
    let mut dir = DiskDir::open(&config.dir)?;
    let mut goal = FIRST_GOAL;
    let mut put_away = false;
    let (tier, index, mut loaded) = loop {
        let full = match try_open(&dir, config.limit, wake) {
            Ok(opened) => break opened,
            Err(CannotOpen::NoSpace(why)) => why,
            Err(CannotOpen::Index(IndexError::Io(why) | IndexError::NoSpace(why))) if dir.is_full() => why,
            Err(CannotOpen::Index(IndexError::NoSpace(why))) => why,
            Err(CannotOpen::Index(IndexError::Damaged(why) | IndexError::Io(why))) if !put_away => {
                put_away = true;
                put_index_away(&mut dir, on_damage, &why);
                continue;
            }
            Err(CannotOpen::Index(IndexError::Other(why))) => return Err(unusable(&dir, &why)),
            Err(CannotOpen::Index(IndexError::Damaged(why) | IndexError::Io(why))) => why,
            Err(CannotOpen::Store(e)) => return Err(e),
        };
        let freed = dir.free_oldest(goal).unwrap_or_else(|e| {
            log::warn!("disk tier: removing bodies: {e}");
            Default::default()
        });
        if freed.files == 0 {
            break open_without_room(&dir, config.limit, &full)?;
        }
        log::warn!(
            "disk tier: no room to open {}: {full}; the {} oldest bodies were removed, {} bytes",
            dir.path().display(),
            freed.files,
            freed.bytes
        );
        goal = goal.saturating_mul(4);
    };
    if loaded.fresh {
        // A client may still use an id of the removed index.
        let highest = dir.highest().map_err(StoreError::io("looking for bodies"))?;
        if highest > 0 {
            loaded.next_id = loaded.next_id.max(highest.saturating_add(ID_BLOCK));
        }
    } else if loaded.cut {
        loaded.next_id = loaded.next_id.saturating_add(LOST_IDS);
    }
    Ok((tier, dir.into_lock(), index, loaded))
}

/// Why a disk tier cannot be opened.
enum CannotOpen {
    NoSpace(String),
    Index(IndexError),
    Store(StoreError),
}

impl From<StoreError> for CannotOpen {
    fn from(error: StoreError) -> Self {
        if error.is_no_space() { CannotOpen::NoSpace(error.to_string()) } else { CannotOpen::Store(error) }
    }
}

fn try_open(dir: &DiskDir, limit: u64, wake: &Arc<Wake>) -> Result<(Tier, DiskIndex, Loaded), CannotOpen> {
    let tier = new_tier(dir, limit)?;
    tier.prepare()?;
    let no_file = || IndexError::Damaged("it is no file, or cannot be read".into());
    let (path, directory) = dir.index_file()?.ok_or_else(no_file).map_err(CannotOpen::Index)?;
    let max_wal = (limit / 128).clamp(MIN_WAL, MAX_WAL);
    let bytes = tier.account.index.clone();
    let place = IndexPlace { path: &path, directory, max_wal, bytes, wake: wake.clone() };
    let (index, loaded) = DiskIndex::open(place).map_err(CannotOpen::Index)?;
    Ok((tier, index, loaded))
}

fn new_tier(dir: &DiskDir, limit: u64) -> Result<Tier, StoreError> {
    let objects = dir.objects().map_err(StoreError::io("duplicating a directory"))?;
    Ok(Tier::new(TierKind::Disk, objects, limit))
}

/// Opens an empty tier on a file system without room for an empty index. The tier takes bodies as soon as there is room.
fn open_without_room(dir: &DiskDir, limit: u64, why: &str) -> Result<(Tier, DiskIndex, Loaded), StoreError> {
    if let Err(e) = dir.discard_index() {
        log::warn!("disk tier: removing the index: {e}");
    }
    let tier = new_tier(dir, limit)?;
    match tier.prepare() {
        Err(e) if !e.is_no_space() => return Err(e),
        _ => {}
    }
    let (index, loaded) = DiskIndex::in_memory().map_err(|e| unusable(dir, &e.to_string()))?;
    log::warn!(
        "disk tier: there is no room for an index in {}: {why}; the tier starts empty, and the next start finds it \
         empty; remedy: make room, then restart the store",
        dir.path().display()
    );
    Ok((tier, index, loaded))
}

fn put_index_away(dir: &mut DiskDir, on_damage: OnDamage, why: &str) {
    let path = dir.path().to_owned();
    let kept = match on_damage {
        OnDamage::Keep => dir.set_aside(),
        OnDamage::Discard => Ok(None),
    };
    let what = match kept {
        Ok(Some(aside)) => format!("its files are kept in {}, outside the limit", aside.display()),
        Ok(None) if on_damage == OnDamage::Keep => "its files are removed: older ones are kept already".to_owned(),
        Ok(None) => "its files are removed".to_owned(),
        Err(e) => format!("its files are removed: keeping them: {e}"),
    };
    if let Err(e) = dir.discard_index() {
        log::warn!("disk tier: removing the index: {e}");
    }
    log::warn!("disk tier: the index in {} cannot be used: {why}; the tier starts empty; {what}", path.display());
}

fn unusable(dir: &DiskDir, why: &str) -> StoreError {
    StoreError::Setup(format!(
        "the disk tier's index in {} cannot be opened: {why}; remedy: let this user read and write it, or remove {}",
        dir.path().display(),
        dir.path().display()
    ))
}

impl Inner {
    /// Enters the objects that the disk index holds. Opens no file: a row proves that its body was published.
    fn restore(&self, loaded: Loaded) -> Result<(), StoreError> {
        let disk = self.tier(TierKind::Disk)?;
        // Without a grace time no client can resume a session.
        let sessions: HashMap<_, _> = if self.session_grace.is_zero() {
            self.forget_sessions(&loaded.sessions);
            HashMap::new()
        } else {
            loaded.sessions.iter().map(|token| (*token, self.add_session(*token, true))).collect()
        };
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
                    session.state.lock().pins.insert(object.id, Pin::kept(object.clone()));
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
        for object in objects.iter().filter(|object| object.uri.is_empty() && !pins.contains_key(&object.id)) {
            // The object was known to its session only.
            self.forget_row(object);
            self.remove_file(object);
        }
        if self.session_grace.is_zero() {
            // There may be many of them, so the sweep removes them; until then they are evictable.
            *self.leftovers.lock() = orphaned;
        } else {
            orphaned.iter().for_each(|object| self.discard(object));
        }
        log::info!("disk tier: {} objects, {bytes} bytes", objects.len());
        *self.found_at_start.lock() = objects;
        self.policy_filled.store(false, Relaxed);
        // The limit may have been lowered since, and the file system may have less room.
        if let Err(e) = self.make_room(disk, 0) {
            log::warn!("at the start {e}");
        }
        self.set_ceiling();
        Ok(())
    }

    fn forget_sessions(&self, tokens: &[super::Token]) {
        if let Some(index) = &self.disk_index {
            index.enqueue(tokens.iter().map(|token| Op::SessionEnd(*token)).collect());
        }
    }

    /// Makes the objects that a restart found evictable, once: before the first eviction, or in the background.
    /// The caller holds `evicting`.
    pub(super) fn fill_policy(&self) {
        if self.policy_filled.load(Relaxed) {
            return;
        }
        if let Some(disk) = &self.disk {
            // The newest first, each as the least recently used: objects used since the start stay ahead of them.
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
        // Its writers are other processes, which may still run.
        growing: AtomicBool::new(row.foreign),
        state: Mutex::new(ObjectState { pins: 0, listed: row.uri.is_some() }),
        uri: row.uri.unwrap_or_default(),
    }
}
