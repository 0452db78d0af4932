//! The configuration of a second level.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::invalidation::entry::{Follower, Origin};
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
    /// The invalidation log was lost, or a process died before its announced ban was recorded: all older records are
    /// invalidated.
    LogReset(String),
    /// A ban could not be recorded yet; the text says why. Look-ups are misses until it is.
    LogDelayed(String),
    /// A process of a newer version wrote the invalidation log, of this version of the format. Look-ups are misses.
    LogNewer(u8),
    /// More than half of the invalidation log's limit is in use.
    LogFilling {
        /// The bytes in use.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The oldest entries of the invalidation log were dropped. All records that are older than they are, are
    /// invalidated.
    LogTrimmed {
        /// The number of entries.
        entries: u64,
        /// The limit in bytes.
        limit: u64,
    },
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
            Self::LogReset(text) => write!(f, "all older records are invalidated: {text}"),
            Self::LogDelayed(text) => write!(f, "a ban is not recorded yet: {text}"),
            Self::LogNewer(version) => write!(
                f,
                "the invalidation log has version {version}, which is newer than this build's: nothing is looked up; \
                 update this build, or give it another prefix"
            ),
            Self::LogFilling { bytes, limit } => write!(
                f,
                "the invalidation log holds {bytes} bytes, its limit is {limit}: beyond three quarters of that the \
                 oldest entries are dropped, and with them all older records; raise log_size, or invalidate less often"
            ),
            Self::LogTrimmed { entries, limit } => write!(
                f,
                "all records older than the {entries} oldest invalidations are invalidated, because the invalidation \
                 log has reached its limit of {limit} bytes: raise log_size, or invalidate less often"
            ),
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
    /// The names of the response headers that hold tags, such as `xkey`. Their words are the record's tags.
    pub tags: Vec<Vec<u8>>,
    /// The most bytes of the invalidation log. Beyond it the oldest entries are dropped, and with them all records that
    /// are older than they are.
    pub log_limit: u64,
    /// Names this instance in the entries that it appends; `None`: a random one. Instances of one process that have the same
    /// origin are one to a follower: it is given nothing that one of them appended.
    pub origin: Option<Origin>,
    /// Since when the follower wants to know what was invalidated, seconds since 1970; `None`: from now on, because it has
    /// nothing yet.
    pub since: Option<f64>,
    /// Receives what other instances invalidated; `None`: not of interest.
    pub follower: Option<Arc<dyn Follower>>,
    /// Receives notices for the operator.
    pub log: Log,
}

impl Config {
    /// The default of [`Self::log_limit`].
    pub const LOG_LIMIT: u64 = 16 << 20;
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
