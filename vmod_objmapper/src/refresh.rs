//! Forced refreshes: a fetch that a request with `req.hash_always_miss` begins asks the backend, whatever record there is.
//!
//! A fetch does not know that flag. `objmapper.refresh()` in vcl_miss, where the request has the object that is to
//! be fetched, notes its id; the director finds it there in the fetch, for which the request waits. The note goes with
//! the request's task, and so never before the fetch has its response. An id that is used again in the meantime, because
//! the request did not fetch, costs one question to the backend.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::LazyLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use varnishd::boundary::Boundary;
use varnishd::context::Context;
use varnishd::objcore::ObjcoreId;
use varnishd::private::{Key, Private};

use crate::BOUNDARY;

/// The number of notes for each object.
static NOTED: LazyLock<Mutex<HashMap<ObjcoreId, usize>>> = LazyLock::new(Mutex::default);
/// The number of objects in it: none, nearly always.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A note, which goes when it is dropped.
struct Note(ObjcoreId);

impl Note {
    fn new(oc: ObjcoreId) -> Note {
        let mut noted = NOTED.lock();
        *noted.entry(oc).or_default() += 1;
        COUNT.store(noted.len(), Relaxed);
        Note(oc)
    }
}

impl Private for Note {
    const NAME: &'static CStr = c"objmapper refresh";

    fn boundary() -> &'static Boundary {
        &BOUNDARY
    }
}

static NOTE: Key<Note> = Key::new();

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

/// Has the fetch of this request refresh its record. A note that is there is of an earlier round of the same request.
///
/// # Safety
/// `ctx` must be the calling thread's, in vcl_miss: the request has the busy object which it will have fetched.
pub(crate) unsafe fn request(ctx: Context<'_>) -> Result<(), String> {
    let request = ctx.request().ok_or("there is no request here")?;
    // SAFETY: the value is used here alone.
    unsafe { NOTE.set_of_task(ctx, Note::new(request.object_id())) }
        .map_err(|_| "no room for the task's state: raise workspace_client".to_owned())
}

/// Returns true if the fetch of an object is such a refresh.
pub(crate) fn is_requested(oc: ObjcoreId) -> bool {
    // The request has made its note before varnishd handed the fetch to this thread.
    COUNT.load(Relaxed) > 0 && NOTED.lock().contains_key(&oc)
}
