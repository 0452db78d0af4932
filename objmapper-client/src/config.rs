//! The options of a client.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::state::Event;

/// The protocol versions that a client tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// The extensions, else V2, else V1.
    #[default]
    Auto,
    /// V2 without extensions.
    V2,
    /// V1 only.
    V1,
}

/// A function that returns a connected Unix stream socket. It must return soon: the client's connect timeout
/// does not interrupt it.
pub type Connector = Arc<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// The way in which the store is reached.
#[derive(Clone)]
pub(crate) enum Target {
    Path(PathBuf),
    Connector(Connector),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Connector(_) => f.write_str("(in this process)"),
        }
    }
}

type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// Options of a [`Client`](crate::Client); see [`Client::builder`](crate::Client::builder).
#[derive(Clone)]
pub struct Config {
    pub(crate) target: Target,
    pub(crate) connections: usize,
    pub(crate) pipeline: u16,
    pub(crate) call_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) protocol: Protocol,
    pub(crate) listener: Option<Listener>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("target", &format_args!("{}", self.target))
            .field("connections", &self.connections)
            .field("pipeline", &self.pipeline)
            .field("call_timeout", &self.call_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_backoff", &self.max_backoff)
            .field("protocol", &self.protocol)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Defaults: 2 connections, 256 requests outstanding on each, 1 s for a call and for connecting, at most
    /// 500 ms between attempts to reconnect.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::to(Target::Path(socket.into()))
    }

    /// Returns the options of [`Self::new`] for a store that is reached through the sockets of `connector`, one for each
    /// connection.
    pub(crate) fn with(connector: Connector) -> Self {
        Self::to(Target::Connector(connector))
    }

    fn to(target: Target) -> Self {
        Self {
            target,
            connections: 2,
            pipeline: 256,
            call_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            max_backoff: Duration::from_millis(500),
            protocol: Protocol::Auto,
            listener: None,
        }
    }

    /// Sets the number of connections (1 to 64). With extensions few connections serve many threads; a v0.1 peer
    /// answers one request at a time on each.
    #[must_use]
    pub fn connections(mut self, n: usize) -> Self {
        self.connections = n.clamp(1, 64);
        self
    }

    /// Sets the maximum number of outstanding requests on a connection (1 to 1000). The peer may grant fewer.
    #[must_use]
    pub fn pipeline(mut self, depth: u16) -> Self {
        self.pipeline = depth.clamp(1, objmapper_proto::limits::MAX_PIPELINE);
        self
    }

    /// Sets the timeout of a call, the wait for its descriptor included: a v0.1 server that is out of
    /// descriptors answers OK and never sends one.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Sets the timeout of connecting, HELLO and ATTACH included.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the maximum pause between attempts to reconnect (at most 1 s).
    #[must_use]
    pub fn max_backoff(mut self, pause: Duration) -> Self {
        self.max_backoff = pause.clamp(Duration::from_millis(1), Duration::from_secs(1));
        self
    }

    /// The protocol versions that a client tries.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets a callback for every [`Event`], which takes the place of the client's own log lines. It is called in order, at once, on
    /// the thread that notices the event, for one event after the other. It must return soon, and may call only
    /// [`state`](crate::Client::state), [`session`](crate::Client::session), [`generation`](crate::Client::generation) and
    /// [`counters`](crate::Client::counters) of the client.
    #[must_use]
    pub fn on_event(mut self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }
}
