//! The disk tier's index: one SQLite database beside the bodies.
//!
//! The commit of an object's row *is* its publication on disk: before it the file is an orphan that
//! the next start removes, after it a restart serves the object. SQLite in WAL mode keeps every
//! committed transaction through the death of this process; through the death of the machine
//! [`DiskIndex::open`] keeps what was committed before the last checkpoint of the bodies.
//!
//! Writers combine: whoever finds the connection free carries out everything that waits, in one
//! transaction, so many threads pay for one commit.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::StoreError;
use super::object::{ObjectId, Token};

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE objects(id INTEGER PRIMARY KEY, uri BLOB, length INTEGER NOT NULL, charge INTEGER NOT NULL,
  mtime INTEGER NOT NULL, expires INTEGER NOT NULL, foreign_ INTEGER NOT NULL, session BLOB);
CREATE TABLE pins(session BLOB NOT NULL, object INTEGER NOT NULL, PRIMARY KEY(session, object)) WITHOUT ROWID;
CREATE TABLE sessions(token BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
";

/// One object's row. `uri` is NULL for what is pinned but no longer listed.
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
    /// The object cannot be found by its URI any more.
    Unlist(ObjectId),
    /// The object's file is to be removed.
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

/// What a start finds.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) rows: Vec<Row>,
    pub(crate) pins: Vec<(Token, ObjectId)>,
    pub(crate) sessions: Vec<Token>,
    pub(crate) next_id: ObjectId,
    pub(crate) instance: Token,
    /// Rows dropped because the machine went down before their bodies were safe.
    pub(crate) lost: usize,
}

type Slot = Arc<Mutex<Option<Result<(), String>>>>;

/// The open index.
pub(crate) struct DiskIndex {
    queue: Mutex<Vec<(Vec<Op>, Option<Slot>)>>,
    writer: Mutex<Connection>,
    /// For checkpoints, which then do not stop the writer.
    checkpointer: Mutex<Connection>,
}

impl std::fmt::Debug for DiskIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskIndex")
    }
}

impl DiskIndex {
    /// Opens or makes the index at `path` and reads all of it.
    pub(crate) fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        let explain = |e: rusqlite::Error| {
            StoreError::Setup(format!(
                "the disk tier's index {} cannot be used: {e}; remedy: stop the store and remove \
                 the directory that holds it (the cache starts empty)",
                path.display()
            ))
        };
        let mut writer = connect(path).map_err(explain)?;
        let version: i64 = writer.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(explain)?;
        match version {
            0 => {
                let t = writer.transaction().map_err(explain)?;
                t.execute_batch(SCHEMA).map_err(explain)?;
                t.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(explain)?;
                t.commit().map_err(explain)?;
            }
            SCHEMA_VERSION => {}
            other => {
                return Err(StoreError::Setup(format!(
                    "the disk tier's index {} has format {other}, this program knows {SCHEMA_VERSION}; \
                     remedy: use the program that wrote it, or remove the directory that holds it",
                    path.display()
                )));
            }
        }
        let loaded = load(&mut writer).map_err(explain)?;
        let checkpointer = connect(path).map_err(explain)?;
        let index = DiskIndex {
            queue: Mutex::new(Vec::new()),
            writer: Mutex::new(writer),
            checkpointer: Mutex::new(checkpointer),
        };
        Ok((index, loaded))
    }

    /// Carries `ops` out, in one transaction, and returns when it is committed.
    pub(crate) fn apply(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let slot = Slot::default();
        self.queue.lock().push((ops, Some(slot.clone())));
        let mut writer = self.writer.lock();
        if slot.lock().is_none() {
            self.drain(&mut writer);
        }
        drop(writer);
        let outcome = slot.lock().take();
        match outcome {
            Some(Ok(())) => Ok(()),
            Some(Err(text)) => Err(StoreError::Index(text)),
            None => Err(StoreError::Index("a change was not carried out".into())),
        }
    }

    /// Queues `ops` for the next transaction. For changes whose loss through the death of this
    /// process a restart repairs (rows of removed files, pins of the released).
    pub(crate) fn enqueue(&self, ops: Vec<Op>) {
        self.queue.lock().push((ops, None));
    }

    /// Carries out what is queued.
    pub(crate) fn flush(&self) {
        let mut writer = self.writer.lock();
        self.drain(&mut writer);
    }

    fn drain(&self, writer: &mut Connection) {
        let batch = std::mem::take(&mut *self.queue.lock());
        if batch.is_empty() {
            return;
        }
        let result = run(writer, &batch);
        let (outcomes, all) = match result {
            Ok(outcomes) => (outcomes, None),
            Err(e) => (Vec::new(), Some(e.to_string())),
        };
        for (i, (ops, slot)) in batch.iter().enumerate() {
            let outcome = match (&all, outcomes.get(i)) {
                (Some(text), _) | (None, Some(Err(text))) => Err(text.clone()),
                _ => Ok(()),
            };
            match slot {
                Some(slot) => *slot.lock() = Some(outcome),
                None => {
                    if let Err(text) = outcome {
                        log::error!("disk index: {text} in {ops:?}");
                    }
                }
            }
        }
    }

    /// Moves the write-ahead log into the database. Does not stop writers.
    pub(crate) fn checkpoint(&self) {
        if let Err(e) = self.checkpointer.lock().execute_batch("PRAGMA wal_checkpoint(PASSIVE)") {
            log::warn!("disk index: checkpoint: {e}");
        }
    }

    /// Marks a clean end: everything is on stable storage, whatever becomes of the machine.
    pub(crate) fn close_cleanly(&self) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        self.drain(&mut writer);
        set_meta(&writer, "clean", &[1])?;
        writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(())
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // The log is synced at checkpoints: power loss costs the last moments, never the database.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.pragma_update(None, "cache_size", -8192)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// One transaction; each submission in a savepoint of its own, so that one's failure is its own.
fn run(writer: &mut Connection, batch: &[(Vec<Op>, Option<Slot>)]) -> rusqlite::Result<Vec<Result<(), String>>> {
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
            // Dropped, a savepoint rolls back.
            Err(e) => outcomes.push(Err(e.to_string())),
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
                row.session.as_ref().map(|t| &t[..]),
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
            c.prepare_cached("INSERT OR IGNORE INTO pins VALUES(?,?)")?.execute(params![&session[..], *id as i64])?;
        }
        Op::Unpin(session, id) => {
            c.prepare_cached("DELETE FROM pins WHERE session=? AND object=?")?
                .execute(params![&session[..], *id as i64])?;
        }
        Op::SessionBegin(token) => {
            c.prepare_cached("INSERT OR IGNORE INTO sessions VALUES(?)")?.execute([&token[..]])?;
        }
        Op::SessionEnd(token) => {
            c.prepare_cached("DELETE FROM pins WHERE session=?")?.execute([&token[..]])?;
            c.prepare_cached("DELETE FROM sessions WHERE token=?")?.execute([&token[..]])?;
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

/// The kernel's name for this boot; empty where it has none (every start then counts as a reboot).
fn boot_id() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn load(writer: &mut Connection) -> rusqlite::Result<Loaded> {
    let t = writer.transaction()?;
    let mut loaded = Loaded::default();
    let boot = boot_id();
    let same_boot = !boot.is_empty() && meta(&t, "boot")?.as_deref() == Some(&boot[..]);
    let clean = meta(&t, "clean")?.as_deref() == Some(&[1]);
    if !same_boot && !clean {
        let durable = meta_id(&t, "durable")?;
        loaded.lost = t.execute("DELETE FROM objects WHERE id>?", [durable as i64])?;
    }
    set_meta(&t, "boot", &boot)?;
    set_meta(&t, "clean", &[0])?;
    t.execute("DELETE FROM pins WHERE object NOT IN (SELECT id FROM objects)", [])?;
    loaded.instance = instance(&t)?;
    loaded.next_id = meta_id(&t, "next_id")?.max(1);
    read_rows(&t, &mut loaded)?;
    drop_unpinned(&t, &mut loaded)?;
    if let Some(last) = loaded.rows.last() {
        loaded.next_id = loaded.next_id.max(last.id.saturating_add(1));
    }
    {
        let mut statement = t.prepare("SELECT session, object FROM pins")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(token) = token(row.get_ref(0)?.as_blob().unwrap_or_default()) {
                loaded.pins.push((token, row.get::<_, i64>(1)? as u64));
            }
        }
        let mut statement = t.prepare("SELECT token FROM sessions")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            loaded.sessions.extend(token(row.get_ref(0)?.as_blob().unwrap_or_default()));
        }
    }
    t.commit()?;
    Ok(loaded)
}

fn instance(t: &Transaction<'_>) -> rusqlite::Result<Token> {
    if let Some(known) = meta(t, "instance")?.as_deref().and_then(token) {
        return Ok(known);
    }
    let mut fresh = Token::default();
    if getrandom::fill(&mut fresh).is_err() {
        fresh[..8].copy_from_slice(&super::object::now_ms().to_be_bytes());
    }
    set_meta(t, "instance", &fresh)?;
    Ok(fresh)
}

fn read_rows(t: &Transaction<'_>, loaded: &mut Loaded) -> rusqlite::Result<()> {
    let mut statement = t.prepare("SELECT * FROM objects ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        loaded.rows.push(Row {
            id: row.get::<_, i64>(0)? as u64,
            uri: row.get_ref(1)?.as_blob_or_null().ok().flatten().map(Arc::from),
            length: row.get::<_, i64>(2)? as u64,
            charge: row.get::<_, i64>(3)? as u64,
            mtime: row.get(4)?,
            expires: row.get(5)?,
            foreign: row.get(6)?,
            session: row.get_ref(7)?.as_blob_or_null().ok().flatten().and_then(token),
        });
    }
    Ok(())
}

/// Drops the rows of what is unlisted and pinned by nobody: its removal was under way.
fn drop_unpinned(t: &Transaction<'_>, loaded: &mut Loaded) -> rusqlite::Result<()> {
    let unlisted: Vec<_> = loaded.rows.iter().filter(|row| row.uri.is_none()).map(|row| row.id).collect();
    let mut gone = HashSet::new();
    for id in unlisted {
        let pinned = t.prepare_cached("SELECT 1 FROM pins WHERE object=?")?.exists([id as i64])?;
        if !pinned {
            execute(t, &Op::Forget(id))?;
            gone.insert(id);
        }
    }
    if !gone.is_empty() {
        loaded.rows.retain(|row| !gone.contains(&row.id));
    }
    Ok(())
}

fn token(bytes: &[u8]) -> Option<Token> {
    bytes.try_into().ok()
}
