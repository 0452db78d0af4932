//! Announces this process's bans and records them, and reads the bans that other processes recorded.
//!
//! The order on the board (`EXTENSIONS.md` of objmapper-proto) makes it safe: a ban is announced before it is
//! acknowledged, and recorded after it is in the log. A reader that finds the two counters equal, and has read the log
//! since the number of recorded bans is what it is, knows every ban that was acknowledged.
//!
//! If a process dies between announcing and recording, the counters differ for ever. A process that sees them differ
//! and not change for [`HEAL_AFTER`] *heals*: it writes a log with a new nonce, which invalidates all older records,
//! those that the lost ban matches too, and which names the last announcement that it covers; then it sets `recorded`
//! to that. A recorder that was merely slow must not count a covered ban again, or a later ban would seem to be
//! recorded before it is: see [`Core::count_recorded`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use objmapper_client::{Board, CommitOptions, ConnectionState, Entry, Found, IfVersion, Session, Want};

use super::{Announced, BanLogSnapshot, HEAL_AFTER, MAX_WAIT, Queued, Unknown, random};
use crate::config::Notice;
use crate::core::Core;
use crate::invalidation::bans::evaluate::Patterns;
use crate::invalidation::bans::log::{Healed, Log};
use crate::invalidation::bans::spec::Ban;
use crate::outage::Outage;
use crate::record::bytes::Malformed;
use crate::record::reading::{Opened, Unreadable};
use crate::record::tail::{Kind, tail};

/// A recorder that needs longer than this checks whether another process has healed its ban. Less than [`HEAL_AFTER`].
const LATE: Duration = Duration::from_secs(1);
/// The longest pause between attempts to record.
const MAX_BACKOFF: Duration = Duration::from_millis(200);
/// Attempts in a row to change a log that other processes change at the same time.
const MAX_CONFLICTS: usize = 64;

/// The log as it is in the store.
struct InStore {
    log: Log,
    /// `None`: there is no log in the store.
    entry: Option<Entry>,
}

impl Core {
    /// See [`L2::announce_ban`](crate::L2::announce_ban).
    pub(crate) fn announce_ban(&self, spec: &[u8]) {
        let ban = match Ban::from_varnishd(spec) {
            Ok(Some(ban)) => ban,
            Ok(None) => return,
            Err(_) => Ban::matching_everything(0.0),
        };
        let session = self.client.session();
        self.bans.push(ban, || Some(self.announce(session.as_ref()?.board()?)));
    }

    fn announce(&self, board: &Board) -> Announced {
        // In this order: it must not seem younger than it is.
        let at = Instant::now();
        Announced { board: board.id(), number: board.announce(self.bans.slot), at }
    }

    /// Returns the nonce of the newest ban log that was read.
    pub(crate) fn ban_log_nonce(&self) -> Option<[u8; 16]> {
        self.bans.snapshot.read().as_ref().map(|snapshot| snapshot.log.mark().nonce)
    }

    /// Returns all bans that were acknowledged before the call.
    pub(crate) fn current_bans(&self, session: &Session) -> Result<Arc<BanLogSnapshot>, Unknown> {
        let board = session.board().ok_or(Outage::Protocol)?;
        let deadline = Instant::now() + self.call_timeout.min(MAX_WAIT);
        self.bans.wait_own(deadline)?;
        for _ in 0..MAX_CONFLICTS {
            let recorded = self.bans.wait_others(board, deadline)?;
            if let Some(snapshot) = self.bans.snapshot_of(board.id(), recorded) {
                return Ok(snapshot);
            }
            let _alone = self.bans.refresh.lock();
            if self.bans.snapshot_of(board.id(), recorded).is_none() {
                self.refresh(board, recorded)?;
            }
        }
        Err(Unknown::Pending)
    }

    /// Returns true if no ban was recorded or announced since this snapshot was read. Atomic loads only.
    pub(crate) fn is_newest(&self, session: &Session, snapshot: &BanLogSnapshot) -> bool {
        session.board().is_some_and(|board| {
            board.id() == snapshot.board
                && board.recorded(self.bans.slot) == snapshot.recorded
                && board.announced(self.bans.slot) == snapshot.recorded
        }) && self.bans.pending() == 0
    }

    /// Reads the log, or begins one.
    fn refresh(&self, board: &Board, recorded: u64) -> Result<(), Unknown> {
        let mut found = self.read_log(Want::PIN)?;
        if found.entry.is_none() {
            // Counted as a ban, so that processes with a snapshot of the lost log read the new one.
            let announced = self.announce(board);
            let written = self.write_log(&mut found);
            self.count_recorded(board, &[announced], None)?;
            if written? {
                (self.log)(&Notice::BansReset("there was no ban log".into()));
            }
            // What is in the store now is read in the next round.
            return Ok(());
        }
        let former = self.bans.snapshot.read().clone();
        let none = Patterns::default();
        let patterns = former.as_ref().map_or(&none, |snapshot| &snapshot.patterns);
        let patterns = Patterns::of(found.log.bans(), patterns, &*self.regexes);
        let snapshot = BanLogSnapshot { board: board.id(), recorded, log: found.log, patterns };
        *self.bans.snapshot.write() = Some(Arc::new(snapshot));
        Ok(())
    }

    /// Reads the log. One that does not validate is removed.
    fn read_log(&self, want: Want) -> Result<InStore, Outage> {
        for _ in 0..MAX_CONFLICTS {
            let session = self.session()?;
            let found = self.client.lookup(&self.bans.uri, want).map_err(|why| Outage::from(&why))?;
            let Some(found) = found else {
                let log = Log::new(&self.space.prefix(), random()?);
                return Ok(InStore { log, entry: None });
            };
            let opened = Opened::new(&session, &found.entry).and_then(|opened| {
                let log = match opened.kind() {
                    Kind::Bans => Log::decode(opened.head(), &self.space.prefix()),
                    _ => Err(Malformed("kind")),
                };
                Ok(log?)
            });
            if opened.is_err() && want.pin {
                self.client.release(found.session, &[found.entry.object]);
            }
            match opened {
                Ok(log) => {
                    if want.pin {
                        self.has_pinned(&found);
                    }
                    return Ok(InStore { log, entry: Some(found.entry) });
                }
                Err(Unreadable::Gone) => {}
                Err(Unreadable::Outage(outage)) => return Err(outage),
                Err(Unreadable::Damaged(why)) => {
                    (self.log)(&Notice::Damaged(format!("the ban log: {why}")));
                    self.evict(&self.bans.uri, found.entry.version)?;
                }
            }
        }
        Err(Outage::Io)
    }

    /// Publishes the log over the one that was read. Returns false if another process has replaced that meanwhile.
    fn write_log(&self, log: &mut InStore) -> Result<bool, Outage> {
        let bytes = tail(Kind::Bans, log.log.encode(), 0, None).ok_or(Outage::Io)?;
        let if_version = IfVersion::from_raw(log.entry.map_or(0, |entry| entry.version));
        let options = CommitOptions { if_version, want: Want::PIN, ..CommitOptions::default() };
        let written = self.put(&self.bans.uri, &bytes, options)?;
        if let Some(written) = &written {
            self.has_pinned(written);
        }
        Ok(written.is_some())
    }

    /// Remembers the pin of the current log, and releases that of the former one.
    fn has_pinned(&self, found: &Found) {
        let pinned = (found.session, found.entry.object);
        let former = self.bans.pinned.lock().replace(pinned);
        if let Some((session, object)) = former.filter(|former| *former != pinned) {
            self.client.release(session, &[object]);
        }
    }

    /// Counts announced bans as recorded. `healed` is what the log said about healing when they were written into it.
    ///
    /// A healer first says in the log up to which announcement it heals, none of them younger than [`HEAL_AFTER`], then
    /// changes `recorded`. If it did so before `recorded` is read here, then what is covered is late by now and found in
    /// the log; if it does so after, the exchange fails and all is looked at once more. So nothing is counted twice.
    fn count_recorded(&self, board: &Board, announced: &[Announced], mut healed: Option<Healed>) -> Result<(), Outage> {
        loop {
            let seen = board.recorded(self.bans.slot);
            if announced.iter().any(|announced| announced.at.elapsed() > LATE) {
                healed = self.read_log(Want::ENTRY)?.log.healed();
            }
            let covers = |a: &&Announced| healed.is_some_and(|healed| healed.covers(board.id().0, a.number));
            let n = (announced.len() - announced.iter().filter(covers).count()) as u64;
            if n == 0 || board.heal(self.bans.slot, seen, seen.wrapping_add(n)) {
                return Ok(());
            }
        }
    }

    /// The recorder's thread.
    pub(crate) fn run_ban_recorder(&self) {
        let mut backoff = Duration::from_millis(1);
        let mut is_logged = false;
        loop {
            let (work, heal, stop) = {
                let mut queue = self.bans.queue.lock();
                while queue.bans.is_empty() && !queue.heal && !queue.stop {
                    self.bans.wake.wait(&mut queue);
                }
                (queue.bans.iter().cloned().collect::<Vec<_>>(), std::mem::take(&mut queue.heal), queue.stop)
            };
            let outcome = if work.is_empty() { Ok(()) } else { self.record_bans(work) };
            if stop {
                // One last attempt was made. Bans that it could not record are healed by another process.
                return;
            }
            let outcome = if heal { outcome.and_then(|()| self.heal_bans()) } else { outcome };
            match outcome {
                Ok(()) => {
                    backoff = Duration::from_millis(1);
                    is_logged = false;
                }
                Err(outage) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        (self.log)(&Notice::BanDelayed(outage.to_string()));
                    }
                    let mut queue = self.bans.queue.lock();
                    if !queue.stop {
                        self.bans.wake.wait_for(&mut queue, backoff);
                    }
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    /// Writes bans into the log and counts them on the board.
    fn record_bans(&self, work: Vec<Queued>) -> Result<(), Outage> {
        let done = work.len();
        if let ConnectionState::V01 { .. } = self.client.state() {
            let bans: Vec<_> = work.into_iter().filter_map(|queued| queued.ban).collect();
            self.append_v01(&bans)?;
        } else {
            self.record_on_board(work)?;
        }
        let mut queue = self.bans.queue.lock();
        queue.bans.drain(..done);
        self.bans.pending.fetch_sub(done, Ordering::SeqCst);
        if queue.bans.is_empty() {
            self.bans.empty.notify_all();
        }
        Ok(())
    }

    fn record_on_board(&self, mut work: Vec<Queued>) -> Result<(), Outage> {
        let session = self.session()?;
        let board = session.board().ok_or(Outage::Protocol)?;
        let mut announced = Vec::with_capacity(work.len());
        for queued in &mut work {
            // A ban that was made while the store was down, or announced on another board, is announced on this one, so
            // that its readers read the log again.
            let current = queued.announced.filter(|announced| announced.board == board.id());
            let current = current.unwrap_or_else(|| self.announce(board));
            queued.announced = Some(current);
            announced.push(current);
        }
        {
            // Should this attempt fail, the next one need not announce again.
            let mut queue = self.bans.queue.lock();
            for (queued, done) in queue.bans.iter_mut().zip(&work) {
                queued.announced = done.announced;
            }
        }
        let mut conflicts = 0;
        let healed = loop {
            let mut found = self.read_log(Want::ENTRY)?;
            for ban in work.iter().filter_map(|queued| queued.ban.as_ref()) {
                found.log.append(ban.clone());
            }
            if self.write_log(&mut found)? {
                break found.log.healed();
            }
            conflicts += 1;
            if conflicts == MAX_CONFLICTS {
                return Err(Outage::Timeout);
            }
        };
        self.count_recorded(board, &announced, healed)
    }

    /// Heals, if the counters of the board still differ: see the module.
    fn heal_bans(&self) -> Result<(), Outage> {
        let session = self.session()?;
        let board = session.board().ok_or(Outage::Protocol)?;
        let recorded = board.recorded(self.bans.slot);
        let announced = board.announced(self.bans.slot);
        if recorded == announced {
            return Ok(());
        }
        let divergence = self.bans.divergence(board.id(), recorded, announced);
        if divergence.since.elapsed() < HEAL_AFTER {
            return Ok(());
        }
        let mut found = self.read_log(Want::ENTRY)?;
        // The store answers now. If it did not before, a recorder that waits for it is given time to record.
        let chance = Instant::now() + 2 * MAX_BACKOFF;
        while Instant::now() < chance {
            if board.recorded(self.bans.slot) != recorded {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Later announcements are not covered: nothing says that their recorders are dead.
        let healed = Healed { board: board.id().0, through: divergence.announced };
        found.log = Log::new(&self.space.prefix(), random()?).healing(healed);
        if self.write_log(&mut found)? && board.heal(self.bans.slot, recorded, divergence.announced) {
            (self.log)(&Notice::BansReset("a cache that announced a ban died before it was recorded".into()));
        }
        Ok(())
    }
}
