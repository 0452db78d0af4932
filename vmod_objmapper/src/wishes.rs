//! What a request wishes of the fetch that it begins: to refresh the record (`req.hash_always_miss`), or not to wait for
//! another fetch (`req.hash_ignore_busy`).
//!
//! A fetch does not know these flags. `objmapper.refresh()` and `objmapper.ignore_busy()` in vcl_miss, where the request has the
//! object that is to be fetched, note its id; the director finds it there in the fetch, for which the request waits. The note
//! goes with the request's task, and so never before the fetch has its response. An id that is used again in the meantime,
//! because the request did not fetch, costs one question to the backend.

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

/// A wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wish {
    /// The backend is asked, whatever record there is.
    Refresh,
    /// The look-up does not wait for another fetch.
    IgnoreBusy,
}

/// The number of notes for each wish and object.
static NOTED: LazyLock<Mutex<HashMap<(Wish, ObjcoreId), usize>>> = LazyLock::new(Mutex::default);
/// The number of entries in it: none, nearly always.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A note, which goes when it is dropped.
struct Note(Wish, ObjcoreId);

impl Note {
    fn new(wish: Wish, oc: ObjcoreId) -> Note {
        let mut noted = NOTED.lock();
        *noted.entry((wish, oc)).or_default() += 1;
        COUNT.store(noted.len(), Relaxed);
        Note(wish, oc)
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let mut noted = NOTED.lock();
        let key = (self.0, self.1);
        if let Some(count) = noted.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                noted.remove(&key);
            }
        }
        COUNT.store(noted.len(), Relaxed);
    }
}

/// The notes of a task.
#[derive(Default)]
struct Notes(Vec<Note>);

impl Private for Notes {
    const NAME: &'static CStr = c"objmapper wishes";

    fn boundary() -> &'static Boundary {
        &BOUNDARY
    }
}

static NOTES: Key<Notes> = Key::new();

/// Has the fetch of this request do so. A note of another object is of an earlier round of the same request.
///
/// # Safety
/// `ctx` must be the calling thread's, in vcl_miss: the request has the busy object which it will have fetched.
pub(crate) unsafe fn request(ctx: Context<'_>, wish: Wish) -> Result<(), String> {
    let oc = ctx.request().ok_or("there is no request here")?.object_id();
    // SAFETY: the value is used here alone.
    let notes =
        unsafe { NOTES.of_task(ctx) }.map_err(|_| "no room for the task's state: raise workspace_client".to_owned())?;
    notes.0.retain(|note| note.1 == oc && note.0 != wish);
    notes.0.push(Note::new(wish, oc));
    Ok(())
}

/// Returns true if and only if the request that began the fetch of this object wishes so.
pub(crate) fn is_requested(oc: ObjcoreId, wish: Wish) -> bool {
    // The request has made its note before varnishd handed the fetch to this thread.
    COUNT.load(Relaxed) > 0 && NOTED.lock().contains_key(&(wish, oc))
}
