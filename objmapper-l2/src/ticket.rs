//! The right, and the duty, to ask the origin and to publish what it says.

use std::time::Duration;

use objmapper_client::ObjUri;

use crate::counters::Counters;
use crate::finding::Hit;
use crate::head::{BodySum, Head};
use crate::outage::Outage;
use crate::request::RequestView;

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Others find it.
    Published,
    /// It was purged, or (v0.1 peers) banned, since the ticket was given: what was fetched must not be kept either.
    Conflict,
    /// Somebody else published at the same time, and that is what others find.
    Overtaken,
    /// It is too large for this store: head or body.
    TooLarge,
    /// Nobody could find it: it varies by `*`, or by more than can be kept.
    Unmatchable,
    /// The store was of no help.
    Outage(Outage),
}

/// The right, and the duty, to ask the origin and to publish what it says. Dropped, it goes to the next one who waits.
#[derive(Debug)]
pub struct Ticket {
    // fields follow
}

impl Ticket {
    /// Begins to publish a copy: for bodies that are not in the store. `request` is the one that the origin was asked, for
    /// Vary. `expected` is the body's length, if it is known.
    ///
    /// # Errors
    /// Why it cannot be published; the ticket is given up.
    pub fn writer(
        self,
        head: Head,
        request: &dyn RequestView,
        expected: Option<u64>,
        counters: &Counters,
    ) -> Result<Writer, Outcome> {
        let _ = (head, request, expected, counters);
        todo!()
    }

    /// For a body that is in the store already: what must be appended to it, and how it must be committed.
    ///
    /// # Errors
    /// Why it cannot be published; the ticket is given up.
    pub fn seal(
        self,
        head: Head,
        request: &dyn RequestView,
        body_len: u64,
        sum: Option<BodySum>,
        counters: &Counters,
    ) -> Result<Sealed, Outcome> {
        let _ = (head, request, body_len, sum, counters);
        todo!()
    }

    /// After a 304: publishes the new head of the record that was revalidated.
    pub fn renew(self, hit: &Hit, head: &Head, counters: &Counters) -> Outcome {
        let _ = (hit, head, counters);
        todo!()
    }

    /// There is nothing to share: for this long others are told so, and do not wait.
    pub fn refuse(self, retry: Duration, counters: &Counters) {
        let _ = (retry, counters);
        todo!()
    }

    /// The fetch failed: the next one who waits is given the ticket. The same as dropping it.
    pub fn give_up(self) {}
}

/// A copy that is being written. Dropped before [`Self::finish`], nothing is published.
#[derive(Debug)]
pub struct Writer {
    // fields follow
}

impl Writer {
    /// The next bytes of the body.
    ///
    /// # Errors
    /// Why it cannot be published; then [`Self::finish`] says the same.
    pub fn write(&mut self, bytes: &[u8], counters: &Counters) -> Result<(), Outcome> {
        let _ = (bytes, counters);
        todo!()
    }

    /// The body is complete: publishes it.
    pub fn finish(self, counters: &Counters) -> Outcome {
        let _ = counters;
        todo!()
    }
}

/// What became of a sealed body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedOutcome {
    /// It was committed.
    Done,
    /// The store says that the fence does not hold.
    Conflict,
    /// It was not committed.
    Failed(Outage),
}

/// A body in the store with what makes a record of it. Dropped, nothing was published.
#[derive(Debug)]
pub struct Sealed {
    ticket: Ticket,
    /// The URI to commit it under.
    pub uri: ObjUri<'static>,
    /// What follows its last byte.
    pub tail: Vec<u8>,
    /// When the store may drop it, in milliseconds since 1970; 0 is never.
    pub expires_ms: i64,
    /// The fence's shard,
    pub shard: u32,
    /// and its value.
    pub fence: u64,
}

impl Sealed {
    /// The body is not in the store after all: the ticket, to publish a copy.
    #[must_use]
    pub fn reopen(self) -> Ticket {
        self.ticket
    }

    /// Says what became of it.
    pub fn settle(self, outcome: SealedOutcome, counters: &Counters) -> Outcome {
        let _ = (outcome, counters);
        todo!()
    }
}
