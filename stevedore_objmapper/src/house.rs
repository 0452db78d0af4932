//! The storage's background thread: a thread of varnishd's with a worker, like the ban lurker's.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use objmapper_engine::counters;
use objmapper_engine::engine::Engine;
use objmapper_engine::maintenance::Task;
use varnishd::boundary::infallible;
use varnishd_sys::bindings::{VSL_Flush, WRK_BgThread, pthread_join, pthread_t, vsl_log};
use varnishd_sys::branch::init_log;
use varnishd_sys::functions::{HSH_Kill, LRU_NukeOne, Pool_Sumstat};
use varnishd_sys::stevedore::Lru;
use varnishd_sys::{objcore, worker};

use crate::BOUNDARY;

/// Without work, gauges are brought up to date this often.
const IDLE: Duration = Duration::from_secs(1);

/// The expiry thread frees what was evicted within this time, or more is evicted.
const FREED_WITHIN: Duration = Duration::from_millis(200);
/// So often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The running thread.
pub(crate) struct Thread(pthread_t);

/// What the thread is given: leaked, as the storage is.
struct Charge {
    engine: &'static Engine,
    lru: *mut Lru,
}

/// Starts the thread. Called in the CLI thread, from `open`.
pub(crate) fn start(engine: &'static Engine, lru: *mut Lru) -> Thread {
    let charge = Box::into_raw(Box::new(Charge { engine, lru }));
    let mut thread = MaybeUninit::<pthread_t>::uninit();
    // SAFETY: WRK_BgThread (cache/cache_wrk.c) writes the thread's id, or asserts; the name is static; the charge lives
    // as long as the process.
    unsafe {
        WRK_BgThread(thread.as_mut_ptr(), c"objm-house".as_ptr(), Some(keep), charge.cast());
        Thread(thread.assume_init())
    }
}

impl Thread {
    /// Waits for the thread's end, after [`objmapper_engine::maintenance::Maintenance::stop`].
    pub(crate) fn join(self) {
        // SAFETY: the thread was started joinable, and is joined once.
        unsafe { pthread_join(self.0, null_mut()) };
    }
}

unsafe extern "C" fn keep(wrk: *mut worker, priv_: *mut c_void) -> *mut c_void {
    infallible("house", || {
        // SAFETY: `start` leaked it.
        let charge = unsafe { &*priv_.cast::<Charge>() };
        let mut vsl = MaybeUninit::<vsl_log>::zeroed();
        // SAFETY: a log buffer of varnishd's own making, set before the worker is used for anything that logs, as in
        // cache_expire.c; it outlives its use below.
        unsafe {
            init_log(vsl.as_mut_ptr());
            (*wrk).vsl = vsl.as_mut_ptr();
        }
        loop {
            match charge.engine.maintenance.next_task(IDLE) {
                Task::Stop => break,
                // SAFETY: the engine names objcores of ours whose objects are not freed while the closure runs.
                Task::Sweep(verdict) => charge.engine.sweep(verdict, |owner| unsafe {
                    HSH_Kill(std::ptr::with_exposed_provenance_mut::<objcore>(owner));
                }),
                // SAFETY: `wrk` is this thread's.
                Task::MakeRoom(bytes) => unsafe { make_room(wrk, charge, bytes) },
                Task::Idle => charge.engine.tidy(),
            }
            charge.engine.counters.c_err_internal.store(BOUNDARY.caught(), Relaxed);
            charge.engine.refresh();
            // SAFETY: `wrk` and its log are this thread's.
            unsafe {
                VSL_Flush((*wrk).vsl, 0);
                Pool_Sumstat(wrk);
            }
        }
        // SAFETY: as above; the log ends with this function.
        unsafe { (*wrk).vsl = null_mut() };
    });
    null_mut()
}

/// Evicts until `bytes` are free, or nothing can be evicted.
///
/// # Safety
/// `wrk` must be the calling thread's worker, with a log.
unsafe fn make_room(wrk: *mut worker, charge: &Charge, bytes: u64) {
    // SAFETY: by contract. Each eviction takes one off: `nuke_limit` is for fetches.
    unsafe { (*wrk).strangelove = c_int::MAX };
    let account = &charge.engine.account;
    let mut exhausted = false;
    let mut patience = FREED_WITHIN;
    while account.free() < bytes {
        // Evicting frees the body here, but the head in the expiry thread: who goes on evicting while that thread
        // lags behind empties a cache of small objects.
        let lags = account.free_soon() > account.free() && !patience.is_zero();
        if !lags || account.free_soon() < bytes {
            // SAFETY: by contract; the list was allocated in `open`.
            if unsafe { LRU_NukeOne(wrk, charge.lru) } != 0 {
                counters::add(&charge.engine.counters.c_evicted_ahead, 1);
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
    charge.engine.maintenance.made_room(exhausted);
}
