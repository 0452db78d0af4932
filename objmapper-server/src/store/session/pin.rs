//! A session's pins, and the claims of replies on them.
//!
//! A pin is made once per session, whatever number of replies report it. A reply that its client may not have read yet has a
//! *claim* on the pin (see `delivery`). The pin goes by RELEASE, with its session, or with its last claim if no reply that
//! reported it has been read.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Session, SessionCore};
use crate::store::object::{Object, ObjectId};
use crate::store::tier::journal::Op;
use crate::store::{Inner, StoreError};

/// One reply's claim on a pin: the connection's number and the reply's.
pub(super) type Claim = (u64, u64);

/// A session's pin of an object.
#[derive(Debug)]
pub(in crate::store) struct Pin {
    pub(in crate::store) object: Arc<Object>,
    /// True once the client has read a reply that reported the pin.
    kept: bool,
    /// Replies that reported the pin and may be unread.
    claims: HashSet<Claim>,
}

impl Pin {
    /// Makes a pin without claims.
    pub(in crate::store) fn new(object: Arc<Object>) -> Self {
        Self { object, kept: false, claims: HashSet::new() }
    }

    /// Makes a pin that the client is known to have read of.
    pub(in crate::store) fn kept(object: Arc<Object>) -> Self {
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

impl Inner {
    /// Pins the object, once per session. Returns false if it is not listed any more.
    pub(in crate::store) fn pin(&self, session: &SessionCore, object: &Arc<Object>) -> Result<bool, StoreError> {
        {
            let mut session = session.state.lock();
            if session.ended {
                return Err(StoreError::UnknownSession);
            }
            if session.pins.contains_key(&object.id) {
                return Ok(true);
            }
            if !Self::take_pin(object) {
                return Ok(false);
            }
            session.pins.insert(object.id, Pin::new(object.clone()));
        }
        // Without a grace time no client resumes the session after a restart.
        if object.tier.is_persistent()
            && !self.session_grace.is_zero()
            && let Err(e) = object.tier.record(vec![Op::Pin(session.token, object.id)])
        {
            self.diagnostics.note_unsaved(&format_args!("a pin of object {:016x}", object.id), &e);
        }
        Ok(true)
    }

    fn take_pin(object: &Object) -> bool {
        let mut state = object.state.lock();
        if !state.listed {
            return false;
        }
        state.pins += 1;
        if state.pins == 1 {
            object.tier.account.pinned.fetch_add(object.charge(), Relaxed);
            object.tier.order.remove(object.id);
        }
        true
    }

    /// Enters a new object's pin, taken at its creation, into the session.
    pub(crate) fn adopt(&self, session: &Arc<SessionCore>, object: &Arc<Object>, pinned: bool) {
        let (ended, twice) = {
            let mut state = session.state.lock();
            if state.ended {
                (true, false)
            } else {
                if object.ephemeral.is_some() && object.state.lock().listed {
                    state.ephemeral.insert(object.id, object.clone());
                }
                (false, pinned && state.pins.insert(object.id, Pin::new(object.clone())).is_some())
            }
        };
        if ended && object.ephemeral.is_some() {
            self.discard(object);
        }
        if (ended && pinned) || twice {
            self.unpin(object);
        }
    }

    /// Drops one pin; the last one frees an unlisted object, deletes an ephemeral one and makes any
    /// other evictable.
    pub(crate) fn unpin(&self, object: &Arc<Object>) {
        let tier = &object.tier;
        let freed = {
            let mut state = object.state.lock();
            state.pins = state.pins.saturating_sub(1);
            if state.pins > 0 {
                return;
            }
            tier.account.pinned.fetch_sub(object.charge(), Relaxed);
            if state.listed && object.ephemeral.is_none() {
                tier.order.insert(object.clone());
            }
            !state.listed
        };
        if freed {
            object.forget_row();
            self.remove_file(object);
        } else if object.ephemeral.is_some() {
            self.discard(object);
        }
    }
}
