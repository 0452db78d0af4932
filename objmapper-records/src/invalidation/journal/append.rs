//! Appending to the log: the queue of this process, and the thread that writes it.
//!
//! A round of the thread takes what is queued, appends it to the head of the log and replaces the head, on the condition
//! that it is still the one that was read; then it counts its announcements as recorded. Callers that append at the same
//! time share a round.
//!
//! If a process dies between announcing and recording, the counters differ for ever. A process that sees them differ
//! and not change for [`HEAL_AFTER`] *heals*: it writes a log with a new nonce, which invalidates all older records,
//! those that the lost entry would have invalidated too, and which names the last announcement that it covers; then it
//! sets `recorded` to that. A recorder that was merely slow must not count a covered announcement again, or a later one
//! would seem to be recorded before it is: see [`Journal::count_recorded`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use objmapper_client::{Board, CommitOptions, ConnectionState, IfVersion, Session, Want};

use super::read::{Files, InStore};
use super::{Announced, HEAL_AFTER, Journal, MAX_CONFLICTS, Queue, Queued, now};
use crate::config::Notice;
use crate::invalidation::codec::LogEntry;
use crate::invalidation::entry::Invalidation;
use crate::invalidation::file::{Healed, LogFile};
use crate::outage::Outage;
use crate::record::tail::{Kind, tail};

/// A recorder that needs longer than this checks whether another process has healed its ban. Less than [`HEAL_AFTER`].
const LATE: Duration = Duration::from_secs(1);
/// The longest pause between attempts to record.
const MAX_BACKOFF: Duration = Duration::from_millis(200);
/// The most entries, and about the most bytes, that are appended in one write.
const MAX_BATCH: usize = 2048;
const MAX_BATCH_LEN: usize = 256 << 10;
/// Queued entries that are kept one by one; further bans are replaced by one that matches everything, and further purges
/// fail.
const MAX_QUEUED: usize = 16384;

impl Queue {
    /// Returns the first entries, as many as are appended in one write.
    fn batch(&self) -> Vec<Queued> {
        let mut len = 0;
        let fits = |queued: &&Queued| {
            len += queued.what.as_deref().map_or(0, Invalidation::size_hint);
            len <= MAX_BATCH_LEN
        };
        let n = self.items.iter().take(MAX_BATCH).take_while(fits).count();
        self.items.iter().take(n.max(1)).cloned().collect()
    }
}

impl Journal {
    /// See [`L2::announce_ban`](crate::L2::announce_ban).
    pub(crate) fn announce_ban(&self, ban: &objmapper_ban::Ban) {
        let session = self.store.client.session();
        let at = now();
        let mut queue = self.queue.lock();
        // Under the lock, so that a thread that finds no pending ban knows that all announced ones are recorded.
        self.pending_bans.fetch_add(1, Ordering::SeqCst);
        let announced = session.as_ref().and_then(|session| session.board()).map(|board| self.announce(board));
        let what = match queue.items.len() {
            ..MAX_QUEUED => Some(ban.clone()),
            MAX_QUEUED => Some(objmapper_ban::Ban::matching_everything(at)),
            // The one before it covers it.
            _ => None,
        };
        let what = what.map(|ban| Arc::new(Invalidation::Ban(ban)));
        queue.items.push_back(Queued { what, at, is_ban: true, announced });
        drop(queue);
        self.wake.notify_all();
    }

    /// Appends entries. Returns when they are in the log, so that no reader is given what they invalidate.
    pub(crate) fn append(&self, whats: Vec<Invalidation>) -> Result<(), Outage> {
        let deadline = Instant::now() + self.store.call_timeout;
        if !self.store.client.is_up() {
            return Err(Outage::Down);
        }
        if let ConnectionState::V01 { .. } = self.store.client.state() {
            let at = now();
            return self.append_v01(&whats.into_iter().map(|what| (at, Arc::new(what))).collect::<Vec<_>>());
        }
        self.store.session()?;
        let at = now();
        let mut queue = self.queue.lock();
        if queue.items.len() + whats.len() > MAX_QUEUED {
            return Err(Outage::Full);
        }
        let from = queue.first + queue.items.len() as u64;
        let end = from + whats.len() as u64;
        for what in whats {
            queue.items.push_back(Queued { what: Some(Arc::new(what)), at, is_ban: false, announced: None });
        }
        self.wake.notify_all();
        let mut failures = queue.failures;
        while queue.first < end {
            let timed_out = self.done.wait_until(&mut queue, deadline).timed_out();
            let failed = std::mem::replace(&mut failures, queue.failures) != queue.failures;
            let is_down = failed && !self.store.client.is_up();
            if queue.first < end && (timed_out || is_down || queue.stop) {
                // Its caller is told that it failed: it is not appended later, when the caller has gone on.
                let first = queue.first;
                for number in from.max(first)..end {
                    if let Some(queued) = queue.items.get_mut((number - first) as usize) {
                        queued.what = None;
                    }
                }
                return Err(if is_down { Outage::Down } else { queue.failure.unwrap_or(Outage::Timeout) });
            }
        }
        Ok(())
    }

    pub(super) fn announce(&self, board: &Board) -> Announced {
        // In this order: it must not seem younger than it is.
        let at = Instant::now();
        Announced { board: board.id(), number: board.announce(self.slot), at }
    }

    /// Publishes a head over the one that was read. Returns false if another process has replaced that meanwhile.
    pub(super) fn write_head(&self, files: &mut Files, head: InStore, session: &Session) -> Result<bool, Outage> {
        let bytes = tail(Kind::Log, head.file.encode(), 0, None).ok_or(Outage::Io)?;
        let if_version = IfVersion::from_raw(head.entry.map_or(0, |entry| entry.version));
        let options = CommitOptions { if_version, want: Want::PIN, ..CommitOptions::default() };
        files.known = None;
        let Some(written) = self.store.put(&self.uri, &bytes, options)? else { return Ok(false) };
        self.has_pinned(files, &written, Want::PIN);
        // It is the newest one until the board says otherwise, from a number on that the caller sets.
        files.known = Some((InStore { file: head.file, entry: Some(written.entry) }, session.id(), u64::MAX));
        Ok(true)
    }

    /// Counts announcements as recorded, and wakes the followers. `healed` is what the log said about healing when they
    /// were written into it. Returns the number that is recorded then.
    ///
    /// A healer first says in the log up to which announcement it heals, none of them younger than [`HEAL_AFTER`], then
    /// changes `recorded`. If it did so before `recorded` is read here, then what is covered is late by now and found in
    /// the log; if it does so after, the exchange fails and all is looked at once more. So nothing is counted twice.
    pub(super) fn count_recorded(
        &self,
        files: &mut Files,
        session: &Session,
        board: &Board,
        announced: &[Announced],
        mut healed: Option<Healed>,
    ) -> Result<(), Outage> {
        loop {
            let seen = board.recorded(self.slot);
            if announced.iter().any(|announced| announced.at.elapsed() > LATE) {
                healed = self.read_head(files, session, Want::ENTRY)?.file.healed;
            }
            let covers = |a: &&Announced| healed.is_some_and(|healed| healed.covers(board.id().0, a.number));
            let n = (announced.len() - announced.iter().filter(covers).count()) as u64;
            if n == 0 || board.heal(self.slot, seen, seen.wrapping_add(n)) {
                return Ok(());
            }
        }
    }

    /// The recorder's thread.
    pub(crate) fn run_recorder(&self) {
        let mut backoff = Duration::from_millis(1);
        let mut is_logged = false;
        loop {
            let (work, heal, stop) = {
                let mut queue = self.queue.lock();
                while queue.items.is_empty() && !queue.heal && !queue.stop {
                    self.wake.wait(&mut queue);
                }
                let work = queue.batch();
                (work, std::mem::take(&mut queue.heal), queue.stop)
            };
            let outcome = if work.is_empty() { Ok(()) } else { self.record(work) };
            if stop {
                // One last attempt was made. Bans that it could not record are healed by another process.
                self.done.notify_all();
                return;
            }
            let outcome = if heal { outcome.and_then(|()| self.heal()) } else { outcome };
            match outcome {
                Ok(()) => {
                    backoff = Duration::from_millis(1);
                    is_logged = false;
                    self.scan_records();
                }
                Err(outage) => {
                    let mut queue = self.queue.lock();
                    // What was given up meanwhile is not tried again.
                    while queue.items.front().is_some_and(|queued| queued.what.is_none() && !queued.is_ban) {
                        queue.items.pop_front();
                        queue.first += 1;
                    }
                    (queue.failures, queue.failure) = (queue.failures.wrapping_add(1), Some(outage));
                    self.done.notify_all();
                    if queue.items.is_empty() {
                        continue;
                    }
                    if !std::mem::replace(&mut is_logged, true) {
                        (self.store.log)(&Notice::LogDelayed(outage.to_string()));
                    }
                    if !queue.stop {
                        self.wake.wait_for(&mut queue, backoff);
                    }
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    /// Writes entries into the log and counts them on the board.
    fn record(&self, work: Vec<Queued>) -> Result<(), Outage> {
        let done = work.len();
        if let ConnectionState::V01 { .. } = self.store.client.state() {
            let entry = |queued: Queued| Some((queued.at, queued.what?));
            self.append_v01(&work.into_iter().filter_map(entry).collect::<Vec<_>>())?;
        } else {
            self.record_on_board(work)?;
        }
        let mut queue = self.queue.lock();
        let bans = queue.items.drain(..done).filter(|queued| queued.is_ban).count();
        queue.first += done as u64;
        queue.failure = None;
        self.pending_bans.fetch_sub(bans, Ordering::SeqCst);
        drop(queue);
        self.done.notify_all();
        Ok(())
    }

    fn record_on_board(&self, mut work: Vec<Queued>) -> Result<(), Outage> {
        let session = self.store.session()?;
        let board = session.board().ok_or(Outage::Protocol)?;
        let mut announced = Vec::new();
        for queued in work.iter_mut().filter(|queued| queued.is_ban) {
            // A ban that was made while the store was down, or announced on another board, is announced on this one, so
            // that its readers read the log again.
            let current = queued.announced.filter(|announced| announced.board == board.id());
            let current = current.unwrap_or_else(|| self.announce(board));
            queued.announced = Some(current);
            announced.push(current);
        }
        {
            // Should this attempt fail, the next one need not announce again.
            let mut queue = self.queue.lock();
            for (queued, done) in queue.items.iter_mut().zip(&work) {
                queued.announced = done.announced;
            }
        }
        let mut files = self.file.lock();
        let files = &mut *files;
        let mut conflicts = 0;
        let (healed, recorded) = loop {
            let recorded = board.recorded(self.slot);
            let known = files.known.as_ref().filter(|(_, of, at)| *of == session.id() && *at == recorded);
            let mut head = match known {
                Some((known, ..)) => known.clone(),
                None => self.read_head(files, &session, Want::ENTRY)?,
            };
            let former = head.file.parts.clone();
            if head.entry.is_none() {
                (self.store.log)(&Notice::LogReset("there was no invalidation log".into()));
            }
            self.make_room(files, &session, &mut head.file, &work)?;
            self.add(&mut head.file, &work);
            let (healed, parts) = (head.file.healed, head.file.parts.clone());
            if self.write_head(files, head, &session)? {
                self.remove_parts(&former, &parts);
                break (healed, recorded);
            }
            self.remove_parts(&parts, &former);
            conflicts += 1;
            if conflicts == MAX_CONFLICTS {
                return Err(Outage::Timeout);
            }
        };
        if announced.is_empty() {
            // A purge is not acknowledged yet, so that it need not have been announced before. One announcement for all
            // of them tells readers to read the log.
            announced.push(self.announce(board));
        }
        self.count_recorded(files, &session, board, &announced, healed)?;
        self.has_recorded(files, &session, board, recorded.wrapping_add(announced.len() as u64));
        Ok(())
    }

    /// Notes in the log in memory what was appended. `recorded`: what the board says if no other process has recorded
    /// since the head was read, so that the head that was written is the newest one.
    fn has_recorded(&self, files: &mut Files, session: &Session, board: &Board, recorded: u64) {
        let Some((head, ..)) = files.known.clone() else { return };
        if self.load(files, session, &head.file).is_err() || board.recorded(self.slot) != recorded {
            // The next look-up reads the log.
            return;
        }
        if let Some(read) = self.read.write().as_mut() {
            (read.board, read.recorded) = (board.id(), recorded);
        }
        files.known = Some((head, session.id(), recorded));
    }

    /// Appends queued entries to a head.
    fn add(&self, file: &mut LogFile, work: &[Queued]) {
        for queued in work {
            let Some(what) = &queued.what else { continue };
            file.last += 1;
            file.entries.push(Arc::new(LogEntry::new(file.last, queued.at, self.origin, (**what).clone())));
        }
    }

    /// Heals, if the counters of the board still differ: see the module.
    fn heal(&self) -> Result<(), Outage> {
        let session = self.store.session()?;
        let board = session.board().ok_or(Outage::Protocol)?;
        let recorded = board.recorded(self.slot);
        let announced = board.announced(self.slot);
        if recorded == announced {
            return Ok(());
        }
        let divergence = self.divergence(board, recorded, announced);
        if divergence.since.elapsed() < HEAL_AFTER {
            return Ok(());
        }
        let mut files = self.file.lock();
        let mut head = self.read_head(&mut files, &session, Want::ENTRY)?;
        // The store answers now. If it did not before, a recorder that waits for it is given time to record.
        let chance = Instant::now() + 2 * MAX_BACKOFF;
        while Instant::now() < chance {
            if board.recorded(self.slot) != recorded {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Later announcements are not covered: nothing says that their recorders are dead.
        let former = head.file.parts.clone();
        head.file = self.new_file()?;
        head.file.healed = Some(Healed { board: board.id().0, through: divergence.announced });
        if self.write_head(&mut files, head, &session)? && board.heal(self.slot, recorded, divergence.announced) {
            self.remove_parts(&former, &[]);
            (self.store.log)(&Notice::LogReset("a cache that announced a ban died before it was recorded".into()));
        }
        Ok(())
    }
}
