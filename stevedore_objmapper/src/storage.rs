//! One `-s`: configured by the child as the manager's user, opened after it has given up its privileges.
//!
//! `init` parses the options and, while it may, mounts the memory for bodies. `open` opens the store and makes the engine; it starts the
//! background thread, which `close` stops. Both run in one thread before there are workers, and what they make is only read later: what
//! may change is behind a mutex.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use objmapper_engine::account::{Account, SmaCounters, UNLIMITED};
use objmapper_engine::backing::{Backing, Embedded, Remote};
use objmapper_engine::counters::Counters;
use objmapper_engine::engine::Engine;
use objmapper_engine::maintenance::Maintenance;
use objmapper_engine::options::Options;
use objmapper_engine::persist::{self, Loading, Persistence};
use objmapper_server::net::InProcess;
use objmapper_server::store::{
    DiskTier, MemoryMount, MemoryTier, MountAccess, MountKind, ShmDirectory, Store, StoreConfig, TierKind,
};
use parking_lot::Mutex;
use varnishd::boundary::infallible;
use varnishd::counters::{MallocCounters, Segment, is_first_child, malloc_counters};
use varnishd::lru::Lru;
use varnishd::raw::RawStorage;
use varnishd::storage::{self, arguments, branch, parse_bytes};
use varnishd::worker::BackgroundThread;

use crate::BOUNDARY;
use crate::maintenance;
use crate::reload;

/// For tests: options that every storage gets which does not set them itself.
const OPTIONS: &str = "OBJMAPPER_OPTIONS";

/// The number of drafts at a time; they are limited by RLIMIT_NOFILE, too.
const MAX_DRAFTS: usize = 1 << 20;

/// varnishd's storage for objects that are not cached.
const TRANSIENT: &CStr = c"Transient";

/// The time within which the manager counts the child that it has forked.
const BEHIND_FORK: Duration = Duration::from_secs(1);

const STORAGE_MAGIC: u32 = 0x6f62_7374;

/// The first storage that was opened.
static FIRST: AtomicPtr<RawStorage> = AtomicPtr::new(std::ptr::null_mut());

/// Returns that storage, or null.
pub(crate) fn first() -> *const RawStorage {
    FIRST.load(Acquire)
}

/// What varnishd keeps for us with a storage: leaked, as varnishd keeps its storages until the child ends.
struct Storage {
    magic: u32,
    options: Options,
    /// Made while the process may still mount; else the reasons why it may not.
    mount: Mutex<Option<Result<MemoryMount, Vec<String>>>>,
    /// The directory of bodies if it may not. Removed by `close`: nothing of a storage is dropped when the process ends.
    directory: Mutex<Option<ShmDirectory>>,
    engine: OnceLock<Engine>,
    background: Mutex<Option<BackgroundThread>>,
    /// The store in this process, for another library in it.
    store: OnceLock<Store>,
    /// Serves it, from the first request for a connection on.
    server: Mutex<Option<InProcess>>,
    /// Keeps objects for the next start.
    persistence: OnceLock<Persistence>,
}

// The engine counts in the memory of varnishd's own counters.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SmaCounters>() == size_of::<MallocCounters>());
    assert!(offset_of!(SmaCounters, c_req) == offset_of!(MallocCounters, c_req));
    assert!(offset_of!(SmaCounters, c_fail) == offset_of!(MallocCounters, c_fail));
    assert!(offset_of!(SmaCounters, c_bytes) == offset_of!(MallocCounters, c_bytes));
    assert!(offset_of!(SmaCounters, c_freed) == offset_of!(MallocCounters, c_freed));
    assert!(offset_of!(SmaCounters, g_alloc) == offset_of!(MallocCounters, g_alloc));
    assert!(offset_of!(SmaCounters, g_bytes) == offset_of!(MallocCounters, g_bytes));
    assert!(offset_of!(SmaCounters, g_space) == offset_of!(MallocCounters, g_space));
};

/// Writes what is wrong and ends the child, as varnishd does for its own arguments (Varnish: `common/heritage.h`).
pub(crate) fn refuse(message: &str) -> ! {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "Error: {message}\n(-? gives usage)");
    std::process::exit(2)
}

/// Returns ours of a storage of varnishd's.
///
/// # Safety
/// `storage` must be of our engine, after `init`.
unsafe fn storage_of(storage: storage::Storage<'_>) -> &'static Storage {
    // SAFETY: `init` leaked it there.
    match unsafe { storage.private().cast::<Storage>().as_ref() } {
        Some(storage) if storage.magic == STORAGE_MAGIC => storage,
        _ => panic!("the stevedore is not ours"),
    }
}

/// Returns the engine of a storage of varnishd's.
///
/// # Safety
/// `storage` must be of our engine, after `open`.
#[inline]
pub(crate) unsafe fn engine_of(storage: storage::Storage<'_>) -> &'static Engine {
    // SAFETY: by contract.
    match unsafe { storage_of(storage) }.engine.get() {
        Some(engine) => engine,
        None => panic!("the storage is not open"),
    }
}

/// Configures a storage by the arguments of its `-s`, as the manager's user.
pub(crate) unsafe extern "C" fn init(stv: *mut RawStorage, ac: c_int, av: *const *mut c_char) {
    infallible("init", || {
        // SAFETY: varnishd's own arguments, of which it keeps the strings.
        let (name, args) = unsafe { (storage::Storage::new(stv).name(), arguments(ac, av)) };
        let prefix = format!("(-s{})", name.to_string_lossy());
        let mut texts = Vec::new();
        for arg in &args {
            match arg.to_str() {
                Ok(text) => texts.push(text),
                Err(_) => refuse(&format!("{prefix} argument \"{}\" is not UTF-8", arg.to_string_lossy())),
            }
        }
        let extra = std::env::var(OPTIONS).unwrap_or_default();
        let sets = |key: &str| texts.iter().any(|text| text.split_once('=').is_some_and(|(k, _)| k == key));
        let extra: Vec<&str> =
            extra.split(',').filter(|text| text.split_once('=').is_some_and(|(key, _)| !sets(key))).collect();
        if texts.is_empty() && !extra.is_empty() {
            texts.push("");
        }
        let options = match Options::parse(texts.iter().copied().chain(extra.iter().copied()), parse_bytes) {
            Ok(options) => options,
            Err(error) => refuse(&format!("{prefix} {error}")),
        };
        // SAFETY: as above; varnishd has set the name.
        if options.persist && unsafe { storage::Storage::new(stv) }.ident() == TRANSIENT {
            refuse(&format!("{prefix} persist \"on\": what is in Transient is never kept, leave it out"));
        }
        let in_memory = options.socket.is_none() && options.dir.is_none();
        let mount = in_memory.then(|| MemoryMount::detached(store_limit(&options), MountAccess::AnyUser));
        let storage = Storage {
            magic: STORAGE_MAGIC,
            options,
            mount: Mutex::new(mount),
            directory: Mutex::new(None),
            engine: OnceLock::new(),
            background: Mutex::new(None),
            store: OnceLock::new(),
            server: Mutex::new(None),
            persistence: OnceLock::new(),
        };
        // SAFETY: called to initialise this storage.
        unsafe { storage::set_private(stv, Box::into_raw(Box::new(storage)).cast::<c_void>()) };
    });
}

/// The limit of the embedded store, which counts whole pages where the account counts bytes: with a body of just over
/// the threshold in every page but its last, no body is refused that the account allows.
fn store_limit(options: &Options) -> u64 {
    if options.size == UNLIMITED {
        return UNLIMITED;
    }
    let smallest = options.threshold.max(4096);
    options.size.saturating_add(options.size / smallest * 4096).saturating_add(16 << 20).min(UNLIMITED)
}

/// Opens a storage, in the CLI thread, before any worker runs.
pub(crate) unsafe extern "C" fn open(stv: *mut RawStorage) {
    infallible("open", || {
        // SAFETY: varnishd's own storage, of ours and initialised.
        let (ident, storage) = unsafe {
            let own = storage::Storage::new(stv);
            (own.ident(), storage_of(own))
        };
        let ident_text = ident.to_string_lossy().into_owned();
        // SAFETY: of the same layout (checked above), and never freed.
        let sma: &'static SmaCounters = unsafe { &*std::ptr::from_ref(malloc_counters(ident)).cast::<SmaCounters>() };
        let counters: &'static Segment<Counters> = Box::leak(Box::new(Segment::new(c"OBJM", ident)));
        let maintenance = Arc::new(Maintenance::default());
        let backing = backing(storage, &ident_text, &maintenance).unwrap_or_else(|problem| match problem {
            Problem::Mistake(message) if is_first_child(BEHIND_FORK) => {
                refuse(&format!("(-sobjmapper) {ident_text}: {message}"))
            }
            // A full disk, or something that has changed since an earlier child could be started: a cache does not keep
            // varnishd from serving.
            Problem::Mistake(message) | Problem::NoSpace(message) => {
                let all = "all bodies stay in heap until varnishd starts its child again";
                objmapper_engine::log::line(&ident_text, &format!("{all}: {message}"));
                Backing::Absent(message)
            }
        });
        let mut options = storage.options.clone();
        let loading =
            if matches!(backing, Backing::Embedded(_)) { open_kept(&ident_text, &options, counters) } else { None };
        options.persist = loading.is_some();
        if !options.persist {
            persist::forget(&ident_text, &options);
            if let Some(store) = storage.store.get() {
                let _ = store.discard_unpinned(persist::URI_PREFIX.as_bytes());
            }
        }
        let nonce = RandomState::new().build_hasher().finish();
        let uri_base = if options.persist {
            format!("{}{nonce:016x}", persist::URI_PREFIX)
        } else {
            format!("{}/{ident_text}/{nonce:016x}", options.prefix)
        };
        let account = Account::new(options.size, sma);
        let engine = Engine::new(&ident_text, options, account, counters, backing, maintenance, uri_base);
        let engine = storage.engine.get_or_init(|| engine);
        let lru = Lru::alloc();
        // SAFETY: called to open this storage.
        unsafe { storage::set_lru(stv, lru) };
        if let (Some(loading), Some(store)) = (loading, storage.store.get()) {
            // SAFETY: called to open this storage, whose engine and list of objects are there.
            let started = unsafe { reload::load(stv, &ident_text, engine, store, loading, &storage.persistence) };
            if let Err(error) = started {
                objmapper_engine::log::line(&ident_text, &format!("persist: nothing is kept: {error}"));
            }
        }
        *storage.background.lock() = Some(maintenance::start(engine, lru));
        let _ = FIRST.compare_exchange(std::ptr::null_mut(), stv, Release, Acquire);
    });
}

/// Opens what was kept of a storage. A directory that cannot be used does not keep varnishd from serving.
fn open_kept(ident: &str, options: &Options, counters: &'static Counters) -> Option<Loading> {
    // Records and bans are the same in all releases of a branch.
    persist::open(ident, options, branch(), counters).unwrap_or_else(|error| {
        let dir = options.dir.as_deref().unwrap_or(Path::new("")).display();
        objmapper_engine::log::line(
            ident,
            &format!("persist: nothing is kept until varnishd starts its child again: dir \"{dir}\": {error}"),
        );
        None
    })
}

/// Returns what keeps the objects of a storage for the next start, if anything does.
///
/// # Safety
/// As for [`engine_of`].
pub(crate) unsafe fn persistence_of(storage: storage::Storage<'_>) -> Option<&'static Persistence> {
    // SAFETY: by contract.
    unsafe { storage_of(storage) }.persistence.get()
}

/// Why a storage has no store.
enum Problem {
    /// At the first start: the operator's.
    Mistake(String),
    /// The file system of `dir` has no room for an empty store.
    NoSpace(String),
}

fn backing(storage: &Storage, ident: &str, maintenance: &Arc<Maintenance>) -> Result<Backing, Problem> {
    let options = &storage.options;
    if let Some(socket) = &options.socket {
        let remote = Remote::new(ident, socket, options.timeout, maintenance.clone());
        return remote.map(Backing::Remote).map_err(|error| Problem::Mistake(error.to_string()));
    }
    // No other process uses this store: what an earlier process had in it alone is evictable at once.
    let mut config = StoreConfig {
        damaged: options.damaged,
        session_grace: Duration::ZERO,
        max_private: MAX_DRAFTS,
        ..StoreConfig::default()
    };
    let kind = match &options.dir {
        Some(dir) => {
            config.disk = Some(DiskTier { dir: dir.clone(), limit: store_limit(options) });
            TierKind::Disk
        }
        None => {
            let mut mount = match storage.mount.lock().take() {
                Some(Ok(mount)) => mount,
                // Made as the user that has to remove it.
                Some(Err(failures)) => MemoryMount::directory(store_limit(options), MountAccess::Owner, failures)
                    .map_err(|error| Problem::Mistake(format!("no memory for bodies: {error}")))?,
                None => return Err(Problem::Mistake("no memory for bodies".to_owned())),
            };
            *storage.directory.lock() = mount.take_directory();
            if mount.kind() == MountKind::SharedMemoryDirectory {
                objmapper_engine::log::line(
                    ident,
                    &format!(
                        "bodies are in /dev/shm, whose size limits them too, because: {}",
                        mount.failures().join("; ")
                    ),
                );
            }
            config.memory = Some(MemoryTier { limit: store_limit(options), mount: Some(mount) });
            TierKind::Memory
        }
    };
    let store = Store::open(config).map_err(|error| {
        let message = match &options.dir {
            Some(dir) => format!("dir \"{}\": {error}", dir.display()),
            None => error.to_string(),
        };
        if error.is_no_space() { Problem::NoSpace(message) } else { Problem::Mistake(message) }
    })?;
    let embedded = Embedded::new(&store, kind).map_err(|error| Problem::Mistake(error.to_string()))?;
    storage.store.get_or_init(|| store);
    Ok(Backing::Embedded(embedded))
}

/// Returns a connection to the store inside this process, for a client of another library in it; `None` if the store is an
/// objmapperd.
///
/// # Safety
/// As for [`engine_of`].
pub(crate) unsafe fn connect_in_process(stv: storage::Storage<'_>) -> Option<io::Result<OwnedFd>> {
    // SAFETY: by contract.
    let storage = unsafe { storage_of(stv) };
    let store = storage.store.get()?;
    let mut server = storage.server.lock();
    let started = match server.take() {
        Some(running) => Ok(running),
        None => InProcess::start(store.clone(), 1),
    };
    Some(started.and_then(|running| server.insert(running).connect()))
}

/// Closes a storage: called with 1, and then with 0, in the CLI thread.
pub(crate) unsafe extern "C" fn close(stv: *const RawStorage, pass: c_int) {
    infallible("close", || {
        if pass != 0 {
            return;
        }
        // SAFETY: varnishd's own storage, of ours.
        let (ident, storage) = unsafe {
            let own = storage::Storage::new(stv);
            (own.ident(), storage_of(own))
        };
        let thread = storage.background.lock().take();
        if let (Some(engine), Some(thread)) = (storage.engine.get(), thread) {
            engine.maintenance.stop();
            thread.join();
            if let (Some(persistence), Some(store)) = (storage.persistence.get(), storage.store.get()) {
                persistence.close(store);
            }
            // Without a connection, objmapperd gives our bodies up after its grace time.
            if let Err(why) = engine.backing().detach() {
                objmapper_engine::log::line(
                    &ident.to_string_lossy(),
                    &format!("bodies may stay in the store for a while: {why}"),
                );
            }
        }
        drop(storage.directory.lock().take());
    });
}

/// `storage.<name>.free_space`
pub(crate) unsafe extern "C" fn free_space(stv: *const RawStorage) -> i64 {
    BOUNDARY.fallible("free_space", 0, || {
        // SAFETY: varnishd's own storage, of ours, open before any VCL runs.
        i64::try_from(unsafe { engine_of(storage::Storage::new(stv)) }.account.free()).unwrap_or(i64::MAX)
    })
}

/// `storage.<name>.used_space`
pub(crate) unsafe extern "C" fn used_space(stv: *const RawStorage) -> i64 {
    BOUNDARY.fallible("used_space", 0, || {
        // SAFETY: as in `free_space`.
        i64::try_from(unsafe { engine_of(storage::Storage::new(stv)) }.account.used()).unwrap_or(i64::MAX)
    })
}

/// `storage.<name>.happy`
pub(crate) unsafe extern "C" fn happy(stv: *const RawStorage) -> c_uint {
    BOUNDARY.fallible("happy", 0, || {
        // SAFETY: as in `free_space`.
        c_uint::from(unsafe { engine_of(storage::Storage::new(stv)) }.is_happy())
    })
}
