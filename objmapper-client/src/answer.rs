//! What a request has coming, and what came.

use objmapper_proto::ext::{BatchReply, Entry, EntryFlags, LeaseOutcome, Op, Reply};
use objmapper_proto::{Segment, Status};

use crate::counters::Counters;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::socket::Fds;

/// What kind of answer a request has coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// An extension reply to this operation.
    Ext(Op),
    /// A V1 or V2 response, with a descriptor if it is OK.
    Fd,
    /// A V1 or V2 response without one.
    NoFd,
    /// A V2 segmented response.
    Segmented,
}

/// An answer, free of the buffer that it came in.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) body: Body,
    pub(crate) fds: Fds,
}

/// What an answer says. The frequent ones are understood where they arrive and need no allocation.
#[derive(Debug)]
pub(crate) enum Body {
    /// To LOOKUP and COMMIT.
    Entry(Entry),
    /// Any other extension payload, understood by the caller.
    Payload(Box<[u8]>),
    /// The message of a status other than OK.
    Failure(Box<str>),
    /// A V1 or V2 response.
    V01,
    /// A segmented response.
    Segmented { segments: Vec<Segment>, inline: Box<[u8]> },
}

impl Answer {
    /// Itself, if its status is OK.
    pub(crate) fn checked(self, op: OpName, counters: &Counters) -> Result<Self> {
        if self.status == Status::Ok {
            return Ok(self);
        }
        if self.status != Status::NotFound {
            Counters::add(&counters.refusals, 1);
        }
        let message = match self.body {
            Body::Failure(message) => message,
            _ => Box::default(),
        };
        Err(Error::Status { op, status: self.status, message })
    }

    /// The objects that it reports as pinned for the session, each with its place: in a BATCH that of the operation.
    pub(crate) fn pinned(&self, expect: Expect) -> Vec<(usize, u64)> {
        let pinned = |at: usize, entry: &Entry| {
            entry.flags.contains(EntryFlags::PINNED).then_some((at, entry.object)).into_iter().collect()
        };
        match (&self.body, expect) {
            (Body::Entry(entry), _) => pinned(0, entry),
            (Body::Payload(payload), Expect::Ext(op @ (Op::Lease | Op::Batch))) => match Reply::parse(op, payload) {
                Ok(Reply::Lease(LeaseOutcome::Present(entry))) => pinned(0, &entry),
                Ok(Reply::Batch(replies)) => {
                    let entries = replies.iter().enumerate().filter_map(|(at, reply)| match reply {
                        BatchReply::Done { reply: Reply::Entry(entry), .. } => Some((at, entry)),
                        _ => None,
                    });
                    entries.flat_map(|(at, entry)| -> Vec<_> { pinned(at, entry) }).collect()
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Understands the payload of an OK answer.
    pub(crate) fn reply(&self, op: Op) -> Result<Reply<'_>> {
        match &self.body {
            Body::Payload(payload) => Ok(Reply::parse(op, payload)?),
            Body::Entry(entry) => Ok(Reply::Entry(*entry)),
            _ => Err(ProtocolError::WrongKind.into()),
        }
    }
}
