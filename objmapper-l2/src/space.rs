//! A second level: the records of one prefix in one store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use objmapper_client::{UriError, UriSpace};

use crate::config::Config;
use crate::counters::Counters;
use crate::finding::Finding;
use crate::key::Key;
use crate::outage::Outage;
use crate::request::Lookup;

/// Why a second level cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The prefix is empty, or too long.
    #[error("URI prefix: {0}")]
    Prefix(#[from] UriError),
    /// A thread cannot be started.
    #[error(transparent)]
    Client(#[from] objmapper_client::Error),
}

/// Whether and how the store can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// With all that it takes.
    Up,
    /// By a peer of protocol v0.1: no waiting for another's fetch, no adoption, small bodies only.
    UpV01,
    /// Not at all: since when.
    Down(Duration),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::UpV01 => f.write_str("up (v0.1)"),
            Self::Down(since) => write!(f, "down for {}s", since.as_secs()),
        }
    }
}

/// The records of one prefix in one store. One per process, store and prefix; for many threads.
#[derive(Debug)]
pub struct L2 {
    space: UriSpace,
    prefix: Vec<u8>,
}

impl L2 {
    /// Opens it. The store need not be there yet.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        let _ = config;
        todo!()
    }

    /// Whether and how the store can be used.
    #[must_use]
    pub fn state(&self) -> State {
        todo!()
    }

    /// Whether the store can be used: an atomic load.
    #[must_use]
    pub fn is_up(&self) -> bool {
        todo!()
    }

    /// The store's instance, by which another user of the same store knows it; `None` while it is unknown, and of a v0.1
    /// peer.
    #[must_use]
    pub fn instance(&self) -> Option<[u8; 16]> {
        todo!()
    }

    /// The key of a request. `extra` is what else tells it from others.
    #[must_use]
    pub fn key(&self, host: &[u8], url: &[u8], extra: Option<&[u8]>) -> Key {
        Key::of_request(&self.space, &self.prefix, host, url, extra)
    }

    /// The key that has this text; see [`Key::text`].
    #[must_use]
    pub fn key_from_text(&self, text: &[u8]) -> Key {
        Key::of_text(&self.space, &self.prefix, text)
    }

    /// Looks for what answers a request.
    pub fn find(&self, lookup: &Lookup<'_>, counters: &Counters) -> Finding {
        let _ = (lookup, counters);
        todo!()
    }

    /// Deletes the record of a key with all its variants; whether there was one. When it returns, nobody finds what was
    /// there, and what was asked for before is not published any more.
    ///
    /// # Errors
    /// The store was of no help: the record may still be there.
    pub fn purge(&self, key: &Key, counters: &Counters) -> Result<bool, Outage> {
        let _ = (key, counters);
        todo!()
    }

    /// Announces a ban, as varnishd encodes it. When it returns, nobody finds what it outlaws. Never blocks and never
    /// fails: it is recorded in the background, and until it is every look-up waits or is a miss.
    pub fn announce_ban(&self, spec: &[u8]) {
        let _ = spec;
        todo!()
    }

    /// Announced bans that are not recorded yet.
    #[must_use]
    pub fn pending_bans(&self) -> usize {
        todo!()
    }
}
