//! A session's pins, and the claims of replies on them.
//!
//! A pin is made once per session, whatever number of replies report it. A reply that its client may not have read yet has a
//! *claim* on the pin (see `delivery`). The pin goes by RELEASE, with its session, or with its last claim if no reply that
//! reported it has been read.

use std::collections::HashSet;
use std::sync::Arc;

use super::object::{Object, ObjectId};
use super::session::{Session, SessionCore};

/// One reply's claim on a pin: the connection's number and the reply's.
pub(super) type Claim = (u64, u64);

/// A session's pin of an object.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) object: Arc<Object>,
    /// True once the client has read a reply that reported the pin.
    kept: bool,
    /// Replies that reported the pin and may be unread.
    claims: HashSet<Claim>,
}

impl Pin {
    /// Makes a pin without claims.
    pub(super) fn new(object: Arc<Object>) -> Self {
        Self { object, kept: false, claims: HashSet::new() }
    }

    /// Makes a pin that the client is known to have read of.
    pub(super) fn kept(object: Arc<Object>) -> Self {
        Self { object, kept: true, claims: HashSet::new() }
    }
}

impl SessionCore {
    /// Adds a reply's claim to a pin. Returns false if the pin is gone.
    pub(super) fn claim_pin(&self, object: ObjectId, claim: Claim) -> bool {
        let mut state = self.state.lock();
        state.pins.get_mut(&object).map(|pin| pin.claims.insert(claim)).is_some()
    }

    /// Notes that the client has read the reply that claims the pin. Does nothing if the pin was released since.
    pub(super) fn keep_pin(&self, object: ObjectId, claim: Claim) {
        if let Some(pin) = self.state.lock().pins.get_mut(&object)
            && pin.claims.remove(&claim)
        {
            pin.kept = true;
            if pin.claims.is_empty() {
                // There may be many pins, so the emptied set's memory is freed.
                pin.claims = HashSet::new();
            }
        }
    }
}

impl Session {
    /// Drops one reply's claim on a pin, and the pin if it has no other claim and is not kept.
    pub(super) fn drop_claim(&self, object: ObjectId, claim: Claim) {
        let dropped = {
            let mut state = self.core.state.lock();
            let counted = state.counted;
            let unwanted = state.pins.get_mut(&object).is_some_and(|pin| {
                pin.claims.remove(&claim);
                counted && !pin.kept && pin.claims.is_empty()
            });
            if unwanted { state.pins.remove(&object) } else { None }
        };
        if let Some(pin) = dropped {
            self.released(&pin.object);
        }
    }
}
