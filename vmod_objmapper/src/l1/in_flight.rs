//! The fetch that the calling thread is at: which object it is for, and since when it is under way.
//!
//! A fetch and the insertion of its object are of one thread. A director notes the fetch before it looks for a record, and the
//! listener of objects compares. A note of another object, of an earlier fetch of this thread, is of no account.

use std::cell::Cell;

use objmapper_tags::{Mark, Name};
use varnishd::object::Address;

use super::{NAMES, RECENT};

/// A fetch.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    object: Address,
    pub(super) since: Mark,
    /// The key of the request.
    pub(super) key: Name,
    /// The key of the URI that VCL has set for the record.
    pub(super) uri: Option<Name>,
}

thread_local! {
    static CURRENT: Cell<Option<InFlight>> = const { Cell::new(None) };
}

/// Notes that the calling thread begins to look for the content of `object`: the digest of its request, and of the URI that VCL has
/// set for its record.
pub(crate) fn begin(object: Address, key: &[u8; 32], uri: Option<[u8; 32]>) {
    let fetch =
        InFlight { object, since: RECENT.mark(), key: NAMES.digest(key), uri: uri.map(|digest| NAMES.digest(&digest)) };
    CURRENT.set(Some(fetch));
}

/// The calling thread's fetch, if it is for this object.
pub(super) fn current(object: Address) -> Option<InFlight> {
    CURRENT.get().filter(|fetch| fetch.object == object)
}
