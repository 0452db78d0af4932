//! Opening tiers: their directories, and what a restart finds.
//!
//! The memory tier starts empty. The disk tier starts with what its journal holds: a row is enough, no body is opened or read.
//! What the disk holds never keeps the store from opening. Without space, the oldest bodies are removed, then the journal is kept
//! in memory; a journal that cannot be used is put away (`damage`). What fails is what an operator alone can put right: a
//! directory that is another user's or cannot be written, one that another process uses, a file system that is unsuitable.

use std::sync::Arc;

use super::damage::{self, LoadingMark, MAX_INTERRUPTED, put_index_away};
use super::directory::DiskDir;
use super::journal::{Journal, JournalError, JournalPlace, Loaded};
use super::memory::{MemoryMount, MountAccess};
use super::{BodyFiles, Medium, Tier};
use crate::store::maintenance::Wake;
use crate::store::object::ObjectId;
use crate::store::publication::ID_BLOCK;
use crate::store::{Damaged, DiskTier, MIN_LIMIT, MemoryTier, StoreError, TierKind};

/// The write-ahead log of the journal is a 128th of the tier at most, within these bounds; twice that in a burst.
const MIN_WAL: u64 = 128 << 10;
const MAX_WAL: u64 = 16 << 20;
/// Bytes that are freed first for the journal of a full disk.
const FIRST_GOAL: u64 = 4 << 20;
/// Ids that may have been given out and that a journal without its end does not have.
const LOST_IDS: ObjectId = 4 * ID_BLOCK;

/// Opens an empty memory tier. The mount is to be held for as long as the tier.
pub(in crate::store) fn open_memory(config: MemoryTier) -> Result<(Tier, MemoryMount), StoreError> {
    check_limit(TierKind::Memory, config.limit)?;
    let mount = match config.mount {
        Some(given) => given,
        None => MemoryMount::new(config.limit, MountAccess::Owner)?,
    };
    let dir = mount.root().try_clone_to_owned().map_err(StoreError::io("duplicating a mount"))?;
    let files = BodyFiles { dir, medium: Medium::Tmpfs };
    files.prepare(TierKind::Memory)?;
    files.clear().map_err(StoreError::io("emptying the memory tier"))?;
    Ok((Tier::new(TierKind::Memory, files, config.limit), mount))
}

/// A disk tier that is open, and not yet restored.
pub(in crate::store) struct OpenedDisk {
    pub(in crate::store) tier: Tier,
    pub(in crate::store) loaded: Loaded,
    /// To be dropped when the start is done; `None` if the file system took no mark.
    pub(in crate::store) mark: Option<LoadingMark>,
}

fn check_limit(kind: TierKind, limit: u64) -> Result<(), StoreError> {
    if limit >= MIN_LIMIT {
        return Ok(());
    }
    Err(StoreError::Setup(format!("the {kind} tier's size is {limit} bytes, the minimum is {MIN_LIMIT} (1M)")))
}

/// Makes or opens the directory, takes its lock, and reads its journal. If the file system is full, the oldest bodies are
/// removed before anything is written; a journal that cannot be used is put away.
pub(in crate::store) fn open_disk(
    config: &DiskTier,
    damaged: Damaged,
    wake: &Arc<Wake>,
) -> Result<OpenedDisk, StoreError> {
    let dir = DiskDir::open(&config.dir)?;
    let mark = begin_loading(&dir, config.limit, damaged);
    let mut goal = FIRST_GOAL;
    let mut put_away = false;
    let (mut tier, journal, mut loaded) = loop {
        let full = match try_open(&dir, config.limit, wake) {
            Ok(opened) => break opened,
            Err(CannotOpen::NoSpace(why)) => why,
            Err(CannotOpen::Journal(JournalError::Io(why) | JournalError::NoSpace(why))) if dir.is_full() => why,
            Err(CannotOpen::Journal(JournalError::NoSpace(why))) => why,
            Err(CannotOpen::Journal(JournalError::Damaged(why) | JournalError::Io(why))) if !put_away => {
                put_away = true;
                put_index_away(&dir, damaged, config.limit, &why);
                continue;
            }
            Err(CannotOpen::Journal(JournalError::Other(why))) => return Err(unusable(&dir, &why)),
            Err(CannotOpen::Journal(JournalError::Damaged(why) | JournalError::Io(why))) => why,
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
    tier.journal = Some(journal);
    tier._lock = Some(dir.into_lock());
    Ok(OpenedDisk { tier, loaded, mark })
}

/// Marks that the journal is being loaded. A journal that has ended the starts before this one is put away. A mark that cannot be
/// made, on a full file system, is done without.
fn begin_loading(dir: &DiskDir, limit: u64, damaged: Damaged) -> Option<LoadingMark> {
    let interrupted = LoadingMark::interrupted(dir);
    let mut cleared = Ok(());
    if interrupted >= MAX_INTERRUPTED {
        put_index_away(dir, damaged, limit, &format!("{interrupted} starts in a row ended while they loaded it"));
        cleared = LoadingMark::clear(dir);
    }
    let marked = cleared.and_then(|()| LoadingMark::set(dir));
    marked.inspect_err(|e| log::debug!("the mark of a start that loads: {e}")).ok()
}

/// Why a disk tier cannot be opened.
enum CannotOpen {
    NoSpace(String),
    Journal(JournalError),
    Store(StoreError),
}

impl From<StoreError> for CannotOpen {
    fn from(error: StoreError) -> Self {
        if error.is_no_space() { CannotOpen::NoSpace(error.to_string()) } else { CannotOpen::Store(error) }
    }
}

fn try_open(dir: &DiskDir, limit: u64, wake: &Arc<Wake>) -> Result<(Tier, Journal, Loaded), CannotOpen> {
    let tier = new_tier(dir, limit)?;
    tier.files.prepare(tier.kind)?;
    let (path, directory) = dir.index_file()?.map_err(|why| CannotOpen::Journal(JournalError::Damaged(why)))?;
    let max_wal = (limit / 128).clamp(MIN_WAL, MAX_WAL);
    let bytes = tier.account.journal.clone();
    let place = JournalPlace { path: &path, directory, max_wal, bytes, wake: wake.clone() };
    let (index, loaded) = Journal::open(place).map_err(CannotOpen::Journal)?;
    Ok((tier, index, loaded))
}

fn new_tier(dir: &DiskDir, limit: u64) -> Result<Tier, StoreError> {
    let objects = dir.objects().map_err(StoreError::io("duplicating a directory"))?;
    Ok(Tier::new(TierKind::Disk, BodyFiles { dir: objects, medium: Medium::Shared }, limit))
}

/// Opens an empty tier on a file system without room for an empty index. The tier takes bodies as soon as there is room.
fn open_without_room(dir: &DiskDir, limit: u64, why: &str) -> Result<(Tier, Journal, Loaded), StoreError> {
    if let Err(e) = damage::remove(dir) {
        log::warn!("disk tier: removing the index: {e}");
    }
    let tier = new_tier(dir, limit)?;
    match tier.files.prepare(tier.kind) {
        Err(e) if !e.is_no_space() => return Err(e),
        _ => {}
    }
    let (index, loaded) = Journal::in_memory().map_err(|e| unusable(dir, &e.to_string()))?;
    log::warn!(
        "disk tier: there is no room for an index in {}: {why}; the tier starts empty, and the next start finds it \
         empty; remedy: make room, then restart the store",
        dir.path().display()
    );
    Ok((tier, index, loaded))
}

fn unusable(dir: &DiskDir, why: &str) -> StoreError {
    StoreError::Setup(format!(
        "the disk tier's index in {} cannot be opened: {why}; remedy: let this user read and write it, or remove {}",
        dir.path().display(),
        dir.path().display()
    ))
}
