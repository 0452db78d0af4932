//! The counters of a client. Each is an atomic of its own; a snapshot is not of one instant.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ProtocolError};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The live counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// A snapshot of the counters of a [`Client`](crate::Client). All begin at 0 and only grow.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Requests sent.
    requests,
    /// Answers received, late ones too.
    answers,
    /// Answers that came after their caller had given up; their descriptors were closed.
    late_answers,
    /// Descriptors received.
    fds,
    /// Connections made.
    connects,
    /// Attempts to connect that failed.
    connect_failures,
    /// Times that the store was reached again after it had been lost.
    reconnects,
    /// Connections lost, for any reason.
    disconnects,
    /// HELLOs that ended in V2 without extensions or in V1.
    fallbacks,
    /// Sessions begun.
    sessions,
    /// Sessions that the store no longer knew.
    sessions_lost,
    /// Calls whose deadline passed.
    timeouts,
    /// Connections lost because the peer closed or reset them.
    closed,
    /// Connections lost because a system call failed.
    io_errors,
    /// Connections dropped because the peer sent bytes that are not a frame, or an answer without a request.
    protocol_errors,
    /// Connections dropped because an announced descriptor did not come.
    missing_fds,
    /// Connections dropped because descriptors came that no reply had announced.
    extra_fds,
    /// Boards that were not mapped, because they were malformed or not sealed.
    boards_refused,
    /// Calls refused at once because there was no connection.
    down,
    /// Answers with a status other than OK and "not found".
    refusals,
    /// Pins, leases and private objects given back in the background.
    deferred,
    /// Pins, leases and private objects dropped unsent because their session was gone or the queue was full.
    deferred_dropped,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts a lost connection, by its reason.
    pub(crate) fn lost(&self, why: &Error) {
        Self::add(&self.disconnects, 1);
        match why {
            Error::Closed => Self::add(&self.closed, 1),
            Error::Io { .. } => Self::add(&self.io_errors, 1),
            Error::Protocol(p) => {
                Self::add(&self.protocol_errors, 1);
                match p {
                    ProtocolError::FdCount { .. } | ProtocolError::NoFdByte(_) | ProtocolError::FdsCutOff => {
                        Self::add(&self.missing_fds, 1);
                    }
                    ProtocolError::ExtraFds(_) => Self::add(&self.extra_fds, 1),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
