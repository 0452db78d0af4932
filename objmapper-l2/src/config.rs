//! What a second level is told when it is opened.

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
    /// By the socket at this path.
    Socket(PathBuf),
    /// By connections that this makes: the client's end of a stream socket each.
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

/// Something that an operator should know. Told once per change, not once per request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The store can be used: the text says how.
    Up(String),
    /// The store cannot be used: the text says why. Every look-up is a miss until it is up.
    Down(String),
    /// The store gives fewer connections than are wanted: the text says why.
    FewConnections(String),
    /// The ban log was lost, or somebody who was adding to it died: everything that was published before is invalidated.
    BansReset(String),
    /// A ban could not be recorded yet: the text says why. Look-ups are misses until it is.
    BanDelayed(String),
    /// A record that does not validate was taken out of the store.
    Damaged(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(text) => write!(f, "objmapper is up: {text}"),
            Self::Down(text) => write!(f, "objmapper is down: {text}"),
            Self::FewConnections(text) => write!(f, "objmapper gives too few connections: {text}"),
            Self::BansReset(text) => write!(f, "all older records are invalidated: {text}"),
            Self::BanDelayed(text) => write!(f, "a ban is not recorded yet: {text}"),
            Self::Damaged(text) => write!(f, "a damaged record was removed: {text}"),
        }
    }
}

/// Is told of each [`Notice`], on any thread; it must be quick and must not call back.
pub type Log = Arc<dyn Fn(&Notice) + Send + Sync>;

/// What a second level is told when it is opened.
#[derive(Clone)]
pub struct Config {
    /// How its store is reached.
    pub store: Connect,
    /// How long any call to the store may take, connecting included. Waiting for another's fetch comes on top.
    pub call_timeout: Duration,
    /// Connections to hold open (1 to 64).
    pub connections: usize,
    /// What the URIs of this cache have in common, as `cdn://example.com`: the scheme is left out. Caches with the same
    /// prefix share their records and their bans.
    pub prefix: Vec<u8>,
    /// Compiles the regular expressions of bans.
    pub regexes: Arc<dyn Regexes>,
    /// Is told what an operator should know.
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
