//! The invalidation log of a space, in the store and in memory.
//!
//! What this process invalidates is queued, and written by one thread ([`append`]), which takes all that is queued in
//! one write. A ban is announced on the store's board at once, under the queue's lock, because it is acknowledged before
//! it is written; a purge is answered when it is in the log. A look-up needs all entries that were acknowledged: it waits
//! until this process's bans are written and the board's two counters are equal, and then reads what is new in the log
//! ([`read`]), unless it has been read since the counters last changed.
//!
//! | lock | guards | held while the store is called |
//! |---|---|---|
//! | `queue` | what is to be appended | no |
//! | `read` | the log in memory, which look-ups judge by | no |
//! | `file` | the log as it is in the store, and its pins | yes |
//!
//! Invariants: a ban is announced and queued under the queue's lock, and leaves the queue after it is recorded. The log in
//! memory holds every entry up to its last one that is neither superseded nor below its floor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use objmapper_client::{Board, ObjUri, Session, Token};
use objmapper_log::RateLimited;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::config::Notice;
use crate::invalidation::entry::{Invalidation, Origin};
use crate::invalidation::file::LogFile;
use crate::invalidation::index::{Index, Judged, Verdict};
use crate::lookup::request::RequestView;
use crate::outage::Outage;
use crate::record::head::Head;
use crate::record::stored::Mark;
use crate::regex::Regexes;
use crate::store::Store;

pub(crate) mod append;
pub(crate) mod compact;
pub(crate) mod follow;
pub(crate) mod read;

use read::Files;

/// If the counters differ and do not change for so long, the process that announced is taken for dead.
const HEAL_AFTER: Duration = Duration::from_secs(2);
/// The longest wait of a look-up for bans that another process is recording.
const MAX_WAIT: Duration = Duration::from_millis(250);
/// Attempts in a row to change a log that other processes change at the same time.
const MAX_CONFLICTS: usize = 64;

/// Why the current invalidations are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// A ban was announced, and was not recorded within [`MAX_WAIT`].
    Pending,
    Outage(Outage),
}

impl From<Outage> for Unknown {
    fn from(outage: Outage) -> Self {
        Self::Outage(outage)
    }
}

/// An announcement on the board.
#[derive(Debug, Clone, Copy)]
struct Announced {
    board: Token,
    number: u64,
    at: Instant,
}

/// An invalidation of this process that is not in the log yet.
#[derive(Debug, Clone)]
struct Queued {
    /// `None`: its caller has given it up, or an entry before it covers it.
    what: Option<Arc<Invalidation>>,
    /// When it was made, seconds since 1970.
    at: f64,
    /// True for a ban, which look-ups of this process wait for.
    is_ban: bool,
    announced: Option<Announced>,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Queued>,
    /// The number of the first item. Items with lower numbers are recorded.
    first: u64,
    /// Failed attempts to record, and why the last one failed.
    failures: u64,
    failure: Option<Outage>,
    heal: bool,
    stop: bool,
}

/// A state of the log that has been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    board: Token,
    /// The board's number of recorded announcements before the log was read.
    recorded: u64,
    pub(crate) mark: Mark,
}

/// The log in memory.
#[derive(Debug)]
struct ReadLog {
    board: Token,
    /// As in [`Position`].
    recorded: u64,
    index: Index,
}

/// A difference of the board's two counters, as it was first seen.
#[derive(Debug, Clone, Copy)]
struct Divergence {
    board: Token,
    recorded: u64,
    /// The number of announcements at that time.
    announced: u64,
    since: Instant,
}

/// The invalidation log.
pub(crate) struct Journal {
    pub(crate) store: Arc<Store>,
    pub(crate) uri: ObjUri<'static>,
    /// Its slot on the board.
    slot: u32,
    /// Random: names this instance in its entries.
    pub(crate) origin: [u8; 16],
    /// The most bytes of entries.
    pub(crate) limit: u64,
    pub(crate) regexes: Arc<dyn Regexes>,
    queue: Mutex<Queue>,
    /// Signalled when something was queued, or the recorder is to heal, retry or stop.
    wake: Condvar,
    /// Signalled when something was recorded, or could not be.
    done: Condvar,
    /// The number of queued bans, readable without the queue's lock.
    pending_bans: AtomicUsize,
    read: RwLock<Option<ReadLog>>,
    file: Mutex<Files>,
    divergence: Mutex<Option<Divergence>>,
    /// Entries that were dropped although records may be older.
    trimmed: AtomicU64,
    /// True after a notice that the log is of a newer version.
    is_newer: AtomicBool,
    /// Bounds the rate of notices about its limit.
    limit_lines: RateLimited,
    /// True after a notice that the log is filling up.
    is_filling: AtomicBool,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl Journal {
    pub(crate) fn new(
        store: Arc<Store>,
        regexes: Arc<dyn Regexes>,
        limit: u64,
        origin: Option<Origin>,
    ) -> Result<Self, Outage> {
        Ok(Self {
            uri: store.space.uri(&[b"log"]),
            slot: Board::slot(&store.space.prefix()),
            origin: origin.map_or_else(random, |Origin(origin)| Ok(origin))?,
            limit,
            regexes,
            queue: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
            pending_bans: AtomicUsize::new(0),
            read: RwLock::new(None),
            file: Mutex::default(),
            divergence: Mutex::new(None),
            trimmed: AtomicU64::new(0),
            is_newer: AtomicBool::new(false),
            limit_lines: RateLimited::new(10, Duration::from_secs(60)),
            is_filling: AtomicBool::new(false),
            store,
        })
    }

    /// Returns the nonce of the newest log that was read.
    pub(crate) fn nonce(&self) -> Option<[u8; 16]> {
        self.read.read().as_ref().map(|read| read.index.nonce)
    }

    /// Returns the number of bans that are not recorded yet.
    pub(crate) fn pending_bans(&self) -> usize {
        self.pending_bans.load(Ordering::SeqCst)
    }

    /// Returns the bytes of the entries that were read, and the number of entries that this process dropped although
    /// records may be older.
    pub(crate) fn size(&self) -> (u64, u64) {
        let bytes = self.read.read().as_ref().map_or(0, |read| read.index.bytes());
        (bytes, self.trimmed.load(Ordering::Relaxed))
    }

    /// Makes the recorder retry at once.
    pub(crate) fn wake_up(&self) {
        self.wake.notify_all();
    }

    /// Makes its threads end.
    pub(crate) fn stop(&self) {
        self.queue.lock().stop = true;
        self.wake.notify_all();
    }

    /// Returns an empty log.
    pub(crate) fn new_file(&self) -> Result<LogFile, Outage> {
        Ok(LogFile::new(&self.store.space.prefix(), random()?, now()))
    }

    /// Counts entries that were dropped although records may be older, and tells the operator.
    pub(crate) fn has_trimmed(&self, entries: u64, limit: u64) {
        self.trimmed.fetch_add(entries, Ordering::Relaxed);
        if self.limit_lines.admit().is_some() {
            (self.store.log)(&Notice::LogTrimmed { entries, limit });
        }
    }

    /// Tells the operator, once, that the log cannot be used because a newer version wrote it.
    pub(crate) fn log_newer(&self, version: u8) {
        if !self.is_newer.swap(true, Ordering::Relaxed) {
            (self.store.log)(&Notice::LogNewer(version));
        }
    }

    fn is_stopped(&self) -> bool {
        self.queue.lock().stop
    }

    /// Returns true if nothing was recorded or announced since this position was read. Atomic loads only.
    pub(crate) fn is_newest(&self, session: &Session, position: &Position) -> bool {
        session.board().is_some_and(|board| {
            board.id() == position.board
                && board.recorded(self.slot) == position.recorded
                && board.announced(self.slot) == position.recorded
        }) && self.pending_bans() == 0
    }

    /// Judges a record with this head for a request, by the log as it was last read.
    pub(crate) fn judge(&self, judged: Judged<'_>, head: &Head, request: &dyn RequestView) -> Verdict {
        let read = self.read.read();
        read.as_ref().map_or(Verdict::Invalid, |read| read.index.judge(judged, head, request))
    }

    /// Judges a record by purges of its key and its tags, by the log as it was last read.
    pub(crate) fn judge_purges(&self, judged: Judged<'_>) -> Verdict {
        self.read.read().as_ref().map_or(Verdict::Invalid, |read| read.index.judge_purges(judged))
    }
}

/// Returns the present time, seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Returns random bytes, for a nonce or a generation.
pub(crate) fn random() -> Result<[u8; 16], Outage> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Outage::Io)?;
    Ok(bytes)
}
