//! Answers: the kind that a request expects, and what was received.

use objmapper_proto::Status;
use objmapper_proto::ext::{BatchReply, Entry, EntryFlags, LeaseOutcome, Op, Reply};

use crate::counters::Counters;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::socket::Fds;

/// The kind of answer that a request expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// An extension reply to this operation.
    Ext(Op),
    /// A V1 or V2 response, with a descriptor if it is OK.
    Fd,
    /// A V1 or V2 response without a descriptor.
    NoFd,
}

/// An answer that owns its data, with its descriptors.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) body: Body,
    pub(crate) fds: Fds,
}

/// The content of an answer. The frequent kinds are decoded on receipt and need no allocation.
#[derive(Debug)]
pub(crate) enum Body {
    /// The answer to LOOKUP and COMMIT.
    Entry(Entry),
    /// Any other extension payload, which the caller decodes.
    Payload(Box<[u8]>),
    /// The message of a status other than OK.
    Failure(Box<str>),
    /// A V1 or V2 response.
    V01,
}

impl Answer {
    /// Returns the answer if its status is OK, else the error.
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

    /// Returns the objects that it reports as pinned for the session, each with its index: that of the operation in a BATCH.
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

    /// Decodes the payload of an OK answer.
    pub(crate) fn reply(&self, op: Op) -> Result<Reply<'_>> {
        match &self.body {
            Body::Payload(payload) => Ok(Reply::parse(op, payload)?),
            Body::Entry(entry) => Ok(Reply::Entry(*entry)),
            _ => Err(ProtocolError::WrongKind.into()),
        }
    }
}
