//! A tier's journal: what a restart finds. It is one SQLite database (`index.sqlite3`) beside the bodies.
//!
//! The commit of an object's row *is* its publication on disk: before it the file is an orphan that
//! the next start removes, after it a restart serves the object. SQLite in WAL mode keeps every
//! committed transaction through the death of this process; through the death of the machine
//! [`load`] keeps what was committed before the last checkpoint of the bodies.
//!
//! Writers combine: the thread that finds the connection free carries out all waiting changes in one
//! transaction, so that many threads share one commit.
//!
//! The write-ahead log begins anew only when a checkpoint has moved all of it and no commit has appended to it during that. A commit
//! that finds it long wakes `objm-disk` for a checkpoint: most of it beside the writers, the rest with the writers' lock. A commit that finds
//! it twice as long does it itself. There are no readers: look-ups and listings use the index in memory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use objmapper_log::RateLimited;
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

mod error;
mod load;

pub(crate) use error::JournalError;
pub(crate) use load::{Loaded, MAX_ID};

use super::directory::{index_bytes, wal_bytes};
use crate::store::Token;
use crate::store::diagnostics::{LOG_INTERVAL, warn};
use crate::store::maintenance::Wake;
use crate::store::object::ObjectId;
use load::load;

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE objects(id INTEGER PRIMARY KEY, uri BLOB, length INTEGER NOT NULL, charge INTEGER NOT NULL,
  mtime INTEGER NOT NULL, expires INTEGER NOT NULL, foreign_ INTEGER NOT NULL, session BLOB);
CREATE TABLE pins(session BLOB NOT NULL, object INTEGER NOT NULL, PRIMARY KEY(session, object)) WITHOUT ROWID;
CREATE TABLE sessions(token BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
";

/// One object's row. `uri` is NULL if the object is pinned but no longer listed.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: ObjectId,
    pub(crate) uri: Option<Arc<[u8]>>,
    pub(crate) length: u64,
    pub(crate) charge: u64,
    pub(crate) mtime: i64,
    pub(crate) expires: i64,
    pub(crate) foreign: bool,
    pub(crate) session: Option<Token>,
}

/// One change of the index.
#[derive(Debug)]
pub(crate) enum Op {
    /// A new object; `replaces` loses its URI in the same transaction.
    Insert {
        row: Row,
        pinned_by: Option<Token>,
        replaces: Option<ObjectId>,
    },
    /// Removes the object's URI, so that it is not found any more.
    Unlist(ObjectId),
    /// Removes the object's row, because its file is removed.
    Forget(ObjectId),
    Resize {
        id: ObjectId,
        length: u64,
        charge: u64,
    },
    Pin(Token, ObjectId),
    Unpin(Token, ObjectId),
    SessionBegin(Token),
    SessionEnd(Token),
    /// Ids below this one may be in use.
    ReserveIds(ObjectId),
    /// Every body committed with an id up to this one is on stable storage.
    Durable(ObjectId),
}

type Outcome = Result<(), JournalError>;
type Slot = Arc<Mutex<Option<Outcome>>>;
type Submission = (Vec<Op>, Option<Slot>);

/// The maximum number of queued submissions that are kept for another try after a failure.
const MAX_KEPT: usize = 1 << 16;

/// The index's files, the bound of its log, and the values that it updates.
#[derive(Debug)]
pub(crate) struct JournalPlace<'a> {
    /// Path of the database, for SQLite.
    pub(crate) path: &'a Path,
    /// Descriptor of the directory that the path names.
    pub(crate) directory: OwnedFd,
    /// Bytes of the write-ahead log from which on it is moved into the database.
    pub(crate) max_wal: u64,
    /// Set to the number of bytes of the index's files.
    pub(crate) bytes: Arc<AtomicU64>,
    /// Notified when the log is long.
    pub(crate) wake: Arc<Wake>,
}

/// The open journal.
pub(crate) struct Journal {
    queue: Mutex<Vec<Submission>>,
    writer: Mutex<Connection>,
    /// `None` if the index is in memory.
    files: Option<Files>,
    log: RateLimited,
}

struct Files {
    /// A connection for checkpoints, so that they do not block the writer.
    checkpointer: Mutex<Connection>,
    directory: OwnedFd,
    max_wal: u64,
    bytes: Arc<AtomicU64>,
    /// True if a checkpoint is due because the log is long.
    due: AtomicBool,
    wake: Arc<Wake>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Journal")
    }
}

impl Journal {
    /// Opens the index, or creates it in an empty file, and reads all of it.
    pub(crate) fn open(place: JournalPlace<'_>) -> Result<(Self, Loaded), JournalError> {
        let JournalPlace { path, directory, max_wal, bytes, wake } = place;
        let mut writer = connect(path, max_wal)?;
        let fresh = prepare(&mut writer)?;
        let mut loaded = load(&mut writer)?;
        loaded.fresh = fresh;
        let checkpointer = Mutex::new(connect(path, max_wal)?);
        let files = Files { checkpointer, directory, max_wal, bytes, due: AtomicBool::new(false), wake };
        files.measure();
        Ok((Journal::new(writer, Some(files)), loaded))
    }

    /// Returns an empty index in memory, for a file system that has no room for its files.
    pub(crate) fn in_memory() -> Result<(Self, Loaded), JournalError> {
        let mut writer = Connection::open_in_memory()?;
        prepare(&mut writer)?;
        let loaded = Loaded { fresh: true, ..load(&mut writer)? };
        Ok((Journal::new(writer, None), loaded))
    }

    fn new(writer: Connection, files: Option<Files>) -> Self {
        Journal { queue: Mutex::default(), writer: Mutex::new(writer), files, log: RateLimited::new(1, LOG_INTERVAL) }
    }

    /// Carries out `ops` in one transaction, and returns when it is committed.
    pub(crate) fn apply(&self, ops: Vec<Op>) -> Outcome {
        let slot = Slot::default();
        self.queue.lock().push((ops, Some(slot.clone())));
        let mut writer = self.writer.lock();
        if slot.lock().is_none() {
            self.drain(&mut writer);
        }
        drop(writer);
        let outcome = slot.lock().take();
        outcome.unwrap_or_else(|| Err(JournalError::Other("a change was not carried out".into())))
    }

    /// Queues `ops` for the next transaction. Used for changes that a restart repairs if they are lost with this
    /// process (rows of removed files, released pins).
    pub(crate) fn enqueue(&self, ops: Vec<Op>) {
        self.queue.lock().push((ops, None));
    }

    /// Carries out the queued changes.
    pub(crate) fn flush(&self) {
        let mut writer = self.writer.lock();
        self.drain(&mut writer);
    }

    fn drain(&self, writer: &mut Connection) {
        let batch = std::mem::take(&mut *self.queue.lock());
        if batch.is_empty() {
            return;
        }
        let outcomes = match run(writer, &batch) {
            Ok(outcomes) => outcomes,
            Err(e) => {
                let error = JournalError::from(e);
                batch.iter().map(|_| Err(error.clone())).collect()
            }
        };
        let mut again = Vec::new();
        for ((ops, slot), outcome) in batch.into_iter().zip(outcomes) {
            match (slot, outcome) {
                (Some(slot), outcome) => *slot.lock() = Some(outcome),
                (None, Ok(())) => {}
                (None, Err(error)) => {
                    warn(&self.log, &format_args!("a tier's index: {error}"));
                    // The callers have returned, so it is queued again: room may be made.
                    if !matches!(error, JournalError::Damaged(_)) && again.len() < MAX_KEPT {
                        again.push((ops, None));
                    }
                }
            }
        }
        if !again.is_empty() {
            self.queue.lock().splice(0..0, again);
        }
        self.bound_log();
    }

    /// Moves a long log into the database, or requests that from `objm-disk`. The caller holds the writers' lock.
    fn bound_log(&self) {
        let Some(files) = &self.files else { return };
        let wal = wal_bytes(files.directory.as_fd());
        if wal >= files.max_wal.saturating_mul(2) {
            self.move_log(files, "TRUNCATE");
        } else if wal >= files.max_wal && !files.due.swap(true, Relaxed) {
            files.wake.notify();
        }
        files.measure();
    }

    fn move_log(&self, files: &Files, how: &str) {
        if let Err(e) = files.checkpointer.lock().execute_batch(&format!("PRAGMA wal_checkpoint({how})")) {
            warn(&self.log, &format_args!("the disk tier's index: checkpoint: {e}"));
        }
    }

    /// Moves the write-ahead log into the database and begins it anew. Writers wait for the end of it only.
    pub(crate) fn checkpoint(&self) {
        let Some(files) = &self.files else { return };
        files.due.store(false, Relaxed);
        self.move_log(files, "PASSIVE");
        let _writers = self.writer.lock();
        self.move_log(files, "TRUNCATE");
        files.measure();
    }

    /// Returns true if a commit found the log long.
    pub(crate) fn is_checkpoint_due(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.due.load(Relaxed))
    }

    /// Marks a clean end: everything is on stable storage, whatever becomes of the machine.
    pub(crate) fn close_cleanly(&self) -> Outcome {
        let mut writer = self.writer.lock();
        self.drain(&mut writer);
        set_meta(&writer, "clean", &[1])?;
        if self.files.is_some() {
            writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        }
        Ok(())
    }
}

impl Files {
    fn measure(&self) {
        self.bytes.store(index_bytes(self.directory.as_fd()), Relaxed);
    }
}

fn connect(path: &Path, max_wal: u64) -> rusqlite::Result<Connection> {
    // No CREATE: the file exists, and was checked.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // The log is synced at checkpoints: a power failure loses the newest commits, never the database.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", i64::try_from(max_wal).unwrap_or(i64::MAX))?;
    connection.pragma_update(None, "cache_size", -8192)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Creates the tables if they are missing. Returns true if they were.
fn prepare(writer: &mut Connection) -> Result<bool, JournalError> {
    match writer.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0))? {
        0 => {
            let t = writer.transaction()?;
            let tables: i64 = t.query_row("SELECT count(*) FROM sqlite_master", [], |r| r.get(0))?;
            if tables > 0 {
                return Err(JournalError::Damaged("it is another program's database".into()));
            }
            t.execute_batch(SCHEMA)?;
            t.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            t.commit()?;
            Ok(true)
        }
        SCHEMA_VERSION => Ok(false),
        other => Err(JournalError::Damaged(format!("it has format {other}, this program knows {SCHEMA_VERSION}"))),
    }
}

/// Runs one transaction. Each submission has a savepoint of its own, so that its failure does not affect the rest.
fn run(writer: &mut Connection, batch: &[Submission]) -> rusqlite::Result<Vec<Outcome>> {
    let mut t = writer.transaction()?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for (ops, _) in batch {
        let savepoint = t.savepoint()?;
        let outcome = ops.iter().try_for_each(|op| execute(&savepoint, op));
        match outcome {
            Ok(()) => {
                savepoint.commit()?;
                outcomes.push(Ok(()));
            }
            // Dropping a savepoint rolls it back.
            Err(e) => outcomes.push(Err(e.into())),
        }
    }
    t.commit()?;
    Ok(outcomes)
}

fn execute(c: &Connection, op: &Op) -> rusqlite::Result<()> {
    match op {
        Op::Insert { row, pinned_by, replaces } => {
            if let Some(old) = replaces {
                execute(c, &Op::Unlist(*old))?;
            }
            c.prepare_cached("INSERT INTO objects VALUES(?,?,?,?,?,?,?,?)")?.execute(params![
                row.id as i64,
                row.uri.as_deref(),
                row.length as i64,
                row.charge as i64,
                row.mtime,
                row.expires,
                row.foreign,
                row.session.as_ref().map(|t| &t.0[..]),
            ])?;
            if let Some(session) = pinned_by {
                execute(c, &Op::Pin(*session, row.id))?;
            }
        }
        Op::Unlist(id) => {
            c.prepare_cached("UPDATE objects SET uri=NULL WHERE id=?")?.execute([*id as i64])?;
        }
        Op::Forget(id) => {
            c.prepare_cached("DELETE FROM objects WHERE id=?")?.execute([*id as i64])?;
        }
        Op::Resize { id, length, charge } => {
            c.prepare_cached("UPDATE objects SET length=?2, charge=?3 WHERE id=?1")?.execute(params![
                *id as i64,
                *length as i64,
                *charge as i64
            ])?;
        }
        Op::Pin(session, id) => {
            c.prepare_cached("INSERT OR IGNORE INTO pins VALUES(?,?)")?.execute(params![&session.0[..], *id as i64])?;
        }
        Op::Unpin(session, id) => {
            c.prepare_cached("DELETE FROM pins WHERE session=? AND object=?")?
                .execute(params![&session.0[..], *id as i64])?;
        }
        Op::SessionBegin(token) => {
            c.prepare_cached("INSERT OR IGNORE INTO sessions VALUES(?)")?.execute([&token.0[..]])?;
        }
        Op::SessionEnd(token) => {
            c.prepare_cached("DELETE FROM pins WHERE session=?")?.execute([&token.0[..]])?;
            c.prepare_cached("DELETE FROM sessions WHERE token=?")?.execute([&token.0[..]])?;
        }
        Op::ReserveIds(id) => set_meta(c, "next_id", &id.to_be_bytes())?,
        Op::Durable(id) => set_meta(c, "durable", &id.to_be_bytes())?,
    }
    Ok(())
}

fn set_meta(c: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    c.prepare_cached("INSERT OR REPLACE INTO meta VALUES(?,?)")?.execute(params![key, value])?;
    Ok(())
}

fn meta(c: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    c.prepare_cached("SELECT value FROM meta WHERE key=?")?.query_row([key], |r| r.get(0)).optional()
}

fn meta_id(c: &Connection, key: &str) -> rusqlite::Result<ObjectId> {
    Ok(meta(c, key)?.and_then(|v| v.try_into().ok()).map_or(0, ObjectId::from_be_bytes))
}
