//! What a client's user can know of its connections.

use std::time::Instant;

use objmapper_proto::ext::Token;

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// V1.
    V1,
    /// V2 without extensions.
    V2,
    /// V2 with extensions.
    Extended,
}

/// Whether the store can be reached, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Connected with extensions.
    Extended {
        /// The session, see [`Session::id`](crate::Session::id).
        session: u64,
        /// How many connections are open.
        connections: usize,
    },
    /// Connected to a peer without extensions.
    V01 {
        /// What it speaks.
        version: Version,
        /// How many connections are open.
        connections: usize,
    },
    /// Not connected; reconnection runs in the background.
    Down {
        /// Since when.
        since: Instant,
    },
}

impl ConnectionState {
    /// Whether calls are sent at all.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !matches!(self, Self::Down { .. })
    }
}

/// A change that a client's user may have to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first connection of a peer without extensions.
    UpV01 {
        /// What it speaks.
        version: Version,
    },
    /// A session begins: the first, or a new one because the store no longer knows the one before.
    SessionStarted {
        /// Its number, see [`Session::id`](crate::Session::id).
        session: u64,
        /// The store's instance.
        instance: Token,
        /// Whether there was a session before, which is lost with its pins, leases, private and ephemeral
        /// objects.
        lost_previous: bool,
        /// Whether the store's memory tier has begun anew since then.
        instance_changed: bool,
    },
    /// The same session goes on after the store had not been reached for a while.
    SessionResumed {
        /// Its number.
        session: u64,
        /// The store's instance.
        instance: Token,
        /// Whether the store's memory tier has begun anew: what was pinned there is gone, what was pinned on
        /// disk is not.
        instance_changed: bool,
    },
    /// The last connection is lost.
    Down,
}
