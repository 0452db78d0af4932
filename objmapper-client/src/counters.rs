//! Counters of a client, by kind.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ProtocolError};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The live counters. Each is on its own; a snapshot is not one instant's.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// The counters of a [`Client`](crate::Client), all from 0 and growing.
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
    /// Connections lost, for whatever reason.
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
    /// Connections dropped because the peer sent what is no frame or answers nothing.
    protocol_errors,
    /// Connections dropped because an announced descriptor did not come.
    missing_fds,
    /// Connections dropped because descriptors came that nobody had announced.
    extra_fds,
    /// Boards that were none, or not sealed, and were not mapped.
    boards_refused,
    /// Calls refused at once because there was no connection.
    down,
    /// Answers with a status other than OK and "not found".
    refusals,
    /// Pins, leases and private objects given up in the background.
    deferred,
    /// The same, dropped because their session was gone or their queue was full.
    deferred_dropped,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts why a connection was lost.
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
