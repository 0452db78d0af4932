//! Opening a store: its tiers, and the objects that a restart finds in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::board::Board;
use super::diagnostics::Diagnostics;
use super::index::Index;
use super::lease::Leases;
use super::maintenance::Wake;
use super::object::{Object, now_ms};
use super::publication::Ids;
use super::session::{Pin, random_token};
use super::tier::journal::{Loaded, Op};
use super::tier::{OpenedDisk, Tier, Tiers, open_disk, open_memory};
use super::{Inner, StoreConfig, StoreError};

pub(super) fn open(config: StoreConfig) -> Result<Inner, StoreError> {
    let mut tiers = Tiers::default();
    let mut mount = None;
    if let Some(memory) = config.memory {
        let (tier, made) = open_memory(memory)?;
        tiers.push(tier);
        mount = Some(made);
    }
    let disk_wake = Arc::new(Wake::default());
    let mut found = None;
    let mut mark = None;
    if let Some(disk) = config.disk {
        match open_disk(&disk, config.damaged, &disk_wake) {
            Ok(OpenedDisk { tier, loaded, mark: made }) => {
                tiers.push(tier);
                (found, mark) = (Some(loaded), made);
            }
            Err(e) if e.is_no_space() && !tiers.is_empty() => {
                log::warn!(
                    "there is no disk tier until the next start: {e}; remedy: make room in {}",
                    disk.dir.display()
                );
            }
            Err(e) => return Err(e),
        }
    }
    if tiers.is_empty() {
        return Err(StoreError::Setup(
            "a store needs a memory tier, a disk tier, or both; neither is configured".into(),
        ));
    }
    // A client takes an instance that it knows as the promise that nothing is lost.
    let instance = match &found {
        Some(loaded) if tiers.iter().all(|tier| tier.is_persistent()) => loaded.instance,
        _ => random_token()?,
    };
    let first_id = found.as_ref().map_or(1, |loaded| loaded.next_id);
    let inner = Inner {
        tiers,
        _mount: mount,
        instance,
        board: Board::new()?,
        index: Index::new(),
        ids: Ids::new(first_id),
        next_handle: AtomicU64::new(1),
        sessions: Mutex::new(HashMap::new()),
        leases: Leases::default(),
        filling: OnceLock::new(),
        expiry: Mutex::new(BTreeMap::new()),
        foreign: Mutex::new(BTreeMap::new()),
        foreign_cursor: AtomicU64::new(0),
        given_up: Mutex::default(),
        diagnostics: Diagnostics::default(),
        measuring: Mutex::new(()),
        private_count: AtomicUsize::new(0),
        session_grace: config.session_grace,
        max_private: config.max_private,
        max_sessions: config.max_sessions,
        legacy_writable: config.legacy_writable,
        wake: Arc::new(Wake::default()),
        disk_wake,
    };
    if let Some(loaded) = found
        && let Some(tier) = inner.tiers.persistent().next()
    {
        inner.restore(tier, loaded);
    }
    // The start has survived what it loaded.
    drop(mark);
    Ok(inner)
}

impl Inner {
    /// Enters the objects that a tier's journal holds. Opens no file: a row proves that its body was published.
    fn restore(&self, tier: &Arc<Tier>, loaded: Loaded) {
        let kind = tier.kind;
        // Without a grace time no client can resume a session.
        let sessions: HashMap<_, _> = if self.session_grace.is_zero() {
            loaded.sessions.iter().for_each(|token| tier.record_later(Op::SessionEnd(*token)));
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
                "{kind} tier: {} objects dropped: the machine went down before they were safe on disk",
                loaded.lost
            );
        }
        let now = now_ms();
        let objects: Vec<_> = loaded.rows.into_iter().map(|row| Arc::new(Object::of_row(row, tier.clone()))).collect();
        let mut bytes = 0u64;
        let mut listed = Vec::with_capacity(objects.len());
        for object in &objects {
            bytes = bytes.saturating_add(object.charge());
            if let Some(holders) = pins.get(&object.id) {
                object.state.lock().pins = u32::try_from(holders.len()).unwrap_or(u32::MAX);
                tier.account.pinned.fetch_add(object.charge(), Relaxed);
                for session in holders {
                    session.state.lock().pins.insert(object.id, Pin::kept(object.clone()));
                }
            }
            if object.state.lock().listed {
                listed.push(object.clone());
            }
        }
        tier.account.add_existing(bytes);
        tier.account.objects.fetch_add(listed.len() as u64, Relaxed);
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
            object.forget_row();
            self.remove_file(object);
        }
        if self.session_grace.is_zero() {
            // There may be many of them, so the sweep removes them; until then they are evictable.
            tier.recovery.set_unwanted(orphaned);
        } else {
            orphaned.iter().for_each(|object| self.discard(object));
        }
        log::info!("{kind} tier: {} objects, {bytes} bytes", objects.len());
        tier.recovery.begin(objects);
        // The limit may have been lowered since, and the file system may have less room.
        if let Err(e) = self.reserve(tier, 0) {
            log::warn!("at the start {e}");
        }
        self.set_ceiling(tier);
    }
}
