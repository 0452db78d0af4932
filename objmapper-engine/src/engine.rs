//! One storage: its options, its limit, its counters, its store, and its caches of descriptors and mappings.
//!
//! All of it may be called by any thread; the locks are those of the parts, and none is held during a request to the
//! store or while a file is opened or mapped. Failures are counted and, bounded in rate, logged here. The files that
//! use the store decide what becomes of the body.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use objmapper_client::{Cache, Outage};

use crate::account::Account;
use crate::backing::{Backing, DraftFile, DraftSize, Failure, Lengths, Name, StoredBody};
use crate::counters::{self, Counters};
use crate::descriptors::Share;
use crate::fallback::{Charge, FallbackHeap};
use crate::health::Health;
use crate::heap::HeapChunk;
use crate::log::Repeating;
use crate::maintenance::{LossScope, Maintenance};
use crate::maps::BodyMap;
use crate::options::Options;
use crate::record::NewRecord;
use crate::registry::Registry;
use crate::span::{NoSpan, ran_out};
use crate::unreadable::{self, ReadLog};

/// One storage.
pub struct Engine {
    /// The operator's options.
    pub options: Options,
    /// The storage's limit and the bytes in use.
    pub account: Account,
    /// `OBJM.<ident>.*`.
    pub counters: &'static Counters,
    backing: Backing,
    fds: Cache<u64, File>,
    _descriptors: Share,
    maps: Cache<u64, BodyMap>,
    registry: Registry,
    /// The tasks of the background thread.
    pub maintenance: Arc<Maintenance>,
    uri_base: String,
    next_key: AtomicU64,
    /// Bounds the heap of bodies that objmapper cannot take.
    pub(crate) fallback: FallbackHeap,
    health: Health,
    errors: Repeating,
    transits: Repeating,
    read_log: ReadLog,
}

impl Engine {
    /// Makes the storage that varnishd names `ident`. The URIs of its bodies begin with `uri_base`, which is unique to
    /// this process.
    pub fn new(
        ident: &str,
        options: Options,
        account: Account,
        counters: &'static Counters,
        backing: Backing,
        maintenance: Arc<Maintenance>,
        uri_base: String,
    ) -> Engine {
        counters.g_happy.store(u64::from(backing.answers()), Relaxed);
        let descriptors = Share::take(ident, options.fds);
        Engine {
            fds: Cache::new(descriptors.count()),
            _descriptors: descriptors,
            maps: Cache::new(options.maps),
            registry: Registry::default(),
            maintenance,
            fallback: FallbackHeap::new(options.fallback_heap, options.size, counters),
            health: Health::new(ident),
            errors: Repeating::new(ident),
            transits: Repeating::new(ident),
            options,
            account,
            counters,
            backing,
            uri_base,
            next_key: AtomicU64::new(0),
            read_log: ReadLog::new(ident),
        }
    }

    /// Returns the store.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// `storage.<name>.happy`: returns true if the store answers, and took the last body.
    pub fn is_happy(&self) -> bool {
        !self.health.is_failing() && self.backing.answers()
    }

    /// Notes that the store did not take a body: a step (create, write, publish) failed.
    fn record_failure(&self, message: impl FnOnce() -> String) {
        if self.health.record_failure(message) {
            self.counters.g_happy.store(0, Relaxed);
        }
    }

    /// Notes that the store took all of a body.
    pub(crate) fn record_success(&self) {
        if self.health.record_success() {
            self.counters.g_happy.store(u64::from(self.is_happy()), Relaxed);
        }
    }

    /// Creates a draft. `None`: the store refused, and the body stays in heap, which is counted under its reason.
    pub(crate) fn create_draft(&self, size: DraftSize) -> Option<DraftFile> {
        match self.backing.create(size) {
            Ok(draft) => Some(draft),
            Err(failure) => {
                self.count_fallback(&failure);
                None
            }
        }
    }

    /// Sets a draft's reservation. A failure is not counted: see [`Engine::count_fallback`].
    pub(crate) fn reserve(&self, draft: &mut DraftFile, size: DraftSize) -> Result<(), Failure> {
        self.backing.reserve(draft, size)
    }

    /// Lowers the reservation of a complete body's draft. A failure is counted, and does not change where the body is.
    pub(crate) fn reserve_less(&self, draft: &mut DraftFile, length: u64) {
        if let Err(failure) = self.backing.reserve(draft, DraftSize { granted: length, expected: 0 }) {
            self.count_failure(&failure);
        }
    }

    /// Publishes a complete, closed draft under a URI of its own. A failure is counted.
    pub(crate) fn publish(&self, draft: &mut DraftFile, lengths: Lengths) -> Option<StoredBody> {
        match self.publish_own(draft, lengths) {
            Ok(stored) => Some(stored),
            Err(failure) => {
                self.count_failure(&failure);
                self.record_failure(|| format!("a body could not be published: {failure}"));
                None
            }
        }
    }

    fn publish_own(&self, draft: &mut DraftFile, lengths: Lengths) -> Result<StoredBody, Failure> {
        let key = self.new_key();
        let uri = format!("{}/{key:x}", self.uri_base);
        let name = if self.options.persist { Name::Kept(&uri) } else { Name::Own(&uri) };
        self.backing.publish(draft, name, lengths, key)
    }

    /// Tests whether the store takes bodies again, with one of the smallest size that goes there.
    fn probe(&self) -> Result<(), Failure> {
        const MAX_LEN: u64 = 1 << 20;
        let zeros = vec![0; self.options.threshold.clamp(4096, MAX_LEN) as usize];
        let len = zeros.len() as u64;
        let mut draft = self.backing.create(DraftSize { granted: len, expected: len })?;
        let written = draft.file().and_then(|file| file.write_all_at(&zeros, 0));
        written?;
        draft.close();
        let stored = self.publish_own(&mut draft, Lengths { body: len, file: len })?;
        self.backing.release(&stored);
        Ok(())
    }

    /// As [`Engine::publish`], as a record that other caches find.
    pub(crate) fn publish_record(
        &self,
        draft: &mut DraftFile,
        record: &NewRecord<'_>,
        lengths: Lengths,
    ) -> Result<StoredBody, Failure> {
        let name = Name::Record { uri: record.uri, expires: record.expires, fence: record.fence };
        let published = self.backing.publish(draft, name, lengths, self.new_key());
        match &published {
            Ok(_) => self.record_success(),
            Err(Failure::Conflict) => {}
            Err(failure) => self.count_failure(failure),
        }
        published
    }

    /// Returns a key that this process has not used before.
    pub(crate) fn new_key(&self) -> u64 {
        self.next_key.fetch_add(1, Relaxed)
    }

    pub(crate) fn count_failure(&self, failure: &Failure) {
        self.counters.outage(failure.kind());
    }

    /// Counts a body that stays in heap, or continues there, because of `failure`.
    pub(crate) fn count_fallback(&self, failure: &Failure) {
        self.count_failure(failure);
        self.counters.fallback(failure.kind());
        self.record_failure(|| format!("bodies stay in heap: {failure}"));
    }

    /// Drops the cached descriptors and mappings if `error` says that descriptors, mappings or memory ran out. Returns
    /// true then: the operation may succeed now.
    pub(crate) fn drop_caches(&self, error: &io::Error) -> bool {
        let out = ran_out(error);
        if out {
            self.fds.clear();
            self.maps.clear();
        }
        out
    }

    /// Counts and logs that an operation on a body's file failed.
    pub(crate) fn file_error(&self, what: &str, error: &io::Error) {
        self.counters.outage(Outage::from(error));
        self.drop_caches(error);
        self.errors.line(|| format!("{what}: {error}"));
    }

    /// Counts and logs that an operation on a draft's file failed: the body, or the rest of it, stays in heap.
    pub(crate) fn draft_error(&self, what: &str, error: &io::Error) {
        let kind = Outage::from(error);
        self.counters.outage(kind);
        self.counters.fallback(kind);
        self.drop_caches(error);
        self.record_failure(|| format!("bodies stay in heap: {what}: {error}"));
    }

    /// Logs that an operation on a record failed; bounded in rate.
    pub(crate) fn log_error(&self, message: &str) {
        self.errors.line(|| message.to_owned());
    }

    /// Counts and logs that a body is in transit from now on, because `fallback_heap` is used up.
    pub(crate) fn count_transit(&self) {
        counters::add(&self.counters.c_transit, 1);
        self.transits.line(|| {
            format!(
                "fallback_heap ({} bytes) is used up by bodies that objmapper cannot take: a body is delivered without \
                 being cached; see OBJM counters c_fallback_*, and make room in the store or raise fallback_heap",
                self.fallback.limit()
            )
        });
    }

    /// Counts that a body in transit could not be delivered.
    pub(crate) fn count_transit_failure(&self) {
        counters::add(&self.counters.c_transit_failed, 1);
    }

    /// Ends a draft's accounting of `outstanding` bytes.
    pub(crate) fn end_draft_accounting(&self, outstanding: u64) {
        self.account.dealloc(outstanding);
        counters::sub(&self.counters.g_body_bytes, outstanding);
        counters::sub(&self.counters.g_bodies, 1);
        counters::sub(&self.counters.g_writing, 1);
    }

    /// Counts a new piece of a body in heap.
    pub(crate) fn count_piece(&self, chunk: &HeapChunk) {
        counters::add(&self.counters.g_heap_pieces, 1);
        counters::add(&self.counters.g_heap_bytes, chunk.size() as u64);
    }

    /// Frees a piece of a body in heap.
    pub(crate) fn free_piece(&self, chunk: HeapChunk) {
        counters::sub(&self.counters.g_heap_pieces, 1);
        counters::sub(&self.counters.g_heap_bytes, chunk.size() as u64);
        let (charge, size) = (chunk.charge(), chunk.size() as u64);
        chunk.free(&self.account);
        self.fallback.give_back(charge, size);
    }

    /// Ends what [`Engine::take_over`] began: the draft keeps its bytes.
    pub(crate) fn hand_back(&self, chunk: HeapChunk) {
        let (charge, size) = (chunk.charge(), chunk.size() as u64);
        counters::sub(&self.counters.g_heap_pieces, 1);
        counters::sub(&self.counters.g_heap_bytes, size);
        chunk.hand_back(&self.account);
        self.fallback.give_back(charge, size);
    }

    /// Allocates heap for `size` bytes of a body that the store cannot take, which the account has granted to its
    /// draft. `None`: `fallback_heap`, or memory, is used up.
    pub(crate) fn take_over(&self, size: u64) -> Option<HeapChunk> {
        let len = usize::try_from(size).ok()?;
        if !self.fallback.take(Charge::Cached, size) {
            return None;
        }
        let Some(chunk) = HeapChunk::take_over(&self.account, len) else {
            self.fallback.give_back(Charge::Cached, size);
            return None;
        };
        let chunk = chunk.charged(Charge::Cached);
        self.count_piece(&chunk);
        Some(chunk)
    }

    /// Caches the descriptor of a body that was just published, for its next reader.
    pub(crate) fn cache_descriptor(&self, stored: &StoredBody, file: Arc<File>) {
        self.fds.insert(stored.key, file);
        self.show_caches();
    }

    /// Enters `owner`, a cached object, as the owner of a published body: from now on [`Engine::sweep`] may name it.
    /// Returns false if the body is lost already.
    pub(crate) fn register(&self, stored: &StoredBody, owner: usize) -> bool {
        let Some(loss_domain) = stored.loss_domain() else { return true };
        self.registry.enter(stored.key, loss_domain, owner);
        // The sweep for a loss may have ended before the entry.
        let lost = self.maintenance.is_lost(loss_domain);
        if lost {
            self.count_loss(Some(stored));
        }
        !lost
    }

    /// Counts the loss of a body, whose object leaves the cache. Does nothing if a sweep has named its owner before.
    pub(crate) fn count_loss(&self, stored: Option<&StoredBody>) {
        let registered = stored.filter(|stored| stored.loss_domain().is_some());
        if registered.is_none_or(|stored| self.registry.remove(stored.key)) {
            counters::add(&self.counters.c_lost, 1);
        }
    }

    /// Releases a published body. Afterwards, [`Engine::sweep`] does not name its owner.
    pub(crate) fn forget(&self, stored: &StoredBody) {
        if stored.loss_domain().is_some() {
            self.registry.remove(stored.key);
        }
        self.close(stored);
        self.backing.release(stored);
        self.account.dealloc(stored.file_len);
        counters::sub(&self.counters.g_body_bytes, stored.file_len);
        counters::sub(&self.counters.g_bodies, 1);
    }

    /// Takes a body's descriptor and mapping out of the caches.
    pub(crate) fn close(&self, stored: &StoredBody) {
        self.maps.invalidate(&stored.key);
        self.fds.invalidate(&stored.key);
        self.show_caches();
    }

    /// Names the owners of all bodies that a scope calls lost. While `kill` runs, the owner is not freed.
    pub fn sweep(&self, scope: LossScope, mut kill: impl FnMut(usize)) {
        self.registry.sweep(scope, |owner| {
            counters::add(&self.counters.c_lost, 1);
            kill(owner);
        });
    }

    /// Releases what unanswered calls may have left in the store, and tests whether a store that did not take bodies
    /// takes them again. May wait for the store until the deadline of a call (`timeout`).
    pub fn tidy(&self) {
        self.backing.tidy();
        let (_, reconnects) = self.backing.connection_counts();
        if reconnects != self.counters.c_reconnects.load(Relaxed) {
            self.health.probe_soon();
        }
        if self.backing.answers() && self.health.is_probe_due(Instant::now()) {
            match self.probe() {
                Ok(()) => self.record_success(),
                Err(failure) => self.count_failure(&failure),
            }
        }
    }

    /// Updates the gauges that change without a call of the engine: connections and caches.
    pub fn refresh(&self) {
        let c = self.counters;
        let happy = self.is_happy();
        c.g_happy.store(u64::from(happy), Relaxed);
        let (lost, made) = self.backing.connection_counts();
        c.c_disconnects.store(lost, Relaxed);
        c.c_reconnects.store(made, Relaxed);
        // Two threads that stored a gauge at once may have left the older number.
        self.show_caches();
    }

    fn show_caches(&self) {
        let c = self.counters;
        c.g_fds.store(self.fds.len() as u64, Relaxed);
        c.c_fds_closed.store(self.fds.evictions(), Relaxed);
        c.g_maps.store(self.maps.len() as u64, Relaxed);
        c.c_maps_dropped.store(self.maps.evictions(), Relaxed);
    }

    /// Returns a published body's file, if it is in the cache.
    pub(crate) fn opened(&self, key: u64) -> Option<Arc<File>> {
        self.fds.get(&key)
    }

    /// Returns a published body's mapping, if it is in the cache.
    pub(crate) fn mapped(&self, key: u64) -> Option<Arc<BodyMap>> {
        self.maps.get(&key)
    }

    /// Returns a published body's file; opens it if it is not in the cache.
    pub(crate) fn open(&self, stored: &StoredBody) -> Result<Arc<File>, NoSpan> {
        let opened = self.fds.get_or_open(stored.key, || {
            let file =
                stored.open().or_else(|error| if self.drop_caches(&error) { stored.open() } else { Err(error) })?;
            check_length(&file, stored)?;
            counters::add(&self.counters.c_opened, 1);
            Ok(file)
        });
        self.show_caches();
        opened.map_err(NoSpan::from_error)
    }

    /// Returns a published body's mapping, for the kernel to read; maps it if it is not in the cache. `None`: it cannot
    /// be mapped, but may be read.
    pub(crate) fn map(&self, stored: &StoredBody) -> Result<Option<Arc<BodyMap>>, NoSpan> {
        let file = self.open(stored)?;
        let mapped = self.maps.get_or_open(stored.key, || {
            let map = BodyMap::new(&file, stored)?;
            counters::add(&self.counters.c_mapped, 1);
            Ok::<_, io::Error>(map)
        });
        self.show_caches();
        match mapped {
            Ok(map) => Ok(Some(map)),
            Err(error) => {
                counters::add(&self.counters.c_err_io, 1);
                self.drop_caches(&error);
                Ok(None)
            }
        }
    }

    /// Counts and logs that a body's file could not be read. A record is not adopted again.
    pub(crate) fn read_failed(&self, stored: Option<&StoredBody>, error: &io::Error) {
        counters::add(&self.counters.c_err_io, 1);
        self.read_log.lost(stored, error);
        if let Some(stored) = stored.filter(|stored| stored.is_shared())
            && let Some(instance) = self.backing.instance()
        {
            unreadable::enter(instance, stored.object());
        }
    }

    /// Counts and logs that a reader got no body for want of descriptors or memory, and drops the caches.
    pub fn not_now(&self, error: &io::Error) {
        counters::add(&self.counters.c_err_io, 1);
        self.drop_caches(error);
        self.read_log.shortage(error);
    }
}

/// Returns an error if the file's length is not the one that it was published with.
fn check_length(file: &File, stored: &StoredBody) -> io::Result<()> {
    let size = file.metadata()?.len();
    if size == stored.file_len {
        return Ok(());
    }
    let text = format!("the body's file has {size} bytes, not {}", stored.file_len);
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
}
