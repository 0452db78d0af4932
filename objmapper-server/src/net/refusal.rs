//! Connections that are not served: they are told why in their own protocol, and closed.
//!
//! A client that is merely hung up on cannot tell a refusal from an old peer, or from one in trouble. So a refused
//! connection is answered: HELLO as usual, then its first request with a status and a text that names the remedy
//! (EXTENSIONS.md, "Refusals"). Few of them are kept for that, for a short time.

use std::time::Duration;

use objmapper_proto::Status;

/// Most refused connections that wait for their first request at a time; more are closed at once.
pub(super) const MAX_REFUSING: usize = 64;
/// How long one of them waits.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(1);

/// Why a connection is not served. The text names the option that changes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "uid {uid}, gid {gid} is on no allow-list of objmapperd; remedy: start it with --allow-uid {uid} or --allow-gid {gid}"
    )]
    NotAllowed { uid: u32, gid: u32 },
    #[error("all {0} connections of objmapperd are in use; remedy: start it with a larger --max-connections")]
    TooMany(usize),
    #[error("the server is shutting down")]
    Draining,
    #[error("its credentials are unknown: {0}")]
    NoCredentials(rustix::io::Errno),
}

impl Refusal {
    /// The status of the reply; `known`: the client understands [`Status::Refused`].
    pub(super) fn status(&self, known: bool) -> Status {
        match self {
            Refusal::NotAllowed { .. } | Refusal::NoCredentials(_) if known => Status::Refused,
            _ => Status::Unavailable,
        }
    }
}
