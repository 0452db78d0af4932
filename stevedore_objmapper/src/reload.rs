//! The start of a storage whose objects an earlier process has kept: bans and objects are in varnishd's cache before it serves
//! the first request, so that nothing can be purged, banned or replaced that comes afterwards.
//!
//! The newest objects are loaded, as many as there is room for, in the order in which they came: of two of one key the newer is
//! found first.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use objmapper_engine::counters;
use objmapper_engine::engine::Engine;
use objmapper_engine::persist::{Entry, Found, Loading, NotRestored, Persistence, Record, Times, choose};
use objmapper_server::store::Store;
use parking_lot::Mutex;
use varnishd::ban_reload::{Bans, ByTime};
use varnishd::objcore::Lifetime;
use varnishd::raw::RawStorage;
use varnishd::reload::{Reloaded, insert};
use varnishd::worker::{BackgroundThread, Worker};
use varnishd::{clock, parameters};

use crate::object::Object;
use crate::persist::{attributes_of, subscribe};

/// A line says so often how far loading has come.
const PROGRESS: Duration = Duration::from_secs(5);
/// The clock is looked at after so many objects.
const LOOK_AFTER: usize = 1024;
/// An object may have been made so much later than now, seconds: clocks are set.
const CLOCK_SKEW: f64 = 10.0;
/// One part in so many of the limit is left free for the first fetches.
const LEFT_FREE: u64 = 32;

/// Threads that load. Each has the objects of its part of the keys, so that those of one key come in their order.
const MAX_THREADS: usize = 4;

/// What became of the objects that were found.
#[derive(Debug, Default)]
struct Tally {
    loaded: u64,
    bytes: u64,
    expired: u64,
    damaged: u64,
    lost: u64,
    size: u64,
    late: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.loaded += other.loaded;
        self.bytes += other.bytes;
        self.expired += other.expired;
        self.damaged += other.damaged;
        self.lost += other.lost;
        self.size += other.size;
        self.late += other.late;
    }
}

/// A part of the keys.
#[derive(Debug, Clone, Copy)]
struct Part {
    number: usize,
    of: usize,
}

impl Part {
    fn has(self, digest: &[u8; 32]) -> bool {
        usize::from(digest[31]) % self.of == self.number
    }
}

/// The time that loading may take: half of what varnishd's manager waits for its child.
fn budget() -> Duration {
    Duration::try_from_secs_f64(parameters::start_timeout() / 2.0).unwrap_or(Duration::from_secs(30))
}

/// Loads what was found, and keeps the storage's objects from then on.
///
/// # Safety
/// Called from `open`, in the CLI thread; `stv` must be varnishd's copy of our storage, with its engine and list of objects.
pub(crate) unsafe fn load(
    stv: *mut RawStorage,
    ident: &str,
    engine: &'static Engine,
    store: &Store,
    loading: Loading,
    place: &'static OnceLock<Persistence>,
) -> io::Result<()> {
    let began = Instant::now();
    let (loading, bans) = match prepare(&loading) {
        Ok(bans) => (loading, bans),
        Err(why) => (loading.discard(&why)?, None),
    };
    let (persistence, found) = loading.start()?;
    let persistence = place.get_or_init(|| persistence);
    subscribe();
    let mut tally = Tally::default();
    if let Some(bans) = bans.filter(|_| !found.is_empty()) {
        let oldest = found.iter().map(|found| found.ban).fold(f64::INFINITY, f64::min);
        // SAFETY: by contract.
        unsafe { bans.reload(oldest) };
        let limit = engine.account.limit();
        let choice = choose(&found, limit - limit / LEFT_FREE);
        for found in choice.drop {
            persistence.remove(found.slot);
            tally.size += 1;
        }
        // As a number: a pointer does not go to another thread by itself.
        let stv = stv.expose_provenance();
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_THREADS));
        let shared = Arc::new(Shared {
            stv,
            engine,
            persistence,
            // SAFETY: by contract: the threads end before this call returns.
            bans: unsafe { ByTime::read() },
            now: clock::now(),
            ident: ident.to_owned(),
            began,
            load: choice.load.to_vec(),
            tally: Mutex::new(tally),
        });
        let loaders: Vec<_> = (0..threads)
            .map(|number| {
                let (shared, part) = (shared.clone(), Part { number, of: threads });
                BackgroundThread::start(c"objm-reload", move |worker| {
                    let loader = Loader { worker, part, shared: &shared };
                    match loader.load() {
                        Ok(part) => shared.tally.lock().add(&part),
                        // What is there and not loaded must not be found later.
                        Err(error) => shared.persistence.give_up("what was kept cannot be read", &error),
                    }
                    worker.publish();
                })
            })
            .collect();
        loaders.into_iter().for_each(BackgroundThread::join);
        tally = std::mem::take(&mut *shared.tally.lock());
    }
    persistence.finish_loading(store);
    report(ident, engine, &tally, began.elapsed());
    Ok(())
}

/// Decodes the bans. `None`: there are none, and no objects.
fn prepare(loading: &Loading) -> Result<Option<Bans>, String> {
    if loading.found().is_empty() {
        return Ok(None);
    }
    let bans = Bans::prepare(loading.bans()).map_err(|why| why.0)?;
    // Each object was tested by a ban that was written down before: there is always one.
    let newest = bans.newest().ok_or("its log of bans is empty")?;
    let tested = loading.found().iter().map(|found| found.ban);
    match tested.max_by(f64::total_cmp) {
        Some(last) if last.is_finite() && last <= newest => Ok(Some(bans)),
        _ => Err("a ban is missing in its log".to_owned()),
    }
}

/// What the threads share.
struct Shared {
    /// The storage's address. As a number: a pointer does not go to another thread by itself.
    stv: usize,
    engine: &'static Engine,
    persistence: &'static Persistence,
    bans: ByTime,
    now: f64,
    ident: String,
    began: Instant,
    /// From the oldest to the newest.
    load: Vec<Found>,
    tally: Mutex<Tally>,
}

/// One thread.
struct Loader<'a> {
    worker: Worker<'a>,
    part: Part,
    shared: &'a Shared,
}

impl Loader<'_> {
    /// Loads the objects of this part.
    fn load(&self) -> io::Result<Tally> {
        let found = &self.shared.load;
        let mut tally = Tally::default();
        let began = self.shared.began;
        let mut reader = self.shared.persistence.reader()?;
        let budget = budget();
        let mut said = began;
        for (index, object) in found.iter().enumerate() {
            if index % LOOK_AFTER == 0 {
                if began.elapsed() >= budget {
                    for late in &found[index..] {
                        if reader.digest(late.slot).is_ok_and(|digest| self.part.has(&digest)) {
                            self.shared.persistence.remove(late.slot);
                            tally.late += 1;
                        }
                    }
                    break;
                }
                if self.part.number == 0 && said.elapsed() >= PROGRESS {
                    said = Instant::now();
                    let text = format!("persist: {index} of {} objects are loaded", found.len());
                    objmapper_engine::log::line(&self.shared.ident, &text);
                }
            }
            match reader.digest(object.slot) {
                Ok(digest) if self.part.has(&digest) => {}
                Ok(_) => continue,
                Err(_) => {
                    if self.part.number == 0 {
                        self.shared.persistence.remove(object.slot);
                        tally.damaged += 1;
                    }
                    continue;
                }
            }
            let entry = match reader.entry(object.slot) {
                Ok(entry) => entry,
                Err(_) => {
                    self.shared.persistence.remove(object.slot);
                    tally.damaged += 1;
                    continue;
                }
            };
            let outcome = if entry.times.end() <= self.shared.now {
                Err(Dropped::Expired)
            } else if entry.times.origin > self.shared.now + CLOCK_SKEW || !entry.times.end().is_finite() {
                Err(Dropped::No(NotRestored::Damaged))
            } else {
                match reader.record(&entry).ok().and_then(Record::parse) {
                    Some(record) => self.restore(object.slot, &entry, &record).map_err(Dropped::No),
                    None => Err(Dropped::No(NotRestored::Damaged)),
                }
            };
            match outcome {
                Ok(()) => {
                    tally.loaded += 1;
                    tally.bytes += object.bytes;
                    continue;
                }
                Err(Dropped::Expired) => tally.expired += 1,
                Err(Dropped::No(NotRestored::Size)) => tally.size += 1,
                Err(Dropped::No(NotRestored::Lost)) => tally.lost += 1,
                Err(Dropped::No(NotRestored::Damaged)) => tally.damaged += 1,
            }
            self.shared.persistence.remove(object.slot);
        }
        Ok(tally)
    }

    fn restore(&self, slot: u32, entry: &Entry, record: &Record<'_>) -> Result<(), NotRestored> {
        let attributes = attributes_of(entry.tag).ok_or(NotRestored::Damaged)?;
        let ban = self.shared.bans.at(entry.ban).ok_or(NotRestored::Damaged)?;
        let body = self.shared.persistence.restore(self.shared.engine, entry, record)?;
        let object = Object::restored(self.shared.engine, record, body).ok_or(NotRestored::Size)?;
        if object.length() != object.body.len() {
            object.free(self.shared.engine);
            return Err(NotRestored::Damaged);
        }
        object.kept.enter(slot, &entry.times);
        let Times { origin, ttl, grace, keep } = entry.times;
        let lifetime = Lifetime { origin, ttl, grace, keep };
        let private = Box::into_raw(Box::new(object)).cast();
        let reloaded = Reloaded {
            digest: &entry.digest,
            lifetime,
            attributes,
            ban,
            storage: std::ptr::with_exposed_provenance(self.shared.stv),
            private,
        };
        // SAFETY: `load` is called from `open`, which waits for this thread; the object is one of ours, and the ban in varnishd's
        // list, where it is held back.
        unsafe { insert(self.worker, &reloaded) };
        Ok(())
    }
}

/// Why an object is not loaded.
enum Dropped {
    Expired,
    No(NotRestored),
}

/// True once an object of an earlier process has come into the cache.
static HAS_RELOADED: AtomicBool = AtomicBool::new(false);

/// Returns true if a storage began with objects of an earlier process.
pub(crate) fn has_reloaded() -> bool {
    HAS_RELOADED.load(Relaxed)
}

fn report(ident: &str, engine: &Engine, tally: &Tally, took: Duration) {
    let c = engine.counters;
    HAS_RELOADED.fetch_or(tally.loaded > 0, Relaxed);
    counters::add(&c.c_reloaded, tally.loaded);
    counters::add(&c.b_reloaded, tally.bytes);
    counters::add(&c.c_reload_expired, tally.expired);
    counters::add(&c.c_reload_damaged, tally.damaged);
    counters::add(&c.c_reload_lost, tally.lost);
    counters::add(&c.c_reload_size, tally.size);
    counters::add(&c.c_reload_late, tally.late);
    c.g_reload_ms.store(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), Relaxed);
    let Tally { loaded, bytes, expired, damaged, lost, size, late } = tally;
    if loaded + expired + damaged + lost + size + late == 0 {
        return;
    }
    objmapper_engine::log::line(
        ident,
        &format!(
            "persist: {loaded} objects, {bytes} bytes, are loaded in {:.1} s; dropped: {expired} expired, {size} above the size, \
             {lost} without their body, {damaged} damaged, {late} late",
            took.as_secs_f64()
        ),
    );
}
