//! A worker thread of varnishd's (Varnish: `cache/cache_wrk.c`), and threads of our own that have a worker.
//!
//! A worker carries the counters and the log of its thread. varnishd's own threads add the counters to the global ones when they are
//! idle; a background thread does so by [`Worker::publish`].

use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::null_mut;

use varnishd_sys::bindings::{THR_GetWorker, VSL_Flush, WRK_BgThread, WS_Init, pthread_join, pthread_t, vsl_log};
use varnishd_sys::branch::init_log;
use varnishd_sys::functions::Pool_Sumstat;
use varnishd_sys::vsc;

use crate::boundary::infallible;
use crate::cast::{has_magic, worker_ref};
use crate::raw::RawWorker;

/// Bytes of a background thread's workspace, in which a purge keeps the objects of a key that it works on.
const WORKSPACE: usize = 4 << 10;

/// The calling thread's worker, for `'a`.
#[derive(Clone, Copy)]
pub struct Worker<'a>(*mut RawWorker, PhantomData<&'a RawWorker>);

impl<'a> Worker<'a> {
    /// Returns the worker that varnishd called with.
    ///
    /// # Safety
    /// `wrk` must be the calling thread's worker, and stay so for `'a`.
    #[inline]
    pub unsafe fn new(wrk: *mut RawWorker) -> Worker<'a> {
        Worker(wrk, PhantomData)
    }

    /// Returns the calling thread's worker; `None` if the thread has none.
    ///
    /// # Safety
    /// The worker must not be used after the calling thread's callback has returned.
    pub unsafe fn current() -> Option<Worker<'a>> {
        // SAFETY: varnishd keeps the pointer of each thread, which is null or a worker.
        unsafe {
            let wrk = THR_GetWorker();
            has_magic(wrk).then(|| Worker::new(wrk))
        }
    }

    /// Returns the pointer, for a function of varnishd's.
    #[inline]
    pub(crate) fn as_ptr(self) -> *mut RawWorker {
        self.0
    }

    /// Returns the time of the worker's last use, if it has one.
    pub(crate) fn last_used(self) -> Option<f64> {
        // SAFETY: by contract of `new`.
        let last = unsafe { worker_ref(self.0) }.lastused;
        (!last.is_nan()).then_some(last)
    }

    /// Adds the worker's counters to varnishd's global ones. No lock of varnishd's that comes after the one of the sum may be held.
    pub fn publish_counters(self) {
        // SAFETY: by contract of `new`: a worker's own thread may sum its counters at any time.
        unsafe { Pool_Sumstat(self.0) };
    }

    /// Writes the worker's log, and adds its counters to the global ones. For background threads.
    pub fn publish(self) {
        // SAFETY: by contract of `new`; a background thread's worker has a log (`BackgroundThread::start`).
        unsafe { VSL_Flush((*self.0).vsl, 0) };
        self.publish_counters();
    }

    /// Counts one object less, as a storage must for every object that it frees.
    pub fn count_freed_object(self) {
        // SAFETY: by contract of `new`.
        unsafe { vsc::one_object_less(self.0) };
    }

    /// Lifts the limit of evictions (`nuke_limit`), which is for fetches.
    pub fn lift_eviction_limit(self) {
        // SAFETY: by contract of `new`; each eviction takes one off.
        unsafe { (*self.0).strangelove = c_int::MAX };
    }
}

/// A thread with a worker, as the ban lurker's.
pub struct BackgroundThread(pthread_t);

type Run = Box<dyn FnOnce(Worker<'_>) + Send>;

impl BackgroundThread {
    /// Starts a thread. A panic in `run` ends the child. Called in the CLI thread.
    pub fn start(name: &'static CStr, run: impl FnOnce(Worker<'_>) + Send + 'static) -> BackgroundThread {
        let run: Box<Run> = Box::new(Box::new(run));
        let mut thread = MaybeUninit::<pthread_t>::uninit();
        // SAFETY: cache/cache_wrk.c writes the thread's id, or asserts; the name is static; `background` takes the box back.
        unsafe {
            WRK_BgThread(thread.as_mut_ptr(), name.as_ptr(), Some(background), Box::into_raw(run).cast());
            BackgroundThread(thread.assume_init())
        }
    }

    /// Waits for the thread's end.
    pub fn join(self) {
        // SAFETY: the thread was started joinable, and is joined once.
        unsafe { pthread_join(self.0, null_mut()) };
    }
}

unsafe extern "C" fn background(wrk: *mut RawWorker, run: *mut c_void) -> *mut c_void {
    infallible("background thread", || {
        // SAFETY: `start` leaked it, for this call.
        let run = unsafe { Box::from_raw(run.cast::<Run>()) };
        let mut log = MaybeUninit::<vsl_log>::zeroed();
        let mut workspace = [0_u64; WORKSPACE / 8];
        // SAFETY: a log buffer of varnishd's own making and a workspace, set before the worker is used for anything that needs
        // them, as in cache_expire.c and cache_wrk.c; they outlive their use below.
        unsafe {
            init_log(log.as_mut_ptr());
            (*wrk).vsl = log.as_mut_ptr();
            WS_Init((&raw mut (*wrk).aws).cast(), c"wrk".as_ptr(), workspace.as_mut_ptr().cast(), WORKSPACE as u32);
        }
        // SAFETY: this thread's worker.
        run(unsafe { Worker::new(wrk) });
        // SAFETY: as above; the log ends with this function.
        unsafe { (*wrk).vsl = null_mut() };
    });
    null_mut()
}
