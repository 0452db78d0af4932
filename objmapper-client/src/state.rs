//! The state of a client's connections, and the events that change it.

use std::time::Instant;

use objmapper_proto::ext::Token;

use crate::error::Error;

/// The protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// V1, without HELLO.
    V1,
    /// V2 without extensions.
    V2,
    /// V2 with extensions.
    Extended,
}

/// The state of a client's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Connected with extensions.
    Extended {
        /// The session, see [`Session::id`](crate::Session::id).
        session: u64,
        /// The number of open connections.
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
        /// The time at which the last connection was lost, or the client was made.
        since: Instant,
    },
}

impl ConnectionState {
    /// Returns true if calls are sent.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !matches!(self, Self::Down { .. })
    }
}

/// A change that a client's user may have to act on. An outage begins with one [`Event::Down`], and ends with one of the events by
/// which the store is up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first connection of a peer without extensions.
    UpV01 {
        /// What it speaks.
        version: Version,
    },
    /// A session begins: the first one, or a new one because the store no longer knows the former one.
    SessionStarted {
        /// Its number, see [`Session::id`](crate::Session::id).
        session: u64,
        /// The store's instance.
        instance: Token,
        /// True if there was a former session, which is lost with its pins, leases, private and ephemeral
        /// objects.
        lost_previous: bool,
        /// True if the store's memory tier has started empty since then.
        instance_changed: bool,
    },
    /// The same session goes on after the store had not been reached for a while.
    SessionResumed {
        /// The session's number.
        session: u64,
        /// The store's instance.
        instance: Token,
        /// True if the store's memory tier has started empty: its pinned objects are gone, those of the disk tier
        /// are not.
        instance_changed: bool,
    },
    /// An outage begins: the last connection is lost, or the first attempts to connect have failed.
    Down {
        /// Why the connection was lost, or cannot be made.
        why: Error,
    },
    /// The store answers, and has refused this client, or a further connection of it, for a second. Reported once until a connection
    /// is made, unless it is the reason of [`Event::Down`].
    Refused {
        /// The store's status and message, which names the remedy.
        why: Error,
        /// The number of open connections; 0 if the store is down.
        connections: usize,
    },
}
