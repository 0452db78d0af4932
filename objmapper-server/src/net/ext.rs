//! Carries out extension requests in the store, and maps the store's errors to statuses of the wire.
//!
//! EXTENSIONS.md of the crate `objmapper-proto` defines the requests. ATTACH, DETACH, LEASE and LOST change the connection as
//! well (`connection::extended`). A failure is a status and a message; the connection continues.

use std::time::Duration;

use objmapper_proto::ext::{
    self, Attached, BatchReply, Entry, ListPage, Reply, Request, Stat, TierLimits, TierStat, Want,
};
use objmapper_proto::limits::{MAX_FDS, MAX_PAYLOAD};
use objmapper_proto::{ObjUri, Status};

use super::handover::{Handover, Revocable};
use crate::store::{Commit, Grant, LeaseCallback, LeaseOutcome, Session, Store, StoreError};

/// The maximum number of entries of a listing page.
const MAX_PAGE: usize = 1024;

/// The status of a failed request, and a message for the peer's log.
pub(super) type Failure = (Status, String);

/// The reply to an operation other than LEASE, without its descriptors and grants.
pub(super) enum Done {
    Reply(Reply<'static>),
    /// A listing, from which the reply borrows until it is encoded.
    Page(crate::store::Listing),
}

type Answered = Result<(Done, Handover), Failure>;

/// Returns the status by which the server answers a request that failed with this error.
pub fn status_of(error: &StoreError) -> Status {
    match error {
        StoreError::InvalidUri(_) | StoreError::Invalid(_) | StoreError::NoSuchTier(_) => Status::InvalidRequest,
        StoreError::NotFound => Status::NotFound,
        StoreError::Conflict(_) => Status::Conflict,
        StoreError::Busy => Status::Busy,
        StoreError::UnknownSession => Status::UnknownSession,
        StoreError::UnknownHandle => Status::UnknownHandle,
        StoreError::Full { .. } | StoreError::NoSpace { .. } => Status::Full,
        StoreError::TooMany { .. } => Status::Unavailable,
        StoreError::Io { source, .. } => match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Status::Unavailable,
            Some(libc::ENOMEM) => Status::Memory,
            _ => Status::Storage,
        },
        StoreError::Index(_) => Status::Storage,
        StoreError::Setup(_) => Status::Internal,
    }
}

pub(super) fn failure(error: StoreError) -> Failure {
    (status_of(&error), error.to_string())
}

/// Carries out ATTACH: begins or joins a session. `connection` returns the connection's number in that session, if the client
/// asked for one.
pub(super) fn attach(
    store: &Store,
    token: ext::Token,
    directories: bool,
    board: bool,
    connection: impl FnOnce(&Session) -> Option<u64>,
) -> Result<(Session, Reply<'static>, Handover), Failure> {
    let token = (token != ext::Token::NEW).then_some(token);
    let session = store.session(token).map_err(failure)?;
    match attached(store, &session, (directories, board), connection) {
        Ok((reply, handover)) => {
            // A client that does not receive the token of its new session cannot use the session.
            let new = token.is_none().then(|| Revocable::session(session.clone()));
            Ok((session, reply, handover.with_revocable(new)))
        }
        Err(failure) => {
            if token.is_none() {
                session.end();
            }
            Err(failure)
        }
    }
}

fn attached(
    store: &Store,
    session: &Session,
    (directories, board): (bool, bool),
    connection: impl FnOnce(&Session) -> Option<u64>,
) -> Result<(Reply<'static>, Handover), Failure> {
    let stats = store.stats();
    let mut fds = Vec::new();
    if directories {
        for tier in &stats.tiers {
            let dir = store.tier_dir(tier.tier).map_err(failure)?;
            let dir = dir.try_clone_to_owned().map_err(StoreError::io("duplicating a directory"));
            fds.push(dir.map_err(failure)?);
        }
    }
    if board {
        let board = store.board().try_clone_to_owned().map_err(StoreError::io("duplicating the board"));
        fds.push(board.map_err(failure)?);
    }
    let reply = Reply::Attached(Attached {
        instance: store.instance(),
        session: session.token(),
        version: ext::VERSION,
        tiers: stats.tiers.iter().map(|t| TierLimits { tier: t.tier, limit: t.limit, used: t.used }).collect(),
        connection: connection(session),
    });
    Ok((reply, Handover::of(fds)))
}

/// Carries out an operation other than ATTACH, DETACH, LEASE and BATCH.
pub(super) fn perform(store: &Store, session: &Session, request: &Request<'_>) -> Answered {
    match request {
        Request::Lookup { uri, want } => lookup(store, session, uri, *want),
        Request::Create { tier, length, uri } => {
            let uri = uri.as_ref().map(ObjUri::as_bytes);
            let private = session.create(*tier, *length, uri).map_err(failure)?;
            let tier = private.tier();
            let Some((handle, writer)) = private.into_outgoing() else {
                return Err((Status::Internal, "a private object without its file".into()));
            };
            let handover = Handover::of_writer(writer);
            Ok((Done::Reply(Reply::Created { handle, tier }), handover))
        }
        Request::Reserve { handle, length } => empty(session.reserve(*handle, *length)),
        Request::Commit(request) => {
            let commit = Commit {
                uri: request.uri.as_bytes(),
                length: request.length,
                expires: request.expires,
                if_version: request.if_version.raw(),
                pin: request.want.pin,
                ephemeral: request.ephemeral,
                fence: request.fence,
            };
            let (entry, fds) = if request.want.fd {
                let (entry, fd) = session.commit_open(request.handle, commit).map_err(failure)?;
                (entry, vec![fd])
            } else {
                (session.commit(request.handle, commit).map_err(failure)?, Vec::new())
            };
            Ok((Done::Reply(Reply::Entry(entry)), Handover::of(fds)))
        }
        Request::Abort { handle } => empty(session.abort(*handle)),
        Request::Delete { if_version, uri, evict: false } => empty(store.delete(uri.as_bytes(), if_version.raw())),
        Request::Delete { if_version, uri, evict: true } => empty(store.evict(uri.as_bytes(), if_version.raw())),
        Request::Stat => Ok((Done::Reply(stat(store)), Handover::none())),
        Request::List { prefix, cursor, max } => {
            if *max == 0 {
                return Err((Status::InvalidRequest, "a page of no entries".into()));
            }
            let page = store.list(prefix, cursor, usize::from(*max).min(MAX_PAGE));
            Ok((Done::Page(page), Handover::none()))
        }
        Request::Unlease { lease, refuse } => empty(session.unlease(*lease, Duration::from_millis((*refuse).into()))),
        Request::Release { objects } => {
            session.release(objects);
            empty(Ok(()))
        }
        Request::Attach { .. } | Request::Detach | Request::Lost { .. } | Request::Lease { .. } | Request::Batch(_) => {
            Err((Status::Internal, "this operation belongs to the connection".into()))
        }
    }
}

fn empty(result: Result<(), StoreError>) -> Answered {
    result.map_err(failure)?;
    Ok((Done::Reply(Reply::Empty), Handover::none()))
}

fn lookup(store: &Store, session: &Session, uri: &ObjUri<'_>, want: Want) -> Answered {
    let (entry, fds) = if want.fd && want.pin {
        // In two steps, so that a pin does not stay where there is no descriptor for it.
        let Some(entry) = session.lookup(uri.as_bytes(), true).map_err(failure)? else {
            return Err(failure(StoreError::NotFound));
        };
        match store.open_body(entry.tier, entry.object) {
            Ok(fd) => Some((entry, vec![fd])),
            Err(e) => {
                session.withdraw(Grant::Pin(entry.object));
                if e.kind() == std::io::ErrorKind::NotFound {
                    // Removes the object from the index if its file is missing.
                    session.open(uri.as_bytes(), false).map_err(failure)?;
                    return Err(failure(StoreError::NotFound));
                }
                return Err(failure(StoreError::io("opening a body")(e)));
            }
        }
    } else if want.fd {
        let found = session.open(uri.as_bytes(), want.pin).map_err(failure)?;
        found.map(|(entry, fd)| (entry, vec![fd]))
    } else {
        session.lookup(uri.as_bytes(), want.pin).map_err(failure)?.map(|entry| (entry, Vec::new()))
    }
    .ok_or_else(|| failure(StoreError::NotFound))?;
    Ok((Done::Reply(Reply::Entry(entry)), Handover::of(fds)))
}

fn stat(store: &Store) -> Reply<'static> {
    let stats = store.stats();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Reply::Stat(Stat {
        tiers: stats
            .tiers
            .iter()
            .map(|t| TierStat {
                tier: t.tier,
                limit: t.limit,
                used: t.used,
                pinned: t.pinned,
                objects: t.objects,
                evictions: t.evictions,
            })
            .collect(),
        sessions: count(stats.sessions),
        private: count(stats.private),
        leases: count(stats.leases),
    })
}

/// Builds the reply to LIST. The page ends early where its payload would pass the limit.
pub(super) fn page(listing: &crate::store::Listing) -> Reply<'_> {
    const ROOM: usize = MAX_PAYLOAD - crate::store::MAX_URI - 64;
    let mut size = 0;
    let mut items = Vec::with_capacity(listing.entries.len());
    for (uri, entry) in &listing.entries {
        size += 2 + uri.len() + Entry::WIRE_LEN;
        if size > ROOM {
            break;
        }
        // The store checked each URI by the same rules.
        if let Ok(uri) = ObjUri::parse(&uri[..]) {
            items.push((uri, *entry));
        }
    }
    let all = listing.last && size <= ROOM;
    let last = items.len().checked_sub(1).map(|at| &listing.entries[at].0[..]);
    let cursor = if all { &[][..] } else { last.unwrap_or_default() };
    Reply::List(ListPage { items, cursor })
}

/// Carries out the operations of a batch, in order. A failed operation does not affect the other operations.
pub(super) fn batch(store: &Store, session: &Session, requests: &[Request<'_>]) -> (Reply<'static>, Handover) {
    let mut fds: Vec<std::os::fd::OwnedFd> = Vec::new();
    let mut replies = Vec::with_capacity(requests.len());
    for request in requests {
        let op = request.op();
        let wants_fd = match request {
            Request::Lookup { want, .. } => want.fd,
            Request::Commit(commit) => commit.want.fd,
            _ => false,
        };
        let answer = if wants_fd && fds.len() >= MAX_FDS {
            Err((Status::Unavailable, format!("a batch brings at most {MAX_FDS} descriptors")))
        } else {
            perform(store, session, request)
        };
        replies.push(match answer {
            Ok((Done::Reply(reply), handover)) => {
                let nfds = u8::try_from(handover.count()).unwrap_or(0);
                fds.append(&mut handover.into_owned());
                BatchReply::Done { op, nfds, reply }
            }
            Ok((Done::Page(_), _)) => {
                let (status, message) = (Status::InvalidRequest, "no listing in a batch".into());
                BatchReply::Failed { op, status, message }
            }
            Err((status, message)) => BatchReply::Failed { op, status, message },
        });
    }
    (Reply::Batch(replies), Handover::of(fds))
}

/// Returns what a reply to `request` gives its client.
pub(super) fn grants(request: &Request<'_>, reply: &Reply<'_>) -> Vec<Grant> {
    let mut grants = Vec::new();
    match (request, reply) {
        (Request::Batch(requests), Reply::Batch(replies)) => {
            for (request, reply) in requests.iter().zip(replies) {
                if let Request::Release { objects } = request {
                    // The pins of earlier operations in the batch are released.
                    grants.retain(|grant| !matches!(grant, Grant::Pin(object) if objects.contains(object)));
                }
                if let BatchReply::Done { reply, .. } = reply {
                    grants.extend(grant(request, reply));
                }
            }
        }
        (request, reply) => grants.extend(grant(request, reply)),
    }
    grants
}

fn grant(request: &Request<'_>, reply: &Reply<'_>) -> Option<Grant> {
    match (request, reply) {
        (_, Reply::Created { handle, .. }) => Some(Grant::Private(*handle)),
        (_, Reply::Lease(ext::LeaseOutcome::Granted { lease })) => Some(Grant::Lease(*lease)),
        (Request::Lookup { want, .. } | Request::Commit(ext::Commit { want, .. }), Reply::Entry(entry)) => {
            want.pin.then_some(Grant::Pin(entry.object))
        }
        _ => None,
    }
}

/// Returns what the outcome of a LEASE gives its client.
pub(super) fn lease_grant(outcome: &Result<LeaseOutcome, StoreError>, pin: bool) -> Option<Grant> {
    match outcome {
        Ok(LeaseOutcome::Granted(lease)) => Some(Grant::Lease(*lease)),
        Ok(LeaseOutcome::Present(entry)) if pin => Some(Grant::Pin(entry.object)),
        _ => None,
    }
}

/// Carries out LEASE until its outcome is known or it waits.
pub(super) fn lease(
    session: &Session,
    request: (u32, u32, &ObjUri<'_>, Want),
    callback: LeaseCallback,
) -> Result<LeaseOutcome, Failure> {
    let (wait, hold, uri, want) = request;
    let (wait, hold) = (Duration::from_millis(wait.into()), Duration::from_millis(hold.into()));
    session.lease(uri.as_bytes(), wait, hold, want.pin, callback).map_err(failure)
}

/// Builds the reply to a LEASE whose outcome is known.
pub(super) fn leased(
    session: &Session,
    outcome: Result<LeaseOutcome, StoreError>,
    fd: bool,
) -> Result<(Reply<'static>, Handover), Failure> {
    let mut handover = Handover::none();
    let reply = match outcome.map_err(failure)? {
        LeaseOutcome::Present(entry) => {
            if fd {
                let file = session.store().open_body(entry.tier, entry.object);
                // The object was evicted in between: the outcome is that of a fetch that has not ended in time.
                let gone = |e| (Status::Timeout, format!("the object went again at once: {e}"));
                handover = Handover::of(vec![file.map_err(gone)?]);
            }
            ext::LeaseOutcome::Present(entry)
        }
        LeaseOutcome::Granted(lease) => ext::LeaseOutcome::Granted { lease },
        LeaseOutcome::Refused(retry) => {
            let retry = u32::try_from(retry.as_millis()).unwrap_or(u32::MAX).max(1);
            ext::LeaseOutcome::Refused { retry }
        }
        LeaseOutcome::TimedOut => return Err((Status::Timeout, "no outcome in time".into())),
        LeaseOutcome::Waiting(_) => {
            return Err((Status::Internal, "still waiting is not an outcome".into()));
        }
    };
    Ok((Reply::Lease(reply), handover))
}
