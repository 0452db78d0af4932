//! Room for a body that is delivered and not cached ([`objmapper_engine::transit`]): the readers of its object, as varnishd counts
//! them.
//!
//! Called by the fetch alone. It waits for readers with no lock held.

use std::ptr::NonNull;
use std::time::Duration;

use objmapper_engine::engine::Engine;
use objmapper_engine::grant::ChunkLimits;
use objmapper_engine::transit::{Readers, Step};
use varnishd::objcore::{Holders, Objcore};

use crate::object::Object;
use crate::spans::largest_folio;

/// A reader that moves wakes the fetch; a reference that is dropped does not, and is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Returns room for the next bytes of the body, when its readers have made some.
///
/// # Safety
/// `oc` must be an object of ours, and the calling thread its fetch, which holds a reference to its boc.
pub(crate) unsafe fn space(
    oc: Objcore<'_>,
    engine: &Engine,
    object: &Object,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<(NonNull<u8>, usize)> {
    let body = &object.body;
    // SAFETY: by contract.
    let streams = unsafe { oc.is_streaming() };
    if body.begin_transit(engine) {
        // A store that answers may be full: what is used least makes room there for the next body.
        if engine.backing().answers() {
            nuke();
        }
        // Look-ups do not find the objects of passes, and do not find a busy object either: that one is killed when it
        // is complete.
        if streams && !oc.is_transient() {
            oc.kill();
        }
    }
    loop {
        let readers = if streams { readers(oc) } else { Readers::Later };
        match body.transit_space(engine, readers, largest_folio(), limits, nuke) {
            Step::Space(ptr, size) => return Some((ptr, size)),
            Step::Wait => body.await_readers(LOOK_AGAIN),
            Step::Fail => return None,
        }
    }
}

/// Returns the holders of references to an object of ours, beside the calling thread and the expiry thread.
pub(crate) fn readers(oc: Objcore<'_>) -> Readers {
    match oc.holders() {
        Holders::Cancelled => Readers::Gone,
        Holders::Count(count) => Readers::Holders(count),
    }
}
