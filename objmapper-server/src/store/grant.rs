//! What a reply gives its client: something that the store holds for the client until it is given back.
//!
//! A grant is taken back in two cases. A reply that could not be sent takes its grant back at once (`net::handover`). A reply
//! that was sent and not read is found by its connection's number, after LOST ([`super::delivery`]).

use std::time::Duration;

use super::error::StoreError;
use super::object::ObjectId;
use super::pin::Claim;
use super::session::Session;

/// What a reply gave to its client, in the session of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// A lease, by its number.
    Lease(u64),
    /// A private object, by its handle.
    Private(u64),
    /// A pin of this object.
    Pin(ObjectId),
}

impl Session {
    /// Takes back a grant that no reply has reported, or will report.
    pub fn withdraw(&self, grant: Grant) {
        // Replies are numbered from 1, so no reply has this claim.
        self.take_back(grant, (0, 0));
    }

    /// Takes a grant back. For a pin, only the claim of one reply goes.
    pub(super) fn take_back(&self, grant: Grant, claim: Claim) {
        let taken_back = match grant {
            Grant::Lease(lease) => self.unlease(lease, Duration::ZERO),
            Grant::Private(handle) => self.abort(handle),
            Grant::Pin(object) => {
                self.drop_claim(object, claim);
                Ok(())
            }
        };
        match taken_back {
            // The grant has ended by itself, or with its session.
            Ok(()) | Err(StoreError::UnknownHandle | StoreError::UnknownSession) => {}
            Err(e) => log::error!("taking back what a reply granted: {e}"),
        }
    }
}
