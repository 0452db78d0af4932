//! The journal of a storage, its thread, and its counters.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use objmapper_journal::{
    Config, Damaged, Entry, Found, Journal, NotKept, Opened, Reader, RecordPlace, StoredBody, Times,
};
use objmapper_server::store::{self, Store};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::URI_PREFIX;
use super::body::{Form, NotRestored};
use super::record::{Record, RecordParts};
use crate::body::Body;
use crate::counters::{self, Counters};
use crate::engine::Engine;
use crate::log::{Repeating, line};
use crate::options::Options;

/// A process that has lived so long after it loaded the objects has not ended because of them.
const SURVIVED: Duration = Duration::from_secs(2);
/// Without work, figures are brought up to date this often.
const IDLE: Duration = Duration::from_secs(1);

/// A journal that was opened, before its objects are loaded.
pub struct Loading {
    ident: String,
    counters: &'static Counters,
    config: Config,
    opened: Opened,
}

/// Opens what the storage `ident` has kept. `product` says what wrote it: records of another one are discarded.
///
/// # Errors
/// The directory cannot be used at all.
pub fn open(
    ident: &str,
    options: &Options,
    product: String,
    counters: &'static Counters,
) -> io::Result<Option<Loading>> {
    let Some(dir) = options.dir.clone().filter(|_| options.persist) else { return Ok(None) };
    let damaged = match options.damaged {
        store::Damaged::Keep => Damaged::Keep,
        store::Damaged::Delete => Damaged::Delete,
    };
    let config = Config { dir, product, size: options.size, damaged };
    let opened = objmapper_journal::open(&config)?;
    let loading = Loading { ident: ident.to_owned(), counters, config, opened };
    loading.report_discarded();
    counters::add(&counters.c_reload_damaged, loading.opened.damaged);
    Ok(Some(loading))
}

/// Removes what an earlier process has kept in the storage's `dir`, because this process does not write there what is purged and
/// banned from now on.
pub fn forget(ident: &str, options: &Options) {
    let Some(dir) = &options.dir else { return };
    match objmapper_journal::forget(dir) {
        Ok(false) => {}
        Ok(true) => line(ident, &format!("what was kept in {} is removed: nothing is kept now", dir.display())),
        Err(error) => line(
            ident,
            &format!(
                "what was kept in {} cannot be removed: {error}; remove objmapper-persist there before varnishd is started \
                 with persist=on again, or it may find what was purged meanwhile",
                dir.display()
            ),
        ),
    }
}

impl Loading {
    fn report_discarded(&self) {
        if let Some(discarded) = &self.opened.discarded {
            self.counters.c_reload_discarded.store(1, Relaxed);
            line(&self.ident, &discarded.0);
        }
    }

    /// All objects that were found, from the oldest to the newest.
    pub fn found(&self) -> &[Found] {
        &self.opened.found
    }

    /// All bans, in the order in which they came.
    pub fn bans(&self) -> impl Iterator<Item = &[u8]> {
        self.opened.bans.iter().map(Vec::as_slice)
    }

    /// Discards all that was found, because of `why`.
    ///
    /// # Errors
    /// The directory cannot be used any more.
    pub fn discard(self, why: &str) -> io::Result<Loading> {
        let Loading { ident, counters, config, opened } = self;
        let opened = opened.discard(&config, why)?;
        let loading = Loading { ident, counters, config, opened };
        loading.report_discarded();
        Ok(loading)
    }

    /// Begins to keep objects. Those that were found are returned, to be loaded or removed before
    /// [`Persistence::finish_loading`].
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(self) -> io::Result<(Persistence, Vec<Found>)> {
        let Loading { ident, counters, opened, .. } = self;
        let shared = Arc::new(Shared {
            journal: opened.journal,
            counters,
            errors: Repeating::new(&ident),
            loaded: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new().name("objm-persist".to_owned()).spawn(move || shared.run())?
        };
        counters.g_persisting.store(1, Relaxed);
        Ok((Persistence { ident, shared, thread: Mutex::new(Some(thread)) }, opened.found))
    }
}

/// What the thread shares with the rest.
struct Shared {
    journal: Journal,
    counters: &'static Counters,
    errors: Repeating,
    /// When the objects were loaded.
    loaded: Mutex<Option<Instant>>,
    stop: AtomicBool,
}

impl Shared {
    fn run(&self) {
        while !self.stop.load(Acquire) {
            self.journal.wait(IDLE);
            self.flush();
            match self.journal.compact() {
                Ok(_) => {}
                Err(error) => self.failed("a segment could not be read", &error),
            }
            self.show();
            let survived = {
                let mut loaded = self.loaded.lock();
                loaded.take_if(|at| at.elapsed() >= SURVIVED).is_some()
            };
            if survived && let Err(error) = self.journal.survived() {
                self.failed("the header could not be written", &error);
            }
        }
    }

    fn flush(&self) {
        let flushed = self.journal.flush();
        let c = self.counters;
        counters::add(&c.c_persisted, flushed.written);
        counters::add(&c.b_persisted, flushed.bytes);
        counters::add(&c.c_persist_backlog, flushed.lost);
        if let Some(error) = flushed.error {
            self.failed("objects could not be written for the next start", &error);
        }
    }

    fn show(&self) {
        let stats = self.journal.stats();
        let c = self.counters;
        c.g_persisted.store(stats.objects, Relaxed);
        c.g_persist_bytes.store(stats.bytes, Relaxed);
        c.g_persisting.store(u64::from(self.journal.takes_objects()), Relaxed);
    }

    fn failed(&self, what: &str, error: &io::Error) {
        counters::add(&self.counters.c_err_persist, 1);
        self.errors.line(|| format!("persist: {what}: {error} (directory {})", self.journal.path().display()));
    }

    /// Something that must not come back could not be written.
    fn broken(&self, what: &str, error: &io::Error) {
        self.failed(&format!("{what}: nothing is kept for the next start"), error);
        self.counters.g_persisting.store(0, Relaxed);
    }
}

/// Keeps a storage's objects for the next start.
pub struct Persistence {
    ident: String,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// An object that is to be kept.
pub struct NewObject<'a> {
    /// Its key in varnishd's cache.
    pub digest: [u8; 32],
    /// Its times.
    pub times: Times,
    /// The time of the newest ban that it was tested by.
    pub ban: f64,
    /// What else the next start needs to know; the caller's.
    pub tag: u32,
    /// Its attributes. Where its body is is found here, whatever `uri` and `body` say.
    pub parts: RecordParts<'a>,
    /// Bytes in heap beside the body.
    pub head: usize,
}

impl Persistence {
    /// Keeps an object, and returns its slot. `None`: it is not kept, which is counted.
    ///
    /// # Safety
    /// As for `Body::form`: the body must be settled, and not be slimmed during the call.
    pub unsafe fn keep(&self, engine: &Engine, body: &Body, object: NewObject<'_>) -> Option<u32> {
        let NewObject { digest, times, ban, tag, parts, head } = object;
        let RecordParts { fixed, vary, headers, esidata, .. } = parts;
        let c = self.shared.counters;
        let mut heap = head;
        // SAFETY: by contract.
        let form = unsafe { body.form() };
        let (stored, uri, pieces) = match form {
            Form::Heap(pieces) => {
                heap += pieces.iter().map(|piece| piece.len()).sum::<usize>();
                (None, None, pieces)
            }
            Form::Stored(stored) => {
                let Some(uri) = engine.backing().uri(&stored) else {
                    counters::add(&c.c_persist_mixed, 1);
                    return None;
                };
                let kept = StoredBody { object: stored.object, body_len: stored.body_len, file_len: stored.file_len };
                (Some(kept), Some(uri), SmallVec::new())
            }
            Form::Mixed => {
                counters::add(&c.c_persist_mixed, 1);
                return None;
            }
        };
        let uri = uri.as_deref().unwrap_or_default();
        // Collected anew: the type is invariant.
        let body = pieces.iter().copied().collect();
        let parts = RecordParts { fixed, vary, headers, esidata, uri, body };
        let entry = Entry {
            sequence: 0,
            digest,
            times,
            ban,
            record: RecordPlace::default(),
            body: stored,
            heap: u32::try_from(heap).unwrap_or(u32::MAX),
            tag,
        };
        match parts.with_pieces(|pieces| self.shared.journal.append(entry, pieces)) {
            Ok(slot) => Some(slot),
            Err(why) => {
                let counter = match why {
                    NotKept::TooLarge => &c.c_persist_large,
                    NotKept::Backlog | NotKept::Paused | NotKept::Closed => &c.c_persist_backlog,
                };
                counters::add(counter, 1);
                None
            }
        }
    }

    /// Removes an object: no later start finds it.
    pub fn remove(&self, slot: u32) {
        if let Err(error) = self.shared.journal.remove(slot) {
            self.shared.broken("the removal of an object could not be written", &error);
        }
    }

    /// Sets an object's times: the next start finds it with these.
    pub fn set_times(&self, slot: u32, times: Times) {
        if let Err(error) = self.shared.journal.set_times(slot, times) {
            self.shared.broken("the times of an object could not be written", &error);
        }
    }

    /// Keeps nothing from now on, because of `error`: the next start finds nothing.
    pub fn give_up(&self, why: &str, error: &io::Error) {
        let error = self.shared.journal.invalidate(io::Error::new(error.kind(), error.to_string()));
        self.shared.broken(why, &error);
    }

    /// Writes a ban down. Returns true if the log should be replaced ([`Persistence::replace_bans`]).
    pub fn ban(&self, spec: &[u8]) -> bool {
        match self.shared.journal.append_ban(spec) {
            Ok(replace) => replace,
            Err(error) => {
                self.shared.broken("a ban could not be written", &error);
                false
            }
        }
    }

    /// Replaces all bans by these.
    pub fn replace_bans<'a>(&self, specs: impl IntoIterator<Item = &'a [u8]>) {
        if let Err(error) = self.shared.journal.replace_bans(specs) {
            self.shared.failed("the log of bans could not be made shorter", &error);
        }
    }

    /// Reads what was found.
    ///
    /// # Errors
    /// There are no descriptors.
    pub fn reader(&self) -> io::Result<Reader<'_>> {
        self.shared.journal.reader()
    }

    /// Makes the body of a record that was read.
    ///
    /// # Errors
    /// It does not come back.
    pub fn restore(&self, engine: &Engine, entry: &Entry, record: &Record<'_>) -> Result<Body, NotRestored> {
        match &entry.body {
            Some(kept) => Body::restored_in_store(engine, record.uri, kept),
            None => Body::restored_in_heap(engine, record.body),
        }
    }

    /// Ends loading: bodies without an object are deleted in the store.
    pub fn finish_loading(&self, store: &Store) {
        if let Err(error) = store.discard_unpinned(URI_PREFIX.as_bytes()) {
            self.shared.failed("bodies without an object could not be deleted", &io::Error::other(error));
        }
        if let Err(error) = self.shared.journal.finish_loading() {
            self.shared.failed("the header could not be written, so that the next start finds nothing", &error);
        }
        *self.shared.loaded.lock() = Some(Instant::now());
        self.shared.show();
    }

    /// Writes all to disk, and ends the thread.
    pub fn close(&self, store: &Store) {
        self.shared.stop.store(true, Release);
        self.shared.journal.notify();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        // Bodies first: an entry whose body is not there is a miss, and nothing worse.
        store.close_cleanly();
        if let Err(error) = self.shared.journal.close() {
            line(&self.ident, &format!("persist: what is kept may not survive a crash of the system: {error}"));
        }
    }
}
