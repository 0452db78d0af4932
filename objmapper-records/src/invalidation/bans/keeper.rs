//! The bans that this process knows: its own, until they are recorded, and a snapshot of the log.
//!
//! A ban of this process is queued and announced on the store's board, then recorded by one thread
//! (`keeper/recording.rs`), which writes it into the log and counts it on the board. A look-up needs all acknowledged
//! bans: it waits until the queue is empty and the board's two counters are equal, and then reads the log, unless the
//! snapshot is of that number of recorded bans.
//!
//! Invariants: a ban is announced and queued under the queue's lock, and leaves the queue after it is recorded. A
//! snapshot never changes; it is replaced.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use objmapper_client::{Board, ObjUri, Token, UriSpace};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::invalidation::bans::evaluate::Patterns;
use crate::invalidation::bans::log::Log;
use crate::invalidation::bans::spec::Ban;
use crate::outage::Outage;

mod recording;

/// If the counters differ and do not change for so long, the recorder is taken for dead.
const HEAL_AFTER: Duration = Duration::from_secs(2);
/// The longest wait of a look-up for bans that another process is recording.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// Queued bans that are kept one by one; further ones are replaced by one that matches everything.
const MAX_QUEUED: usize = 4096;

/// A ban that this process announced and has not recorded yet.
#[derive(Debug, Clone)]
struct Queued {
    /// `None`: the queued ban before it covers it.
    ban: Option<Ban>,
    announced: Option<Announced>,
}

/// An announcement of a ban on the board.
#[derive(Debug, Clone, Copy)]
struct Announced {
    board: Token,
    number: u64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    bans: VecDeque<Queued>,
    heal: bool,
    stop: bool,
}

/// A snapshot of the ban log, with its patterns compiled.
#[derive(Debug)]
pub(crate) struct BanLogSnapshot {
    board: Token,
    /// The board's number of recorded bans before the log was read.
    recorded: u64,
    pub(crate) log: Log,
    pub(crate) patterns: Patterns,
}

/// A difference of the board's two counters, as it was first seen.
#[derive(Debug, Clone, Copy)]
struct Divergence {
    board: Token,
    recorded: u64,
    /// The number of announced bans at that time.
    announced: u64,
    since: Instant,
}

/// Why the current bans are unknown.
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

#[derive(Debug)]
pub(crate) struct Keeper {
    uri: ObjUri<'static>,
    slot: u32,
    queue: Mutex<Queue>,
    /// Signalled when a ban was queued, or the recorder is to heal, retry or stop.
    wake: Condvar,
    /// Signalled when the queue has become empty.
    empty: Condvar,
    /// The queue's length, readable without its lock.
    pending: AtomicUsize,
    snapshot: RwLock<Option<Arc<BanLogSnapshot>>>,
    /// Held while the log is read, so that one thread reads it for all.
    refresh: Mutex<()>,
    divergence: Mutex<Option<Divergence>>,
    /// The session and the object number of the newest log that this process has read or written. It is pinned, so that
    /// it is not evicted.
    pinned: Mutex<Option<(u64, u64)>>,
}

impl Keeper {
    pub(crate) fn new(space: &UriSpace) -> Self {
        Self {
            uri: space.uri(&[b"bans"]),
            slot: Board::slot(&space.prefix()),
            queue: Mutex::default(),
            wake: Condvar::new(),
            empty: Condvar::new(),
            pending: AtomicUsize::new(0),
            snapshot: RwLock::new(None),
            refresh: Mutex::new(()),
            divergence: Mutex::new(None),
            pinned: Mutex::new(None),
        }
    }

    /// Returns the URI of the log.
    pub(crate) fn uri(&self) -> &ObjUri<'static> {
        &self.uri
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::SeqCst)
    }

    /// Makes the recorder retry at once.
    pub(crate) fn wake_up(&self) {
        self.wake.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.queue.lock().stop = true;
        self.wake.notify_all();
    }

    fn push(&self, ban: Ban, announced: impl FnOnce() -> Option<Announced>) {
        let mut queue = self.queue.lock();
        // Under the lock, so that a thread that finds the queue empty knows that all announced bans are recorded.
        self.pending.fetch_add(1, Ordering::SeqCst);
        let announced = announced();
        let ban = match queue.bans.len() {
            ..MAX_QUEUED => Some(ban),
            MAX_QUEUED => Some(Ban::matching_everything(0.0)),
            _ => None,
        };
        queue.bans.push_back(Queued { ban, announced });
        drop(queue);
        self.wake.notify_all();
    }

    /// Waits until this process's own bans are recorded.
    pub(crate) fn wait_own(&self, deadline: Instant) -> Result<(), Unknown> {
        if self.pending() == 0 {
            return Ok(());
        }
        let mut queue = self.queue.lock();
        while !queue.bans.is_empty() {
            if self.empty.wait_until(&mut queue, deadline).timed_out() && !queue.bans.is_empty() {
                return Err(Unknown::Pending);
            }
        }
        Ok(())
    }

    /// Waits until the numbers of announced and recorded bans are equal, and returns it.
    fn wait_others(&self, board: &Board, deadline: Instant) -> Result<u64, Unknown> {
        let mut pause = Duration::from_micros(20);
        loop {
            // In this order, see `Board::recorded`.
            let recorded = board.recorded(self.slot);
            let announced = board.announced(self.slot);
            if recorded == announced {
                return Ok(recorded);
            }
            let diverged_for = self.divergence(board.id(), recorded, announced).since.elapsed();
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
    fn divergence(&self, board: Token, recorded: u64, announced: u64) -> Divergence {
        let mut divergence = self.divergence.lock();
        // Neither counter goes back, so that they have differed all the time.
        match *divergence {
            Some(seen) if seen.board == board && seen.recorded == recorded => seen,
            _ => *divergence.insert(Divergence { board, recorded, announced, since: Instant::now() }),
        }
    }

    fn snapshot_of(&self, board: Token, recorded: u64) -> Option<Arc<BanLogSnapshot>> {
        let snapshot = self.snapshot.read();
        snapshot.as_ref().filter(|snapshot| snapshot.board == board && snapshot.recorded == recorded).cloned()
    }
}

/// Returns random bytes, for a nonce or a generation.
pub(crate) fn random() -> Result<[u8; 16], Outage> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Outage::Io)?;
    Ok(bytes)
}
