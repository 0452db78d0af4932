//! A record that is pinned, so that it can become a body: see [`Body::adopt`](crate::body::Body::adopt).

use crate::adopted::Room;
use crate::backing::{Failure, Lengths, Stored};
use crate::engine::Engine;
use crate::unreadable::is_unreadable;

/// A record that shall be adopted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The instance of the store that it is in.
    pub instance: [u8; 16],
    /// Under which URI.
    pub uri: &'a [u8],
    /// Its number there.
    pub object: u64,
    /// Bytes of body, from the file's first byte on.
    pub body_len: u64,
    /// Bytes of the file.
    pub file_len: u64,
}

/// Why a record cannot be adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdopted {
    /// It is in another store than ours.
    Elsewhere,
    /// Its body would be in heap.
    Small,
    /// It is not under its URI any more.
    Gone,
    /// The store did not answer (in time).
    Down,
    /// The request makes no sense, the record's file could not be read before, or the store could not.
    Failed,
}

/// A record that is pinned for a body: give it to [`Body::adopt`](crate::body::Body::adopt) or to [`Engine::cancel_adoption`].
#[derive(Debug)]
#[must_use = "it stays pinned"]
pub struct Announced(pub(crate) Stored);

/// How far an adoption has come.
pub(crate) enum Adoption {
    /// Pinned.
    Announced(Announced),
    /// It is the body, and this is the writer's room while the "fetch" goes on.
    Room(Room),
}

impl Engine {
    /// Pins a record for a body that will be it. It may wait for the store, within a deadline.
    pub fn adopt(&self, wanted: &Wanted<'_>) -> Result<Announced, NotAdopted> {
        if self.backing().instance() != Some(wanted.instance) {
            return Err(NotAdopted::Elsewhere);
        }
        if wanted.body_len <= self.options.threshold || wanted.body_len == 0 {
            return Err(NotAdopted::Small);
        }
        if wanted.file_len < wanted.body_len || is_unreadable(wanted.instance, wanted.object) {
            return Err(NotAdopted::Failed);
        }
        let lengths = Lengths { body: wanted.body_len, file: wanted.file_len };
        match self.backing().pin(wanted.uri, wanted.object, lengths, self.new_key()) {
            Ok(Some(stored)) => Ok(Announced(stored)),
            Ok(None) => Err(NotAdopted::Gone),
            Err(failure) => {
                self.count_failure(&failure);
                self.log_error(&format!("a record could not be adopted: {failure}"));
                Err(match failure {
                    Failure::Down(_) | Failure::Timeout(_) => NotAdopted::Down,
                    _ => NotAdopted::Failed,
                })
            }
        }
    }

    /// No body takes it.
    pub fn cancel_adoption(&self, announced: Announced) {
        self.backing().release(&announced.0);
    }
}
