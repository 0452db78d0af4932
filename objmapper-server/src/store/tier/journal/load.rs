//! Reading the journal at the start.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{Connection, Transaction};

use super::{JournalError, Op, Row, execute, meta, meta_id, set_meta};
use crate::store::Token;
use crate::store::object::{ObjectId, check_uri, now_ms};

/// The highest id that an index may have: at a million ids per second it is reached in 146,000 years.
pub(crate) const MAX_ID: ObjectId = 1 << 62;
/// The highest length, and the highest sum of charges, that an index may have.
const MAX_BYTES: u64 = i64::MAX as u64;

/// The content of the index at the start.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) rows: Vec<Row>,
    pub(crate) pins: Vec<(Token, ObjectId)>,
    pub(crate) sessions: Vec<Token>,
    pub(crate) next_id: ObjectId,
    pub(crate) instance: Token,
    /// True if there was no index: files that exist have no rows.
    pub(crate) fresh: bool,
    /// True if the machine went down: the end of the write-ahead log, with the last ids, may be lost.
    pub(crate) cut: bool,
    /// Rows dropped because the machine went down before their bodies were safe.
    pub(crate) lost: usize,
}

fn checked(what: &str, value: u64, max: u64) -> Result<u64, JournalError> {
    if value <= max { Ok(value) } else { Err(JournalError::Damaged(format!("it has {what} of {value}, over {max}"))) }
}

/// Returns the kernel's id of this boot; empty if it has none, and every start then counts as a reboot.
fn boot_id() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Reads all of the index, and drops the rows of objects that are not safe on disk after the machine went down, or whose removal
/// had begun. Values that this store never writes are damage: they would be added to the account, or become ids.
pub(super) fn load(writer: &mut Connection) -> Result<Loaded, JournalError> {
    let t = writer.transaction()?;
    let mut loaded = Loaded::default();
    let boot = boot_id();
    let same_boot = !boot.is_empty() && meta(&t, "boot")?.as_deref() == Some(&boot[..]);
    let clean = meta(&t, "clean")?.as_deref() == Some(&[1]);
    loaded.cut = !same_boot && !clean;
    if loaded.cut {
        let durable = meta_id(&t, "durable")?;
        loaded.lost = t.execute("DELETE FROM objects WHERE id>?", [durable as i64])?;
    }
    set_meta(&t, "boot", &boot)?;
    set_meta(&t, "clean", &[0])?;
    t.execute("DELETE FROM pins WHERE object NOT IN (SELECT id FROM objects)", [])?;
    loaded.instance = instance(&t)?;
    loaded.next_id = checked("the next id", meta_id(&t, "next_id")?, MAX_ID)?.max(1);
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
    if getrandom::fill(&mut fresh.0).is_err() {
        fresh.0[..8].copy_from_slice(&now_ms().to_be_bytes());
    }
    set_meta(t, "instance", &fresh.0)?;
    Ok(fresh)
}

fn read_rows(t: &Transaction<'_>, loaded: &mut Loaded) -> Result<(), JournalError> {
    let mut bytes = 0u64;
    let mut statement = t.prepare("SELECT * FROM objects ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        // A negative number is a large one here, above every limit.
        let charge = checked("a charge", row.get::<_, i64>(3)? as u64, MAX_BYTES)?;
        bytes = checked("the sum of the charges", bytes.saturating_add(charge), MAX_BYTES)?;
        let uri: Option<Arc<[u8]>> = row.get_ref(1)?.as_blob_or_null().map_err(rusqlite::Error::from)?.map(Arc::from);
        if uri.as_deref().is_some_and(|uri| check_uri(uri).is_err()) {
            return Err(JournalError::Damaged("it has a URI that is not canonical".into()));
        }
        loaded.rows.push(Row {
            id: checked("an id", row.get::<_, i64>(0)? as u64, MAX_ID)?,
            uri,
            length: checked("a length", row.get::<_, i64>(2)? as u64, MAX_BYTES)?,
            charge,
            mtime: row.get(4)?,
            expires: row.get(5)?,
            foreign: row.get(6)?,
            session: row.get_ref(7)?.as_blob_or_null().ok().flatten().and_then(token),
        });
    }
    Ok(())
}

/// Drops the rows of objects that are unlisted and unpinned: their removal had begun.
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
    bytes.try_into().ok().map(Token)
}
