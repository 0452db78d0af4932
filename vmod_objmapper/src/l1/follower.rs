//! Applies to this cache what other caches have invalidated, in a thread of its own, which has the worker that varnishd wants.
//!
//! The log's thread puts entries into a queue and wakes this one. The queue is bounded: when it is full, all of it is replaced by one
//! entry that invalidates everything older than now.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use objmapper_log::RateLimited;
use objmapper_records::{Ban, DurationOf, Entry, Invalidation, NumberOper, Test};
use objmapper_tags::Counters;
use parking_lot::{Condvar, Mutex};
use varnishd::ban_commit::{self, Added};
use varnishd::clock;
use varnishd::worker::{BackgroundThread, Worker};

use super::{counters, purge_key, purge_tag, tagged};
use crate::{BOUNDARY, operator};

/// Entries that wait at most: what this thread applies in some seconds.
const MAX_PENDING: usize = 100_000;
/// Entries that are taken at once.
const BATCH: usize = 256;
/// Gauges are brought up to date this often.
const IDLE: Duration = Duration::from_secs(1);

/// Lines a minute.
static LINES: RateLimited = RateLimited::new(10, Duration::from_secs(60));

static QUEUE: Mutex<VecDeque<Entry>> = Mutex::new(VecDeque::new());
static WAKE: Condvar = Condvar::new();
static SEARCH: AtomicBool = AtomicBool::new(false);

/// Appends to the queue.
pub(super) fn push(entries: &[Entry]) {
    if entries.is_empty() {
        return;
    }
    let mut queue = QUEUE.lock();
    if queue.len() + entries.len() > MAX_PENDING {
        Counters::add(&counters().c_overflow, (queue.len() + entries.len()) as u64);
        queue.clear();
        queue.push_back(Entry { seq: 0, at: clock::now(), what: Invalidation::All });
        log("more invalidations of other caches than this varnishd can apply: everything in its cache is banned");
    } else {
        queue.extend(entries.iter().cloned());
    }
    counters().g_pending.store(queue.len() as u64, Relaxed);
    WAKE.notify_one();
}

/// Has the objects in the cache searched for tags.
pub(super) fn search() {
    let _queue = QUEUE.lock();
    SEARCH.store(true, Release);
    WAKE.notify_one();
}

/// Returns true if a search has been asked for that has not begun.
pub(super) fn search_is_due() -> bool {
    SEARCH.load(Acquire)
}

/// Starts the thread, once. Called in varnishd's CLI thread.
pub(super) fn start() {
    static STARTED: OnceLock<BackgroundThread> = OnceLock::new();
    STARTED.get_or_init(|| BackgroundThread::start(c"objm-l1", run));
}

fn run(worker: Worker<'_>) {
    loop {
        let batch: Vec<Entry> = {
            let mut queue = QUEUE.lock();
            if queue.is_empty() && !search_is_due() {
                WAKE.wait_for(&mut queue, IDLE);
            }
            let len = queue.len().min(BATCH);
            queue.drain(..len).collect()
        };
        BOUNDARY.fallible("follow", (), || {
            for entry in &batch {
                apply(worker, entry);
            }
            // What is in the log goes first: it is compared with what the search finds.
            if SEARCH.swap(false, Relaxed) {
                tagged::search(worker);
            }
        });
        counters().g_pending.store(QUEUE.lock().len() as u64, Relaxed);
        tagged::show();
        worker.publish();
    }
}

fn apply(worker: Worker<'_>, entry: &Entry) {
    let counters = counters();
    match &entry.what {
        Invalidation::Ban(ban) => {
            Counters::add(&counters.c_bans, 1);
            add_ban(ban);
        }
        Invalidation::Purge { digest, soft } => {
            Counters::add(&counters.c_purges, 1);
            purge_key(worker, digest, *soft);
        }
        Invalidation::Tag { tag, soft } => {
            Counters::add(&counters.c_tags, 1);
            purge_tag(worker, tag, *soft);
        }
        Invalidation::All => {
            Counters::add(&counters.c_all, 1);
            log(
                "invalidations of other caches may have been missed: everything in this varnishd's cache that is older is banned",
            );
            add_ban(&older_than(entry.at));
        }
    }
}

/// Bans the objects of an earlier process, once, before the first request: what other caches invalidated since that process followed
/// the log for the last time is not known. Called in varnishd's CLI thread.
pub(super) fn ban_reloaded() {
    static BANNED: Once = Once::new();
    BANNED.call_once(|| {
        Counters::add(&counters().c_all, 1);
        log("objects of an earlier process are banned: what other caches have invalidated meanwhile is not known");
        add_ban(&older_than(clock::now()));
    });
}

/// A ban of everything that was there at this time.
fn older_than(time: f64) -> Ban {
    let test = Test::Number { subject: DurationOf::Age, oper: NumberOper::GreaterOrEqual, number: 0.0 };
    Ban { time, timeless: false, tests: vec![test] }
}

fn add_ban(ban: &Ban) {
    match ban_commit::add(ban) {
        Ok(Added::Same) => {}
        Ok(Added::Widened(why)) => {
            Counters::add(&counters().c_bans_widened, 1);
            log(&format!("a ban of another cache, as a ban of everything: {why}"));
        }
        // varnishd ends, or has no memory: the child will not live on.
        Err(why) => log(&format!("a ban of another cache was not added: {why}")),
    }
}

fn log(message: &str) {
    if let Some(left_out) = LINES.admit() {
        operator("follow", &format!("{message}{left_out}"));
    }
}
