//! The configuration of a second level.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::regex::Regexes;

/// How the store is reached.
#[derive(Clone)]
pub enum Connect {
    /// Connect to the socket at this path.
    Socket(PathBuf),
    /// Call this for each connection: it returns the client's end of a stream socket.
    With(Arc<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>),
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => f.debug_tuple("Socket").field(path).finish(),
            Self::With(_) => f.write_str("With"),
        }
    }
}

/// A change that an operator should know of. Reported once per change, not once per request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The store can be used; the text says how.
    Up(String),
    /// The store cannot be used; the text says why. Every look-up is a miss until it is up.
    Down(String),
    /// The store is down, and answers that it refuses this cache; the text names the remedy.
    Refused(String),
    /// The store accepts fewer connections than configured; the text says why.
    FewConnections(String),
    /// The ban log was lost, or a process died before its announced ban was recorded: all older records are
    /// invalidated.
    BansReset(String),
    /// A ban could not be recorded yet; the text says why. Look-ups are misses until it is.
    BanDelayed(String),
    /// A record that does not validate was removed from the store.
    Damaged(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(text) => write!(f, "objmapper is up: {text}"),
            Self::Down(text) => write!(f, "objmapper is down: {text}"),
            Self::Refused(text) => write!(f, "objmapper refuses this cache: {text}"),
            Self::FewConnections(text) => write!(f, "objmapper gives too few connections: {text}"),
            Self::BansReset(text) => write!(f, "all older records are invalidated: {text}"),
            Self::BanDelayed(text) => write!(f, "a ban is not recorded yet: {text}"),
            Self::Damaged(text) => write!(f, "a damaged record was removed: {text}"),
        }
    }
}

/// Receives each [`Notice`], on any thread. It must not block, and must not call this crate.
pub type Log = Arc<dyn Fn(&Notice) + Send + Sync>;

/// The configuration of a second level.
#[derive(Clone)]
pub struct Config {
    /// How the store is reached.
    pub store: Connect,
    /// The deadline of a call to the store, connecting included. A wait for another cache's fetch is not included.
    pub call_timeout: Duration,
    /// Connections to hold open (1 to 64).
    pub connections: usize,
    /// The prefix of this cache's URIs, such as `cdn://example.com`; the scheme is left out. Caches with the same
    /// prefix share their records and their bans.
    pub prefix: Vec<u8>,
    /// Compiles the regular expressions of bans.
    pub regexes: Arc<dyn Regexes>,
    /// Receives notices for the operator.
    pub log: Log,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("store", &self.store)
            .field("call_timeout", &self.call_timeout)
            .field("connections", &self.connections)
            .field("prefix", &self.prefix.escape_ascii().to_string())
            .finish_non_exhaustive()
    }
}
