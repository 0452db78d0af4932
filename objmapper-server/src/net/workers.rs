//! The threads that serve connections, and the admission and distribution of connected sockets among them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Shared;
use super::event_loop::EventLoop;
use super::inbox::Inbox;
use super::refusal::{MAX_REFUSING, Refusal};
use crate::store::Store;

/// The event loops of a server. Dropping it ends them and closes their connections.
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

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match &refusal {
            Refusal::TooMany(_) => io::ErrorKind::QuotaExceeded,
            Refusal::Draining => io::ErrorKind::ConnectionRefused,
            Refusal::NotAllowed { .. } | Refusal::NoCredentials(_) => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, refusal.to_string())
    }
}

impl Workers {
    /// Starts `threads` event loops (`objm-loop-N`), at least one.
    pub(super) fn start(store: Store, threads: u8, max_connections: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared::new(store, threads));
        // If a later thread fails to start, dropping this ends the threads that were started.
        let mut workers = Workers { shared, loops: Vec::new(), max_connections };
        for i in 0..threads {
            let (event_loop, inbox) = EventLoop::new(workers.shared.clone())?;
            let handle = thread::Builder::new().name(format!("objm-loop-{i}")).spawn(move || event_loop.run())?;
            workers.loops.push(Worker { inbox, thread: Mutex::new(Some(handle)) });
        }
        Ok(workers)
    }

    /// Serves a connected stream socket, without a check of its peer.
    pub(super) fn adopt(&self, socket: OwnedFd) -> io::Result<()> {
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        self.admit().inspect_err(|_| {
            self.shared.refused.fetch_add(1, Relaxed);
        })?;
        self.serve(stream);
        Ok(())
    }

    /// Counts one more connection, for [`Self::serve`].
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        if self.shared.draining.load(Relaxed) {
            return Err(Refusal::Draining);
        }
        if self.shared.connections.fetch_add(1, Relaxed) >= self.max_connections {
            self.shared.connections.fetch_sub(1, Relaxed);
            return Err(Refusal::TooMany(self.max_connections));
        }
        Ok(())
    }

    /// Serves a non-blocking stream that was admitted.
    pub(super) fn serve(&self, stream: UnixStream) {
        if let Some(worker) = self.next() {
            worker.inbox.connection(stream);
        }
    }

    /// Passes a non-blocking stream to a loop that answers it with `refusal`. Beyond [`MAX_REFUSING`] it is closed at once.
    pub(super) fn refuse(&self, stream: UnixStream, refusal: Refusal) {
        self.shared.refused.fetch_add(1, Relaxed);
        if let Some(left_out) = self.shared.refusal_log.admit() {
            log::warn!("a connection is refused: {refusal}{left_out}");
        }
        if self.shared.refusing.fetch_add(1, Relaxed) >= MAX_REFUSING {
            self.shared.refusing.fetch_sub(1, Relaxed);
        } else if let Some(worker) = self.next() {
            worker.inbox.refused(stream, refusal);
        }
    }

    fn next(&self) -> Option<&Worker> {
        let turn = self.shared.accepted.fetch_add(1, Relaxed);
        self.loops.get(turn % self.loops.len().max(1))
    }

    /// Lets the connections finish what they have begun within `timeout`, then ends the threads.
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
