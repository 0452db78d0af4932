//! One `-s`: configured by the child as the master's user, opened after it has given up its privileges.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::null_mut;
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
use objmapper_server::net::InProcess;
use objmapper_server::store::{
    DiskTier, MemoryMount, MemoryTier, MountAccess, MountKind, ShmDirectory, Store, StoreConfig, TierKind,
};
use parking_lot::Mutex;
use varnishd::boundary::infallible;
use varnishd::cast::stevedore_ref;
use varnishd_sys::bindings::VNUM_2bytes;
use varnishd_sys::functions::LRU_Alloc;
use varnishd_sys::stevedore::Stevedore;
use varnishd_sys::vsc::{Segment, VSC_sma_New, VscSma, is_first_child};

use crate::BOUNDARY;
use crate::house;

/// For tests: options that every storage gets which does not set them itself.
const OPTIONS: &str = "OBJMAPPER_OPTIONS";

/// Drafts at a time; what else limits them is RLIMIT_NOFILE.
const MOST_DRAFTS: usize = 1 << 20;

/// By then the manager has counted the child that it has forked.
const BEHIND_FORK: Duration = Duration::from_secs(1);

const STORAGE_MAGIC: u32 = 0x6f62_7374;

/// The first storage that was opened.
static FIRST: AtomicPtr<Stevedore> = AtomicPtr::new(std::ptr::null_mut());

/// That storage, or null.
pub(crate) fn first() -> *const Stevedore {
    FIRST.load(Acquire)
}

/// `stevedore->priv`: leaked, as varnishd keeps its storages until the child ends.
struct Storage {
    magic: u32,
    options: Options,
    /// Made while the process may still mount; else why it may not.
    mount: Mutex<Option<Result<MemoryMount, Vec<String>>>>,
    /// Where bodies are if it may not. Removed by `close`: nothing of a storage is dropped when the process ends.
    directory: Mutex<Option<ShmDirectory>>,
    engine: OnceLock<Engine>,
    house: Mutex<Option<house::Thread>>,
    /// The store in this process, for others in it.
    store: OnceLock<Store>,
    /// Serves it, once somebody has asked for that.
    server: Mutex<Option<InProcess>>,
}

// The engine counts in the memory of varnishd's own counters.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SmaCounters>() == size_of::<VscSma>());
    assert!(offset_of!(SmaCounters, c_req) == offset_of!(VscSma, c_req));
    assert!(offset_of!(SmaCounters, c_fail) == offset_of!(VscSma, c_fail));
    assert!(offset_of!(SmaCounters, c_bytes) == offset_of!(VscSma, c_bytes));
    assert!(offset_of!(SmaCounters, c_freed) == offset_of!(VscSma, c_freed));
    assert!(offset_of!(SmaCounters, g_alloc) == offset_of!(VscSma, g_alloc));
    assert!(offset_of!(SmaCounters, g_bytes) == offset_of!(VscSma, g_bytes));
    assert!(offset_of!(SmaCounters, g_space) == offset_of!(VscSma, g_space));
};

/// Says what is wrong and ends the child, as varnishd's own `ARGV_ERR` does (`common/heritage.h`).
pub(crate) fn refuse(message: &str) -> ! {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "Error: {message}\n(-? gives usage)");
    std::process::exit(2)
}

/// The storage behind a stevedore of ours.
///
/// # Safety
/// `stv` must be varnishd's copy of our stevedore, after `init`.
unsafe fn storage_of(stv: *const Stevedore) -> &'static Storage {
    // SAFETY: by contract.
    let priv_ = unsafe { stevedore_ref(stv) }.priv_;
    // SAFETY: `init` leaked it there.
    match unsafe { priv_.cast::<Storage>().as_ref() } {
        Some(storage) if storage.magic == STORAGE_MAGIC => storage,
        _ => panic!("the stevedore is not ours"),
    }
}

/// The engine behind a stevedore of ours.
///
/// # Safety
/// `stv` must be varnishd's copy of our stevedore, after `open`.
pub(crate) unsafe fn engine_of(stv: *const Stevedore) -> &'static Engine {
    // SAFETY: by contract.
    match unsafe { storage_of(stv) }.engine.get() {
        Some(engine) => engine,
        None => panic!("the storage is not open"),
    }
}

/// The NULL-terminated strings at `av`.
///
/// # Safety
/// `av` must be such an array of `ac` strings, which live as long as the process.
unsafe fn arguments(ac: c_int, av: *const *mut c_char) -> Vec<&'static CStr> {
    let count = usize::try_from(ac).unwrap_or(0);
    (0..count)
        // SAFETY: by contract.
        .map(|index| unsafe { CStr::from_ptr(*av.add(index)) })
        .collect()
}

/// varnishd's own parser of sizes.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = CString::new(text).map_err(|_| "has a NUL byte".to_owned())?;
    let mut bytes = 0;
    // SAFETY: VNUM_2bytes (lib/libvarnish/vnum.c) reads a string, writes a number and returns NULL or a static text.
    let error = unsafe { VNUM_2bytes(text.as_ptr(), &raw mut bytes, 0) };
    if error.is_null() {
        return Ok(bytes);
    }
    // SAFETY: see above.
    Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
}

pub(crate) unsafe extern "C" fn init(stv: *mut Stevedore, ac: c_int, av: *const *mut c_char) {
    infallible("init", || {
        // SAFETY: STV_Init hands us its own stevedore, and arguments that the stevedore "gets to keep".
        let (name, args) = unsafe { (CStr::from_ptr(stevedore_ref(stv).name), arguments(ac, av)) };
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
        let in_memory = options.socket.is_none() && options.dir.is_none();
        let mount = in_memory.then(|| MemoryMount::detached(store_limit(&options), MountAccess::AnyUser));
        let storage = Storage {
            magic: STORAGE_MAGIC,
            options,
            mount: Mutex::new(mount),
            directory: Mutex::new(None),
            engine: OnceLock::new(),
            house: Mutex::new(None),
            store: OnceLock::new(),
            server: Mutex::new(None),
        };
        // SAFETY: STV_Init's own stevedore; nobody else runs yet.
        unsafe { (*stv).priv_ = Box::into_raw(Box::new(storage)).cast::<c_void>() };
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

pub(crate) unsafe extern "C" fn open(stv: *mut Stevedore) {
    infallible("open", || {
        // SAFETY: STV_open hands us its own stevedore, in the CLI thread, before any worker runs.
        let (checked, storage) = unsafe { (stevedore_ref(stv), storage_of(stv)) };
        // SAFETY: `ident` is a string of varnishd's that it keeps.
        let ident = unsafe { CStr::from_ptr(checked.ident) };
        let ident_text = ident.to_string_lossy().into_owned();
        // SAFETY: a format that takes one string; the counters live as long as the process.
        let sma = unsafe { VSC_sma_New(null_mut(), null_mut(), c"%s".as_ptr(), ident.as_ptr()) };
        // SAFETY: not null (VSC_sma_New asserts), never freed, and of the same layout (checked above).
        let sma: &'static SmaCounters = unsafe { &*sma.cast::<SmaCounters>() };
        let counters: &'static Segment<Counters> = Box::leak(Box::new(Segment::new(c"OBJM", ident)));
        let house = Arc::new(Maintenance::default());
        let backing = backing(storage, &ident_text, &house).unwrap_or_else(|problem| match problem {
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
        let nonce = RandomState::new().build_hasher().finish();
        let uri_base = format!("{}/{ident_text}/{nonce:016x}", storage.options.prefix);
        let account = Account::new(storage.options.size, sma);
        let engine = Engine::new(&ident_text, storage.options.clone(), account, counters, backing, house, uri_base);
        let engine = storage.engine.get_or_init(|| engine);
        // SAFETY: as above; LRU_Alloc asserts its own success.
        let lru = unsafe { LRU_Alloc() };
        // SAFETY: as above.
        unsafe { (*stv).lru = lru };
        *storage.house.lock() = Some(house::start(engine, lru));
        let _ = FIRST.compare_exchange(std::ptr::null_mut(), stv, Release, Acquire);
    });
}

/// Why a storage has no store.
enum Problem {
    /// At the first start: the operator's.
    Mistake(String),
    /// The file system of `dir` has no room for an empty store.
    NoSpace(String),
}

fn backing(storage: &Storage, ident: &str, house: &Arc<Maintenance>) -> Result<Backing, Problem> {
    let options = &storage.options;
    if let Some(socket) = &options.socket {
        let remote = Remote::new(ident, socket, options.timeout, house.clone());
        return remote.map(Backing::Remote).map_err(|error| Problem::Mistake(error.to_string()));
    }
    // Nobody but us uses this store: what an earlier process had in it alone is evictable at once.
    let mut config = StoreConfig {
        on_damage: options.on_damage,
        session_grace: Duration::ZERO,
        max_private: MOST_DRAFTS,
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

/// A connection to the store inside this process, for a client of another library in it. `None`: the store is an
/// objmapperd.
///
/// # Safety
/// As for [`engine_of`].
pub(crate) unsafe fn connect_in_process(stv: *const Stevedore) -> Option<io::Result<OwnedFd>> {
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

pub(crate) unsafe extern "C" fn close(stv: *const Stevedore, pass: c_int) {
    infallible("close", || {
        if pass != 0 {
            return;
        }
        // SAFETY: STV_close hands us its own stevedore, in the CLI thread.
        let storage = unsafe { storage_of(stv) };
        let thread = storage.house.lock().take();
        if let (Some(engine), Some(thread)) = (storage.engine.get(), thread) {
            engine.maintenance.stop();
            thread.join();
            // Without a connection, objmapperd gives our bodies up after its grace time.
            if let Err(why) = engine.backing().detach() {
                // SAFETY: the stevedore's own ident, a string of varnishd's that it keeps.
                let ident = unsafe { CStr::from_ptr(stevedore_ref(stv).ident) }.to_string_lossy();
                objmapper_engine::log::line(&ident, &format!("bodies may stay in the store for a while: {why}"));
            }
        }
        drop(storage.directory.lock().take());
    });
}

pub(crate) unsafe extern "C" fn free_space(stv: *const Stevedore) -> i64 {
    BOUNDARY.fallible("free_space", 0, || {
        // SAFETY: varnishd's copy of our stevedore, open before any VCL runs.
        i64::try_from(unsafe { engine_of(stv) }.account.free()).unwrap_or(i64::MAX)
    })
}

pub(crate) unsafe extern "C" fn used_space(stv: *const Stevedore) -> i64 {
    BOUNDARY.fallible("used_space", 0, || {
        // SAFETY: as in `free_space`.
        i64::try_from(unsafe { engine_of(stv) }.account.used()).unwrap_or(i64::MAX)
    })
}

pub(crate) unsafe extern "C" fn happy(stv: *const Stevedore) -> c_uint {
    BOUNDARY.fallible("happy", 0, || {
        // SAFETY: as in `free_space`.
        c_uint::from(unsafe { engine_of(stv) }.is_happy())
    })
}
