//! Forced refreshes: a fetch that a request with `req.hash_always_miss` begins asks the backend, whatever record there is.
//!
//! varnishd does not tell a fetch of that flag. `objmapper.refresh()` in vcl_miss, where the request has the object that is to
//! be fetched, notes its address; the director finds it there in the fetch, for which the request waits. The note goes with
//! the request's task, and so never before the fetch has its response. An address that is used again in the meantime, because
//! the request did not fetch, costs one question to the backend.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::LazyLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use varnishd::boundary::Constant;
use varnishd_sys::bindings::{VMOD_PRIV_METHODS_MAGIC, VRT_priv_task, objcore, vmod_priv_methods, vrt_ctx};

use crate::BOUNDARY;

/// How many notes there are for the address of an object.
static NOTED: LazyLock<Mutex<HashMap<usize, usize>>> = LazyLock::new(Mutex::default);
/// How many addresses are in it: none, nearly always.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A note, which goes when it is dropped. The address is compared, and never followed.
struct Note(usize);

impl Note {
    fn new(oc: *const objcore) -> Note {
        let mut noted = NOTED.lock();
        *noted.entry(oc.addr()).or_default() += 1;
        COUNT.store(noted.len(), Relaxed);
        Note(oc.addr())
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let mut noted = NOTED.lock();
        if let Some(count) = noted.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                noted.remove(&self.0);
            }
        }
        COUNT.store(noted.len(), Relaxed);
    }
}

// Its address is also the name of our notes in a task.
// SAFETY: varnishd only reads a private's methods.
static METHODS: Constant<vmod_priv_methods> = unsafe {
    Constant::new(vmod_priv_methods {
        magic: VMOD_PRIV_METHODS_MAGIC,
        type_: c"objmapper refresh".as_ptr(),
        fini: Some(fini),
    })
};

unsafe extern "C" fn fini(_ctx: *const vrt_ctx, note: *mut c_void) {
    // SAFETY: `request` leaked it, and varnishd calls this once.
    BOUNDARY.fallible("refresh", (), || drop(unsafe { Box::from_raw(note.cast::<Note>()) }));
}

/// Has the fetch of this request refresh its record.
///
/// # Safety
/// `ctx` must be the calling thread's, in vcl_miss.
pub(crate) unsafe fn request(ctx: &vrt_ctx) -> Result<(), String> {
    // SAFETY: by contract: a request that has the busy object which it will have fetched.
    let (oc, slot) = unsafe { ((*ctx.req).objcore, VRT_priv_task(ctx, METHODS.address().cast())) };
    if slot.is_null() {
        return Err("no room for the task's state: raise workspace_client".to_owned());
    }
    let note = Box::into_raw(Box::new(Note::new(oc))).cast::<c_void>();
    // SAFETY: varnishd's slot for this name in this task, which this thread alone looks at. A note that is there is of an
    // earlier round of the same request.
    unsafe {
        let former = std::mem::replace(&mut (*slot).priv_, note);
        (*slot).methods = METHODS.address();
        if !former.is_null() {
            drop(Box::from_raw(former.cast::<Note>()));
        }
    }
    Ok(())
}

/// Whether the fetch of an object is such a refresh.
pub(crate) fn is_requested(oc: *const objcore) -> bool {
    // The request has made its note before varnishd handed the fetch to this thread.
    COUNT.load(Relaxed) > 0 && NOTED.lock().contains_key(&oc.addr())
}
