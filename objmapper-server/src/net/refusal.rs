//! Connections that are not served: their first request is answered with the reason, then they are closed.
//!
//! A client whose connection is closed without an answer cannot tell a refusal from an old peer, or from a failing one. So a
//! refused connection is answered: HELLO as usual, then its first request with a status and a text that names the remedy
//! (EXTENSIONS.md, "Refusals"). At most [`MAX_REFUSING`] connections wait for that, each for at most [`MAX_WAIT`].

use std::time::Duration;

use objmapper_proto::Status;

/// The maximum number of refused connections that wait for their first request; further ones are closed at once.
pub(super) const MAX_REFUSING: usize = 64;
/// The maximum time that a refused connection waits for its first request.
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
    NoCredentials(nix::errno::Errno),
}

impl Refusal {
    /// Returns the status of the reply. `known` is true if the client understands [`Status::Refused`].
    pub(super) fn status(&self, known: bool) -> Status {
        match self {
            Refusal::NotAllowed { .. } | Refusal::NoCredentials(_) if known => Status::Refused,
            _ => Status::Unavailable,
        }
    }
}
