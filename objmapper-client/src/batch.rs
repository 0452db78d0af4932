//! Batches: several operations in one frame.
//!
//! Operations are divided into frames that keep the protocol's limits. The frames go one behind the other on one connection, so
//! that the operations are carried out in order.

use std::sync::Arc;

use objmapper_proto::ext::{BatchReply, Commit, IfVersion, Op, Reply, Request, Want};
use objmapper_proto::limits::{MAX_BATCH, MAX_FDS, MAX_PAYLOAD, MAX_RELEASE};
use objmapper_proto::{ObjUri, Status};

use crate::answer::{Answer, Expect};
use crate::client::Client;
use crate::connection::{Connection, Ticket};
use crate::counters::Counters;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::objects::Found;
use crate::private::{CommitOptions, PrivateObject};

/// An upper bound for the bytes that an operation's head and fixed fields add to its variable ones.
const OP_OVERHEAD: usize = 64;

/// The outcome of one operation.
#[derive(Debug)]
pub enum BatchOutcome {
    /// A look-up found the object, or a commit published it.
    Found(Found),
    /// A look-up or a delete found no such object.
    NotFound,
    /// A delete, abort or release was carried out.
    Done,
}

/// Operations that are sent together; made by [`Client::batch`].
#[derive(Debug)]
pub struct Batch<'a> {
    client: Client,
    requests: Vec<Request<'a>>,
    /// Private objects, each with the index of its request.
    objects: Vec<(usize, Subject<'a>)>,
}

/// A private object that a batch commits or aborts.
#[derive(Debug)]
enum Subject<'a> {
    Committed(&'a mut PrivateObject),
    Aborted(PrivateObject),
}

impl Subject<'_> {
    fn object(&mut self) -> &mut PrivateObject {
        match self {
            Self::Committed(object) => object,
            Self::Aborted(object) => object,
        }
    }
}

impl Client {
    /// Returns an empty batch. Its operations are sent in as few frames as possible and carried out in order. A failed operation
    /// does not affect the rest.
    #[must_use]
    pub fn batch(&self) -> Batch<'_> {
        Batch { client: self.clone(), requests: Vec::new(), objects: Vec::new() }
    }
}

impl<'a> Batch<'a> {
    /// Adds a look-up.
    #[must_use]
    pub fn lookup(mut self, uri: &ObjUri<'a>, want: Want) -> Self {
        self.requests.push(Request::Lookup { uri: uri.clone(), want });
        self
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(mut self, uri: &ObjUri<'a>, if_version: IfVersion) -> Self {
        self.requests.push(Request::Delete { if_version, uri: uri.clone(), evict: false });
        self
    }

    /// Adds the release of pins; at most 65,535.
    #[must_use]
    pub fn release(mut self, objects: &[u64]) -> Self {
        for chunk in objects.chunks(MAX_RELEASE) {
            self.requests.push(Request::Release { objects: chunk.to_vec() });
        }
        self
    }

    /// Adds a [commit](PrivateObject::commit), and closes the object's descriptor. The object's state afterwards is
    /// as after that call, see [`PrivateObject::is_used_up`].
    #[must_use]
    pub fn commit(
        mut self,
        object: &'a mut PrivateObject,
        uri: &ObjUri<'a>,
        length: u64,
        options: CommitOptions,
    ) -> Self {
        let request = object.commit_request(uri.clone(), length, options);
        self.objects.push((self.requests.len(), Subject::Committed(object)));
        self.requests.push(request);
        self
    }

    /// Adds an [abort](PrivateObject::abort). If it fails, or the batch is not run, the object is aborted in
    /// the background.
    #[must_use]
    pub fn abort(mut self, mut object: PrivateObject) -> Self {
        drop(object.take_fd());
        self.requests.push(Request::Abort { handle: object.handle() });
        self.objects.push((self.requests.len() - 1, Subject::Aborted(object)));
        self
    }

    /// Sends the operations and waits. Returns one outcome for each, in order. Operations that do not fit into one frame are sent
    /// in several, one behind the other on one connection.
    ///
    /// # Errors
    /// See [`Error`]; it is then unknown which operations were carried out. None was if a private object had been
    /// committed before ([`Status::UnknownHandle`]) or its session is gone ([`Error::SessionLost`]).
    pub fn run(mut self) -> Result<Vec<Result<BatchOutcome>>> {
        if self.requests.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = self.client.deadline();
        let connection = self.client.inner.pool.pick_extended(OpName::Ext(Op::Batch))?;
        for (place, subject) in &mut self.objects {
            subject.object().check(self.requests[*place].op(), connection.session_id())?;
        }
        let mut tickets: Vec<(Ticket, Vec<Want>)> = Vec::new();
        for frame in frames(std::mem::take(&mut self.requests)) {
            let wants = frame.iter().map(want_of).collect();
            let request = Request::Batch(frame);
            let ticket = connection.submit(Expect::Ext(Op::Batch), deadline, |id, out| request.encode(id, out))?;
            tickets.push((ticket, wants));
        }
        let counters = &self.client.inner.pool.counters;
        let mut outcomes = Vec::new();
        let taken = tickets.iter().try_for_each(|(ticket, wants)| {
            let answer = connection.wait(ticket, deadline)?;
            let answer = answer.checked(OpName::Ext(Op::Batch), counters)?;
            unpack(answer, wants, &connection, counters, &mut outcomes)
        });
        if let Err(why) = taken {
            // The caller gets no outcome, so what the answers gave is given back.
            tickets.iter().for_each(|(ticket, wants)| connection.forget(ticket, wants));
            let wants = tickets.iter().flat_map(|(_, wants)| wants);
            let pinned: Vec<u64> = outcomes.iter().zip(wants).filter_map(pinned).collect();
            self.client.release(connection.session_id(), &pinned);
            return Err(why);
        }
        for (place, subject) in &mut self.objects {
            // `unpack` returns one outcome for each request.
            if let Some(outcome) = outcomes.get(*place) {
                subject.object().settled(outcome);
            }
        }
        Ok(outcomes)
    }
}

fn pinned((outcome, want): (&Result<BatchOutcome>, &Want)) -> Option<u64> {
    match outcome {
        Ok(BatchOutcome::Found(found)) => want.pin.then_some(found.entry.object),
        _ => None,
    }
}

fn want_of(request: &Request<'_>) -> Want {
    match request {
        Request::Lookup { want, .. } | Request::Commit(Commit { want, .. }) => *want,
        _ => Want::ENTRY,
    }
}

fn size_of(request: &Request<'_>) -> usize {
    OP_OVERHEAD
        + match request {
            Request::Lookup { uri, .. } | Request::Delete { uri, .. } | Request::Commit(Commit { uri, .. }) => {
                uri.as_bytes().len()
            }
            Request::Release { objects } => 8 * objects.len(),
            _ => 0,
        }
}

/// Divides the operations so that each part keeps the limits of a frame.
fn frames(requests: Vec<Request<'_>>) -> Vec<Vec<Request<'_>>> {
    let mut frames = Vec::new();
    let mut frame = Vec::new();
    let (mut size, mut fds) = (OP_OVERHEAD, 0);
    for request in requests {
        let (more, brings) = (size_of(&request), usize::from(want_of(&request).fd));
        if frame.len() == MAX_BATCH || size + more > MAX_PAYLOAD || fds + brings > MAX_FDS {
            frames.push(std::mem::take(&mut frame));
            (size, fds) = (OP_OVERHEAD, 0);
        }
        size += more;
        fds += brings;
        frame.push(request);
    }
    frames.push(frame);
    frames
}

fn unpack(
    mut answer: Answer,
    wants: &[Want],
    connection: &Arc<Connection>,
    counters: &Counters,
    outcomes: &mut Vec<Result<BatchOutcome>>,
) -> Result<()> {
    let mut fds = std::mem::take(&mut answer.fds).into_iter();
    let Reply::Batch(replies) = answer.reply(Op::Batch)? else {
        return Err(ProtocolError::WrongKind.into());
    };
    if replies.len() != wants.len() {
        return Err(ProtocolError::WrongKind.into());
    }
    for (reply, want) in replies.into_iter().zip(wants) {
        outcomes.push(match reply {
            BatchReply::Done { nfds, reply: Reply::Entry(entry), .. } => {
                let mine = fds.by_ref().take(nfds.into()).collect();
                Found::new(entry, mine, *want, connection.session_id()).map(BatchOutcome::Found)
            }
            BatchReply::Done { .. } => Ok(BatchOutcome::Done),
            BatchReply::Failed { status: Status::NotFound, .. } => Ok(BatchOutcome::NotFound),
            BatchReply::Failed { op, status, message } => {
                Counters::add(&counters.refusals, 1);
                Err(Error::Status { op: OpName::Ext(op), status, message: message.into() })
            }
        });
    }
    match fds.count() {
        0 => Ok(()),
        extra => Err(ProtocolError::ExtraFds(extra).into()),
    }
}
