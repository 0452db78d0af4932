//! The threads that serve connections, and the way of a connected socket to one of them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Shared;
use super::event_loop::EventLoop;
use super::inbox::Inbox;
use crate::store::Store;

/// The event loops of a server. Dropped, they end and their connections with them.
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) shared: Arc<Shared>,
    loops: Vec<Worker>,
    max_connections: usize,
}

/// An event loop, and its thread until that is joined.
#[derive(Debug)]
struct Worker {
    inbox: Arc<Inbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("there are {0} already (--max-connections)")]
    TooMany(usize),
    #[error("the server is shutting down")]
    Draining,
    #[error("setting it up: {0}")]
    Io(io::Error),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        let kind = match &refused {
            Refused::TooMany(_) => io::ErrorKind::QuotaExceeded,
            Refused::Draining => io::ErrorKind::ConnectionRefused,
            Refused::Io(_) => io::ErrorKind::Other,
        };
        io::Error::new(kind, refused.to_string())
    }
}

impl Workers {
    /// Starts `threads` of them (`objm-loop-N`), at least one.
    pub(super) fn start(store: Store, threads: u8, max_connections: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            store,
            connections: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            loops: threads,
            accepted: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            protocol_errors: AtomicU64::new(0),
            send_failures: AtomicU64::new(0),
        });
        // Dropping it ends those that were started, should a later one fail.
        let mut workers = Workers { shared, loops: Vec::new(), max_connections };
        for i in 0..threads {
            let (event_loop, inbox) = EventLoop::new(workers.shared.clone())?;
            let handle = thread::Builder::new().name(format!("objm-loop-{i}")).spawn(move || event_loop.run())?;
            workers.loops.push(Worker { inbox, thread: Mutex::new(Some(handle)) });
        }
        Ok(workers)
    }

    /// Has a connected stream socket served, whoever is at its other end.
    pub(super) fn adopt(&self, socket: OwnedFd) -> Result<(), Refused> {
        let adopted = self.try_adopt(socket);
        if adopted.is_err() {
            self.shared.refused.fetch_add(1, Relaxed);
        }
        adopted
    }

    fn try_adopt(&self, socket: OwnedFd) -> Result<(), Refused> {
        if self.shared.draining.load(Relaxed) {
            return Err(Refused::Draining);
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true).map_err(Refused::Io)?;
        if self.shared.connections.fetch_add(1, Relaxed) >= self.max_connections {
            self.shared.connections.fetch_sub(1, Relaxed);
            return Err(Refused::TooMany(self.max_connections));
        }
        let turn = self.shared.accepted.fetch_add(1, Relaxed);
        if let Some(worker) = self.loops.get(turn % self.loops.len().max(1)) {
            worker.inbox.connection(stream);
        }
        Ok(())
    }

    /// Lets the connections finish what they have begun for at most `timeout`, and ends the threads.
    pub(super) fn drain(&self, timeout: Duration) {
        self.shared.draining.store(true, Relaxed);
        let deadline = Instant::now() + timeout;
        for worker in &self.loops {
            worker.inbox.drain(deadline);
        }
        for worker in &self.loops {
            if let Some(thread) = worker.thread.lock().take() {
                join(thread);
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.drain(Duration::ZERO);
    }
}

pub(super) fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        log::error!("a thread of the server has panicked");
    }
}
