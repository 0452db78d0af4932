//! Reading the log: the entries that other processes appended.
//!
//! The order on the board (`EXTENSIONS.md` of objmapper-proto) makes it safe: a ban is announced before it is
//! acknowledged, and what is announced is counted as recorded after it is in the log. A reader that finds the two
//! counters equal, and has read the log since the number of recorded announcements is what it is, knows every entry that
//! was acknowledged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use objmapper_client::{Board, Entry, Found, Session, Token, Want};

use super::{Divergence, HEAL_AFTER, Journal, MAX_CONFLICTS, MAX_WAIT, Position, ReadLog, Unknown, compact::Scan};
use crate::config::Notice;
use crate::invalidation::codec::LogEntry;
use crate::invalidation::file::{LogFile, Part, Unusable};
use crate::invalidation::index::Index;
use crate::outage::Outage;
use crate::record::bytes::Malformed;
use crate::record::reading::{Opened, Unreadable};
use crate::record::tail::Kind;

/// The log as it is in the store.
#[derive(Debug, Clone)]
pub(super) struct InStore {
    pub(super) file: LogFile,
    /// `None`: there is no log in the store.
    pub(super) entry: Option<Entry>,
}

/// What this process knows of the log's objects in the store.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// The newest head that was read or written, its session, and the board's number of recorded announcements then:
    /// while that is the board's, it is the newest one.
    pub(super) known: Option<(InStore, u64, u64)>,
    /// The session and the object number of the newest head. It is pinned, so that it is not evicted.
    pinned: Option<(u64, u64)>,
    /// The same for parts, by their names.
    pinned_parts: HashMap<[u8; 16], (u64, u64)>,
    pub(super) scan: Scan,
}

impl Journal {
    /// Returns a position that covers all entries that were acknowledged before the call. The log in memory is at least
    /// as new.
    pub(crate) fn current(&self, session: &Session) -> Result<Position, Unknown> {
        let board = session.board().ok_or(Outage::Protocol)?;
        // A former store's counters do not change any more, and its files are not those that the present one names.
        if self.store.session()?.board().map(Board::id) != Some(board.id()) {
            return Err(Outage::Down.into());
        }
        let deadline = Instant::now() + self.store.call_timeout.min(MAX_WAIT);
        self.wait_own(deadline)?;
        for _ in 0..MAX_CONFLICTS {
            let recorded = self.wait_others(board, deadline)?;
            if let Some(position) = self.position(board, recorded) {
                return Ok(position);
            }
            let Some(mut files) = self.file.try_lock_until(deadline) else { return Err(Unknown::Pending) };
            if self.position(board, recorded).is_none() {
                self.refresh(&mut files, session, board, recorded)?;
            }
            // The counters were equal after the call began: what was appended since then need not be known.
            if let Some(position) = self.position(board, recorded) {
                return Ok(position);
            }
        }
        Err(Unknown::Pending)
    }

    fn position(&self, board: &Board, recorded: u64) -> Option<Position> {
        let read = self.read.read();
        let read = read.as_ref().filter(|read| read.board == board.id() && read.recorded == recorded)?;
        Some(Position { board: board.id(), recorded, mark: read.index.mark() })
    }

    /// Waits until this process's own bans are recorded.
    pub(crate) fn wait_own(&self, deadline: Instant) -> Result<(), Unknown> {
        if self.pending_bans() == 0 {
            return Ok(());
        }
        let mut queue = self.queue.lock();
        while self.pending_bans() > 0 {
            if self.done.wait_until(&mut queue, deadline).timed_out() && self.pending_bans() > 0 {
                return Err(Unknown::Pending);
            }
        }
        Ok(())
    }

    /// Waits until the numbers of announced and recorded entries are equal, and returns it.
    fn wait_others(&self, board: &Board, deadline: Instant) -> Result<u64, Unknown> {
        let mut pause = Duration::from_micros(20);
        loop {
            // In this order, see `Board::recorded`.
            let recorded = board.recorded(self.slot);
            let announced = board.announced(self.slot);
            if recorded == announced {
                return Ok(recorded);
            }
            let diverged_for = self.divergence(board, recorded, announced).since.elapsed();
            if diverged_for >= HEAL_AFTER {
                self.queue.lock().heal = true;
                self.wake.notify_all();
            }
            // Once a look-up has waited in vain, later ones do not wait for the same difference.
            let now = Instant::now();
            if now >= deadline || diverged_for > MAX_WAIT {
                return Err(Unknown::Pending);
            }
            std::thread::sleep(pause.min(deadline - now));
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// Returns when the counters were first seen to differ with this many recorded; notes it if this is the first time.
    pub(super) fn divergence(&self, board: &Board, recorded: u64, announced: u64) -> Divergence {
        let mut divergence = self.divergence.lock();
        // Neither counter goes back, so that they have differed all the time.
        match *divergence {
            Some(seen) if seen.board == board.id() && seen.recorded == recorded => seen,
            _ => *divergence.insert(Divergence { board: board.id(), recorded, announced, since: Instant::now() }),
        }
    }

    /// Reads what is new in the log, or begins a log.
    fn refresh(&self, files: &mut Files, session: &Session, board: &Board, recorded: u64) -> Result<(), Unknown> {
        let in_store = self.read_head(files, session, Want::PIN)?;
        if in_store.entry.is_none() {
            // Counted as an announcement, so that processes that have read the lost log read the new one.
            let announced = self.announce(board);
            let written = self.write_head(files, in_store, session);
            self.count_recorded(files, session, board, &[announced], None)?;
            if written? {
                (self.store.log)(&Notice::LogReset("there was no invalidation log".into()));
            }
            // What is in the store now is read in the next round.
            return Ok(());
        }
        self.load(files, session, &in_store.file)?;
        if let Some(read) = self.read.write().as_mut() {
            (read.board, read.recorded) = (board.id(), recorded);
        }
        files.known = Some((in_store, session.id(), recorded));
        Ok(())
    }

    /// Brings the log in memory up to a head: reads the parts that are new, and takes the head's own entries.
    pub(super) fn load(&self, files: &mut Files, session: &Session, head: &LogFile) -> Result<(), Outage> {
        self.pin_parts(files, session, head)?;
        let known = self.read.read().as_ref().filter(|read| read.index.nonce == head.nonce).map(|read| read.index.last);
        let after = known.unwrap_or(0);
        let mut entries: Vec<Arc<LogEntry>> = Vec::new();
        let mut floor = (head.floor, head.floor_at);
        for part in head.parts.iter().filter(|part| part.last > after.max(head.floor)) {
            match self.read_part(session, head.nonce, part)? {
                Some(more) => entries.extend(more),
                None => {
                    // Whatever the lost entries said, records that are older than they are may be invalid.
                    (self.store.log)(&Notice::LogReset("a part of the invalidation log is lost".into()));
                    floor = (part.last, part.at);
                    entries.clear();
                }
            }
        }
        entries.extend(head.entries.iter().cloned());
        let mut read = self.read.write();
        // Only the holder of `files` changes it.
        let read = match &mut *read {
            Some(read) if known.is_some() => read,
            // Of no state of a board yet: the caller sets which.
            other => other.insert(ReadLog { board: Token::default(), recorded: 0, index: Index::new(head) }),
        };
        for entry in entries.into_iter().filter(|entry| entry.seq > after) {
            read.index.insert(entry, &*self.regexes);
        }
        read.index.raise_floor(floor.0, floor.1);
        read.index.last = read.index.last.max(head.last);
        Ok(())
    }

    /// Reads the head. One that does not validate is removed; one of a newer version is left alone.
    pub(super) fn read_head(&self, files: &mut Files, session: &Session, want: Want) -> Result<InStore, Outage> {
        for _ in 0..MAX_CONFLICTS {
            let found = self.store.client.lookup(&self.uri, want).map_err(|why| Outage::from(&why))?;
            let Some(found) = found else {
                files.known = None;
                return Ok(InStore { file: self.new_file()?, entry: None });
            };
            if let Some((known, of, _)) = &files.known
                && *of == session.id()
                && known
                    .entry
                    .is_some_and(|entry| (entry.object, entry.version) == (found.entry.object, found.entry.version))
            {
                let known = known.clone();
                self.has_pinned(files, &found, want);
                return Ok(known);
            }
            let read = Opened::new(session, &found.entry).map(|opened| match opened.kind() {
                Kind::Log => LogFile::decode(opened.head(), &self.store.space.prefix()),
                _ => Err(Malformed("kind").into()),
            });
            let damaged = match read {
                Ok(Ok(file)) => {
                    self.has_pinned(files, &found, want);
                    return Ok(InStore { file, entry: Some(found.entry) });
                }
                Ok(Err(Unusable::Newer(version))) => {
                    self.release(&found, want);
                    self.log_newer(version);
                    return Err(Outage::Protocol);
                }
                Ok(Err(Unusable::Damaged(why))) | Err(Unreadable::Damaged(why)) => Some(why),
                Err(Unreadable::Gone) => None,
                Err(Unreadable::Outage(outage)) => {
                    self.release(&found, want);
                    return Err(outage);
                }
            };
            self.release(&found, want);
            if let Some(why) = damaged {
                (self.store.log)(&Notice::Damaged(format!("the invalidation log: {why}")));
                self.store.evict(&self.uri, found.entry.version)?;
            }
        }
        Err(Outage::Io)
    }

    /// Reads a part. `None`: it is lost.
    fn read_part(&self, session: &Session, nonce: [u8; 16], part: &Part) -> Result<Option<Vec<Arc<LogEntry>>>, Outage> {
        let uri = self.part_uri(part);
        let found = self.store.client.lookup(&uri, Want::ENTRY).map_err(|why| Outage::from(&why))?;
        let Some(found) = found else { return Ok(None) };
        let decoded = Opened::new(session, &found.entry).and_then(|opened| match opened.kind() {
            Kind::LogPart => Ok(part.decode(opened.head(), nonce)?),
            _ => Err(Malformed("kind").into()),
        });
        match decoded {
            Ok(entries) => Ok(Some(entries)),
            Err(Unreadable::Gone) => Ok(None),
            Err(Unreadable::Outage(outage)) => Err(outage),
            Err(Unreadable::Damaged(why)) => {
                (self.store.log)(&Notice::Damaged(format!("a part of the invalidation log: {why}")));
                Ok(None)
            }
        }
    }

    /// Remembers the pin of the current head, and releases that of the former one.
    pub(super) fn has_pinned(&self, files: &mut Files, found: &Found, want: Want) {
        if !want.pin {
            return;
        }
        let pinned = (found.session, found.entry.object);
        let former = files.pinned.replace(pinned);
        if let Some((session, object)) = former.filter(|former| *former != pinned) {
            self.store.client.release(session, &[object]);
        }
    }

    fn release(&self, found: &Found, want: Want) {
        if want.pin {
            self.store.client.release(found.session, &[found.entry.object]);
        }
    }

    /// Pins the parts of a head, so that they are not evicted, and releases those that it does not have.
    fn pin_parts(&self, files: &mut Files, session: &Session, head: &LogFile) -> Result<(), Outage> {
        let client = &self.store.client;
        for part in &head.parts {
            if files.pinned_parts.get(&part.id).is_some_and(|(of, _)| *of == session.id()) {
                continue;
            }
            if let Some(found) = client.lookup(&self.part_uri(part), Want::PIN).map_err(|why| Outage::from(&why))? {
                files.pinned_parts.insert(part.id, (found.session, found.entry.object));
            }
        }
        if files.pinned_parts.len() > head.parts.len() {
            files.pinned_parts.retain(|id, (session, object)| {
                let kept = head.parts.iter().any(|part| part.id == *id);
                if !kept {
                    client.release(*session, &[*object]);
                }
                kept
            });
        }
        Ok(())
    }

    /// Notes a part that was committed with a pin.
    pub(super) fn has_pinned_part(files: &mut Files, part: &Part, found: &Found) {
        files.pinned_parts.insert(part.id, (found.session, found.entry.object));
    }
}
