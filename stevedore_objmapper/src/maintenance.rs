//! The storage's background thread, `objm-storage`: a thread of varnishd's with a worker, like the ban lurker's.
//!
//! It does what the engine's [`objmapper_engine::maintenance`] hands it, one piece at a time: kills objects whose bodies are lost, and
//! evicts ahead of need, so that a fetch finds room. Between two pieces, and at least once per [`IDLE`], it brings the gauges up to
//! date. It runs from the storage's `open` to its `close`.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use objmapper_engine::counters;
use objmapper_engine::engine::Engine;
use objmapper_engine::maintenance::Task;
use varnishd::lru::Lru;
use varnishd::objcore::Objcore;
use varnishd::worker::{BackgroundThread, Worker};

use crate::BOUNDARY;

/// Without work, gauges are brought up to date this often.
const IDLE: Duration = Duration::from_secs(1);

/// The expiry thread frees what was evicted within this time, or more is evicted.
const FREED_WITHIN: Duration = Duration::from_millis(200);
/// The interval of looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Starts the thread. Called in the CLI thread, from `open`. It ends after
/// [`objmapper_engine::maintenance::Maintenance::stop`].
pub(crate) fn start(engine: &'static Engine, lru: Lru) -> BackgroundThread {
    BackgroundThread::start(c"objm-storage", move |wrk| {
        loop {
            match engine.maintenance.next_task(IDLE) {
                Task::Stop => break,
                // SAFETY: the engine names objects of ours that are not freed while the closure runs.
                Task::Sweep(scope) => engine.sweep(scope, |owner| unsafe { Objcore::from_exposed(owner) }.kill()),
                Task::MakeRoom(bytes) => make_room(wrk, engine, lru, bytes),
                Task::Idle => engine.tidy(),
            }
            engine.counters.c_err_internal.store(BOUNDARY.caught(), Relaxed);
            engine.refresh();
            wrk.publish();
        }
    })
}

/// Evicts until `bytes` are free, or nothing can be evicted.
fn make_room(wrk: Worker<'_>, engine: &Engine, lru: Lru, bytes: u64) {
    wrk.lift_eviction_limit();
    let account = &engine.account;
    let mut exhausted = false;
    let mut patience = FREED_WITHIN;
    while account.free() < bytes {
        // Evicting frees the body here, but the head in the expiry thread: evicting on while that thread lags behind would empty a
        // cache of small objects.
        let lags = account.free_soon() > account.free() && !patience.is_zero();
        if !lags || account.free_soon() < bytes {
            if lru.evict_one(wrk) {
                counters::add(&engine.counters.c_evicted_ahead, 1);
                continue;
            }
            if !lags {
                exhausted = true;
                break;
            }
        }
        std::thread::sleep(LOOK_AGAIN);
        patience = patience.saturating_sub(LOOK_AGAIN);
    }
    engine.maintenance.made_room(exhausted);
}
