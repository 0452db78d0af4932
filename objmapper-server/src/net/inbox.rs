//! The way into an event loop from other threads.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Instant;

use mio::Waker;
use parking_lot::Mutex;

use super::refusal::Refusal;
use crate::store::{LeaseOutcome, Session, StoreError};

/// What other threads have for a loop.
pub(super) enum Message {
    Connection(StdStream),
    /// To be told why it is not served.
    Refused(StdStream, Refusal),
    Lease {
        number: usize,
        id: u32,
        outcome: Result<LeaseOutcome, StoreError>,
        asker: Session,
        /// Whether a pin was asked for.
        pin: bool,
    },
    /// Serve until the instant at the latest, then end.
    Drain(Instant),
}

/// The way into a loop.
pub(super) struct Inbox {
    messages: Mutex<VecDeque<Message>>,
    waker: Waker,
}

impl Inbox {
    /// For a loop that wakes by this.
    pub(super) fn new(waker: Waker) -> Self {
        Self { messages: Mutex::default(), waker }
    }

    /// The oldest message that was not taken yet.
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
