//! A thread that serves its share of the connections (`objm-loop-N`).
//!
//! The loop waits for sockets and for its inbox. Connections with more input take turns, a bounded number of bytes each. A
//! drain answers the waiting requests, and ends when the connections have ended or its deadline has passed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::connection::{Connection, Next};
use super::inbox::{Inbox, Message};
use super::refusal::{self, Refusal};
use super::{Shared, ext};

const WAKE: Token = Token(usize::MAX);

pub(super) struct EventLoop {
    poll: Poll,
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    connections: HashMap<usize, Connection>,
    /// Connections with more input or output that can be handled without waiting, in the order of their turns.
    ready: VecDeque<usize>,
    /// Refused connections, with the instant at which they are closed, answered or not.
    refused: VecDeque<(Instant, usize)>,
    next_number: usize,
    deadline: Option<Instant>,
}

impl EventLoop {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<(Self, Arc<Inbox>)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let inbox = Arc::new(Inbox::new(waker));
        let event_loop = EventLoop {
            poll,
            inbox: inbox.clone(),
            shared,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            refused: VecDeque::new(),
            next_number: 0,
            deadline: None,
        };
        Ok((event_loop, inbox))
    }

    /// Serves until the drain is over.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = if self.ready.is_empty() {
                // While draining, what a connection waits for may happen on another one.
                let draining = self.deadline.map(|_| Duration::from_millis(50));
                let refused = self.refused.front().map(|(at, _)| at.saturating_duration_since(Instant::now()));
                draining.into_iter().chain(refused).min()
            } else {
                Some(Duration::ZERO)
            };
            if let Err(e) = self.poll.poll(&mut events, timeout)
                && e.kind() != io::ErrorKind::Interrupted
            {
                log::error!("an event loop ends: poll: {e}");
                return;
            }
            for event in &events {
                if event.token() == WAKE {
                    continue;
                }
                let number = event.token().0;
                if let Some(connection) = self.connections.get_mut(&number) {
                    if event.is_readable() || event.is_read_closed() || event.is_error() {
                        connection.note_readable();
                    }
                    self.ready.push_back(number);
                }
            }
            self.read_inbox();
            self.end_refused();
            if let Some(deadline) = self.deadline {
                if Instant::now() >= deadline && !self.connections.is_empty() {
                    log::warn!("{} connections are closed unfinished at the drain deadline", self.connections.len());
                    self.connections.clear();
                }
                if self.connections.is_empty() {
                    return;
                }
                self.ready.extend(self.connections.keys().copied());
            }
            for _ in 0..self.ready.len() {
                let Some(number) = self.ready.pop_front() else { break };
                self.turn(number);
            }
        }
    }

    fn end_refused(&mut self) {
        while let Some((at, number)) = self.refused.front().copied() {
            if at > Instant::now() {
                return;
            }
            self.refused.pop_front();
            self.close(number);
        }
    }

    fn close(&mut self, number: usize) {
        if let Some(mut connection) = self.connections.remove(&number) {
            let _ = self.poll.registry().deregister(connection.stream());
        }
    }

    fn turn(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        match connection.turn() {
            Next::Wait => {}
            Next::Again => self.ready.push_back(number),
            Next::Close => self.close(number),
        }
    }

    fn read_inbox(&mut self) {
        loop {
            let Some(message) = self.inbox.take() else { return };
            match message {
                Message::Connection(stream) => self.add(stream, None),
                Message::Refused(stream, refusal) => self.add(stream, Some(refusal)),
                Message::Lease { number, id, outcome, asker, pin } => {
                    let grant = ext::lease_grant(&outcome, pin);
                    let mut outcome = Some(outcome);
                    let connection = self.connections.get_mut(&number);
                    if connection.is_some_and(|connection| connection.lease_outcome(id, &mut outcome)) {
                        self.ready.push_back(number);
                    } else if let Some(grant) = grant {
                        // The outcome was decided while the connection was being closed.
                        asker.withdraw(grant);
                    }
                }
                Message::Drain(deadline) => {
                    self.deadline = Some(deadline);
                    for connection in self.connections.values_mut() {
                        connection.drain();
                    }
                }
            }
        }
    }

    fn add(&mut self, stream: StdStream, refusal: Option<Refusal>) {
        let mut stream = UnixStream::from_std(stream);
        let number = self.next_number;
        self.next_number += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(e) = self.poll.registry().register(&mut stream, Token(number), interest) {
            if let Some(left_out) = self.shared.refusal_log.admit() {
                log::error!("registering a connection: {e}{left_out}");
            }
            let counter = if refusal.is_some() { &self.shared.refusing } else { &self.shared.connections };
            counter.fetch_sub(1, Relaxed);
            return;
        }
        if refusal.is_some() {
            self.refused.push_back((Instant::now() + refusal::MAX_WAIT, number));
        }
        let connection = Connection::new(stream, number, self.shared.clone(), self.inbox.clone(), refusal);
        self.connections.insert(number, connection);
        self.ready.push_back(number);
    }
}
