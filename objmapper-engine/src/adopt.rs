//! Adoption, the store's part: pins a record, so that it can become a body ([`Body::adopt`](crate::body::Body::adopt)).
//! A pinned record must be taken by a body or released ([`Engine::cancel_adoption`]).

use objmapper_client::Outage;

use crate::backing::{Lengths, StoredBody};
use crate::engine::Engine;
use crate::unreadable::is_unreadable;

/// A record to adopt.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The instance of the store that it is in.
    pub instance: [u8; 16],
    /// The URI that it is published under.
    pub uri: &'a [u8],
    /// Its object number there.
    pub object: u64,
    /// Bytes of body, from the file's first byte on.
    pub body_len: u64,
    /// Bytes of the file.
    pub file_len: u64,
}

/// Why a record cannot be adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdopted {
    /// The record is in another store than this storage's.
    Elsewhere,
    /// Its body is not above `threshold`, so that it would be in heap.
    Small,
    /// The object is not under its URI any more.
    Gone,
    /// The store request failed; [`Outage::Io`] if the record's file was found to be unreadable before, [`Outage::Protocol`] if the
    /// lengths are inconsistent.
    Outage(Outage),
}

/// A record that is pinned for a body: give it to [`Body::adopt`](crate::body::Body::adopt) or to [`Engine::cancel_adoption`].
#[derive(Debug)]
#[must_use = "it stays pinned"]
pub struct Announced(pub(crate) StoredBody);

impl Engine {
    /// Pins a record that is to become a body. May wait for the store until the deadline of a call (`timeout`).
    pub fn adopt(&self, wanted: &Wanted<'_>) -> Result<Announced, NotAdopted> {
        if self.backing().instance() != Some(wanted.instance) {
            return Err(NotAdopted::Elsewhere);
        }
        if wanted.body_len <= self.options.threshold || wanted.body_len == 0 {
            return Err(NotAdopted::Small);
        }
        if wanted.file_len < wanted.body_len {
            return Err(NotAdopted::Outage(Outage::Protocol));
        }
        if is_unreadable(wanted.instance, wanted.object) {
            return Err(NotAdopted::Outage(Outage::Io));
        }
        let lengths = Lengths { body: wanted.body_len, file: wanted.file_len };
        match self.backing().pin(wanted.uri, wanted.object, lengths, self.new_key()) {
            Ok(Some(stored)) => Ok(Announced(stored)),
            Ok(None) => Err(NotAdopted::Gone),
            Err(failure) => {
                self.count_failure(&failure);
                self.log_error(&format!("a record could not be adopted: {failure}"));
                Err(NotAdopted::Outage(failure.kind()))
            }
        }
    }

    /// Releases the pin of a record that no body takes.
    pub fn cancel_adoption(&self, announced: Announced) {
        self.backing().release(&announced.0);
    }
}
