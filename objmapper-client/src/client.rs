//! The client: its start and end, its state, and the function by which every call is made.
//!
//! A client has two threads: `objm-keeper` makes and watches connections (`pool`), `objm-deferred` gives back pins, leases and
//! private objects (`deferred_worker`). Every call has a deadline, and fails at once while there is no connection.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use objmapper_proto::Status;
use objmapper_proto::ext::Request;
use parking_lot::Mutex;

use crate::answer::{Answer, Expect};
use crate::config::{Config, Connector};
use crate::connection::Connection;
use crate::counters::Snapshot;
use crate::deferred::{Deferred, Item};
use crate::deferred_worker;
use crate::error::{Error, OpName, Result};
use crate::pool::Pool;
use crate::session::Session;
use crate::state::ConnectionState;

/// A client of one store. Cheap to clone; every method may be called from many threads at once.
///
/// The connections and the client's threads end when the last clone and the last guard made by one
/// ([`PrivateObject`](crate::PrivateObject), [`Lease`](crate::Lease)) are dropped.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) pool: Arc<Pool>,
    pub(crate) deferred: Arc<Deferred>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.inner.pool.config).field("state", &self.state()).finish()
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|e| Error::Io { what: "start a thread", errno: e.raw_os_error().unwrap_or_default() })
}

impl Client {
    /// Returns the options of a client of the store at this socket; [`Config::build`] or [`Config::connect`] makes the client.
    ///
    /// ```
    /// use objmapper_client::{Client, ConnectionState};
    /// use std::time::Duration;
    ///
    /// let client = Client::builder("/nonexistent/objmapper.sock")
    ///     .connections(2)
    ///     .call_timeout(Duration::from_millis(200))
    ///     .build()?;
    /// assert!(matches!(client.state(), ConnectionState::Down { .. }));
    /// # Ok::<(), objmapper_client::Error>(())
    /// ```
    pub fn builder(socket: impl Into<PathBuf>) -> Config {
        Config::new(socket)
    }

    /// Returns the options of a client whose connected sockets `connector` makes, such as those of a server in the same process.
    /// It is called for each connection, and again after one was lost.
    pub fn builder_with(connector: Connector) -> Config {
        Config::with(connector)
    }

    pub(crate) fn start(config: Config) -> Result<Self> {
        let pool = Pool::new(config)?;
        let deferred = Arc::clone(&pool.deferred);
        let inner = Inner { pool, deferred, threads: Mutex::default() };
        let pool = Arc::clone(&inner.pool);
        inner.threads.lock().push(spawn("objm-keeper", move || pool.keep())?);
        let (pool, deferred) = (Arc::clone(&inner.pool), Arc::clone(&inner.deferred));
        // If this fails, dropping `inner` ends the first thread.
        inner.threads.lock().push(spawn("objm-deferred", move || deferred_worker::run(&deferred, &pool))?);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the state of the connections.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.inner.pool.state()
    }

    /// Returns true if the store can be reached. Costs an atomic load.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.inner.pool.is_up()
    }

    /// Returns a number that grows with every [`Event`](crate::Event). Costs an atomic load.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.pool.generation()
    }

    /// Returns the session; `None` before the first connection and with a peer without extensions. While the store is down it is
    /// the last one.
    #[must_use]
    pub fn session(&self) -> Option<Arc<Session>> {
        self.inner.pool.session()
    }

    /// Waits until the store can be reached.
    ///
    /// # Errors
    /// [`Error::Down`] if it cannot within `timeout`.
    pub fn wait_connected(&self, timeout: Duration) -> Result<ConnectionState> {
        self.inner.pool.wait_up(Instant::now() + timeout)?;
        Ok(self.state())
    }

    /// Ends the session at once, with its pins, leases, private and ephemeral objects, and closes the
    /// connections. The client, every clone of it, stays down from then on, whatever this returns: calls fail
    /// with [`Error::Down`], and nothing reconnects. Bodies that are open or mapped stay readable.
    ///
    /// Without this call, the store keeps the session for its grace time after the last connection was closed.
    ///
    /// # Errors
    /// [`Error::Down`] if there is no connection: the session ends with the grace time.
    /// [`Error::Unsupported`] from a peer without extensions, which has no sessions. Else see [`Error`].
    pub fn detach(&self) -> Result<()> {
        let Inner { pool, deferred, .. } = &*self.inner;
        pool.retire();
        deferred.stop();
        let outcome = match self.ask(&Request::Detach, self.deadline()) {
            // DETACH was repeated after its first answer was lost, or the store has ended the session by itself.
            Err(Error::Status { status: Status::UnknownSession, .. }) => Ok(()),
            outcome => outcome.map(|_| ()),
        };
        pool.stop();
        outcome
    }

    pub(crate) fn defer(&self, session: u64, item: Item) {
        self.inner.deferred.push(session, std::iter::once(item), &self.inner.pool.counters);
    }

    /// Drops pins of a session in the background: never blocks, whatever the state of the store. Does nothing for a
    /// session that has ended, and with it its pins.
    ///
    /// Pins do not nest, so an object that was released must not be pinned again until
    /// [`Client::flush_deferred`] has returned true.
    pub fn release(&self, session: u64, objects: &[u64]) {
        let items = objects.iter().map(|&object| Item::Release(object));
        self.inner.deferred.push(session, items, &self.inner.pool.counters);
    }

    /// Waits until everything that is given back in the background (pins by [`Client::release`]; dropped
    /// [`PrivateObject`](crate::PrivateObject)s and [`Lease`](crate::Lease)s) has reached the store. Returns false if it has not
    /// within `timeout`.
    pub fn flush_deferred(&self, timeout: Duration) -> bool {
        self.inner.deferred.wait_empty(Instant::now() + timeout)
    }

    /// Returns a snapshot of the client's counters.
    #[must_use]
    pub fn counters(&self) -> Snapshot {
        self.inner.pool.counters.snapshot()
    }

    /// Returns the deadline of a call that begins now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.inner.pool.config.call_timeout
    }

    /// Makes an extension call. Returns its answer, whose status is OK, and the connection.
    pub(crate) fn call(&self, request: &Request<'_>, deadline: Instant) -> Result<(Answer, Arc<Connection>)> {
        let op = request.op();
        let connection = self.inner.pool.pick_extended(OpName::Ext(op))?;
        let answer = self.call_on(&connection, request, deadline)?;
        Ok((answer, connection))
    }

    pub(crate) fn call_on(&self, connection: &Connection, request: &Request<'_>, deadline: Instant) -> Result<Answer> {
        let op = request.op();
        let ticket = connection.submit(Expect::Ext(op), deadline, |id, out| request.encode(id, out))?;
        let answer = connection.wait(&ticket, deadline)?;
        answer.checked(OpName::Ext(op), &self.inner.pool.counters)
    }

    /// Makes a call as [`Self::call`] does, for an idempotent request: repeats it once on another connection if the first
    /// one was lost.
    pub(crate) fn ask(&self, request: &Request<'_>, deadline: Instant) -> Result<(Answer, Arc<Connection>)> {
        match self.call(request, deadline) {
            Err(Error::Closed | Error::Io { .. }) if self.is_up() => self.call(request, deadline),
            result => result,
        }
    }
}

impl Config {
    /// Makes a client that connects in the background; see [`Client::state`].
    ///
    /// # Errors
    /// If a thread of the client cannot be started.
    pub fn build(self) -> Result<Client> {
        Client::start(self)
    }

    /// Makes a client and waits until it has connected.
    ///
    /// # Errors
    /// If it has not connected within the connect timeout, or a thread cannot be started.
    pub fn connect(self) -> Result<Client> {
        let timeout = self.connect_timeout;
        let client = self.build()?;
        client.wait_connected(timeout)?;
        Ok(client)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.deferred.stop();
        self.pool.stop();
        let me = std::thread::current().id();
        for thread in self.threads.get_mut().drain(..) {
            // A listener may own the last clone; a thread cannot join itself.
            if thread.thread().id() != me && thread.join().is_err() {
                log::error!("a background thread of the objmapper client panicked");
            }
        }
    }
}
