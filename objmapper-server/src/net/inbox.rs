//! The queue by which other threads pass messages to an event loop, and wake it.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Instant;

use mio::Waker;
use parking_lot::Mutex;

use super::refusal::Refusal;
use crate::store::{LeaseOutcome, Session, StoreError};

/// A message to an event loop.
pub(super) enum Message {
    Connection(StdStream),
    /// A connection that is answered with its refusal.
    Refused(StdStream, Refusal),
    Lease {
        number: usize,
        id: u32,
        outcome: Result<LeaseOutcome, StoreError>,
        asker: Session,
        /// True if the request asked for a pin.
        pin: bool,
    },
    /// Drains: the loop ends at this instant at the latest.
    Drain(Instant),
}

/// The queue of one event loop.
pub(super) struct Inbox {
    messages: Mutex<VecDeque<Message>>,
    waker: Waker,
}

impl Inbox {
    /// Makes an empty queue; `waker` wakes its loop.
    pub(super) fn new(waker: Waker) -> Self {
        Self { messages: Mutex::default(), waker }
    }

    /// Takes the oldest message.
    pub(super) fn take(&self) -> Option<Message> {
        self.messages.lock().pop_front()
    }

    fn send(&self, message: Message) {
        self.messages.lock().push_back(message);
        if let Err(e) = self.waker.wake() {
            log::error!("waking an event loop: {e}");
        }
    }

    pub(super) fn connection(&self, stream: StdStream) {
        self.send(Message::Connection(stream));
    }

    pub(super) fn refused(&self, stream: StdStream, refusal: Refusal) {
        self.send(Message::Refused(stream, refusal));
    }

    pub(super) fn lease(
        &self,
        number: usize,
        id: u32,
        outcome: Result<LeaseOutcome, StoreError>,
        (asker, pin): (Session, bool),
    ) {
        self.send(Message::Lease { number, id, outcome, asker, pin });
    }

    pub(super) fn drain(&self, deadline: Instant) {
        self.send(Message::Drain(deadline));
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inbox")
    }
}
