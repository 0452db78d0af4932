//! Replies: decodes and encodes the payload of each operation's reply.

use super::frame::{ReplyFrame, cut_message, message};
use super::op::Op;
use super::request::put_uri;
use super::types::{Entry, Tier, TierLimits, TierStat, Token};
use crate::error::{DecodeError, EncodeError, Malformed};
use crate::limits::{MAX_BATCH, MAX_CURSOR, MAX_FDS, MAX_PAYLOAD, MAX_TIERS, MAX_URI};
use crate::status::Status;
use crate::uri::ObjUri;
use crate::wire::{Put, Reader, framed, limited, payload};

/// Answer to ATTACH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Changes when the store starts again with an empty memory tier.
    pub instance: Token,
    /// The session's token.
    pub session: Token,
    /// Version of the extensions that the server speaks, [`super::VERSION`].
    pub version: u8,
    /// The tiers; descriptors of their directories come in the same order, if they were asked for.
    pub tiers: Vec<TierLimits>,
    /// The connection's number in the store's process, if the client asked for it and the server knows the flag.
    pub connection: Option<u64>,
}

/// Answer to STAT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The tiers.
    pub tiers: Vec<TierStat>,
    /// Number of sessions.
    pub sessions: u32,
    /// Number of private objects of all sessions.
    pub private: u32,
    /// Number of held leases.
    pub leases: u32,
}

/// Answer to LIST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage<'a> {
    /// In byte order of the URIs.
    pub items: Vec<(ObjUri<'a>, Entry)>,
    /// The cursor of the next page; empty if this is the last page.
    pub cursor: &'a [u8],
}

/// Answer to LEASE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseOutcome {
    /// The URI is published (0).
    Present(Entry),
    /// The caller gets the lease (1).
    Granted {
        /// The lease's number, for UNLEASE.
        lease: u64,
    },
    /// There is nothing to share (2).
    Refused {
        /// The time for which that holds, in milliseconds.
        retry: u32,
    },
}

/// The outcome of one operation of a BATCH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchReply<'a> {
    /// The operation was carried out.
    Done {
        /// LOOKUP and COMMIT: [`Reply::Entry`], else [`Reply::Empty`].
        op: Op,
        /// The number of the batch's descriptors that belong to it (0 or 1).
        nfds: u8,
        /// The operation's reply.
        reply: Reply<'a>,
    },
    /// The operation failed.
    Failed {
        /// The operation.
        op: Op,
        /// The reason.
        status: Status,
        /// A message of at most [`MAX_MESSAGE`](crate::limits::MAX_MESSAGE) bytes.
        message: String,
    },
}

/// The payload of a reply with status OK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The reply to ATTACH.
    Attached(Attached),
    /// The reply to LOOKUP and COMMIT.
    Entry(Entry),
    /// The reply to CREATE; its descriptor is open for reading and writing.
    Created {
        /// The private object's handle.
        handle: u64,
        /// The private object's tier.
        tier: Tier,
    },
    /// The reply to RESERVE, ABORT, DELETE, UNLEASE, RELEASE, DETACH and LOST.
    Empty,
    /// The reply to STAT.
    Stat(Stat),
    /// The reply to LIST.
    List(ListPage<'a>),
    /// The reply to LEASE.
    Lease(LeaseOutcome),
    /// The reply to BATCH: one outcome for each operation, in order.
    Batch(Vec<BatchReply<'a>>),
}

fn read_tiers<T>(
    r: &mut Reader<'_>,
    read: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = limited("tiers", r.u8()?.into(), MAX_TIERS)?;
    (0..count).map(|_| read(r)).collect()
}

impl<'a> Reply<'a> {
    /// Decodes the payload of a reply to `op` with status OK.
    ///
    /// # Errors
    /// The first defect of the payload.
    pub fn parse(op: Op, bytes: &'a [u8]) -> Result<Self, Malformed> {
        payload("reply", bytes, |r| {
            Ok(match op {
                Op::Attach => Self::Attached(Attached {
                    instance: Token(r.token()?),
                    session: Token(r.token()?),
                    version: r.u8()?,
                    tiers: read_tiers(r, TierLimits::read)?,
                    connection: if r.left() == 0 { None } else { Some(r.u64()?) },
                }),
                Op::Lookup | Op::Commit => Self::Entry(Entry::read(r)?),
                Op::Create => Self::Created { handle: r.u64()?, tier: Tier::try_from(r.u8()?)? },
                Op::Reserve | Op::Abort | Op::Delete | Op::Unlease | Op::Release | Op::Detach | Op::Lost => Self::Empty,
                Op::Stat => Self::Stat(Stat {
                    tiers: read_tiers(r, TierStat::read)?,
                    sessions: r.u32()?,
                    private: r.u32()?,
                    leases: r.u32()?,
                }),
                Op::List => Self::List(read_list(r)?),
                Op::Lease => Self::Lease(match r.u8()? {
                    0 => LeaseOutcome::Present(Entry::read(r)?),
                    1 => LeaseOutcome::Granted { lease: r.u64()? },
                    2 => LeaseOutcome::Refused { retry: r.u32()? },
                    other => return Err(Malformed::Unknown { field: "lease outcome", value: other.into() }.into()),
                }),
                Op::Batch => Self::Batch(read_batch(r)?),
            })
        })
    }

    /// Appends it to `out` as a frame with status OK, followed by `nfds` descriptors (which, and whose
    /// [`FD_BYTE`](crate::FD_BYTE), the caller sends).
    ///
    /// # Errors
    /// If a part of it is over its limit; `out` is as it was.
    pub fn encode(&self, id: u32, op: Op, nfds: u8, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        EncodeError::check("descriptors", nfds.into(), MAX_FDS)?;
        let start = out.len();
        ReplyFrame::head(id, op.code(), Status::Ok, nfds, out);
        framed(out, |out| self.write(out), |n| EncodeError::check("payload", n, MAX_PAYLOAD))
            .inspect_err(|_| out.truncate(start))
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Attached(a) => {
                EncodeError::check("tiers", a.tiers.len(), MAX_TIERS)?;
                out.put(&a.instance.0);
                out.put(&a.session.0);
                out.put_u8(a.version);
                out.put_u8(a.tiers.len() as u8); // at most MAX_TIERS
                a.tiers.iter().for_each(|t| t.write(out));
                if let Some(connection) = a.connection {
                    out.put_u64(connection);
                }
            }
            Self::Entry(entry) => entry.write(out),
            Self::Created { handle, tier } => {
                out.put_u64(*handle);
                out.put_u8(tier.code());
            }
            Self::Empty => {}
            Self::Stat(s) => {
                EncodeError::check("tiers", s.tiers.len(), MAX_TIERS)?;
                out.put_u8(s.tiers.len() as u8); // at most MAX_TIERS
                s.tiers.iter().for_each(|t| t.write(out));
                out.put_u32(s.sessions);
                out.put_u32(s.private);
                out.put_u32(s.leases);
            }
            Self::List(page) => {
                EncodeError::check("listed entries", page.items.len(), u16::MAX.into())?;
                EncodeError::check("cursor", page.cursor.len(), MAX_CURSOR)?;
                out.put_u16(page.items.len() as u16); // checked above
                for (uri, entry) in &page.items {
                    put_uri(out, uri);
                    entry.write(out);
                }
                out.put_u16(page.cursor.len() as u16); // at most MAX_CURSOR
                out.put(page.cursor);
            }
            Self::Lease(outcome) => match outcome {
                LeaseOutcome::Present(entry) => {
                    out.put_u8(0);
                    entry.write(out);
                }
                LeaseOutcome::Granted { lease } => {
                    out.put_u8(1);
                    out.put_u64(*lease);
                }
                LeaseOutcome::Refused { retry } => {
                    out.put_u8(2);
                    out.put_u32(*retry);
                }
            },
            Self::Batch(replies) => {
                EncodeError::check("batched operations", replies.len(), MAX_BATCH)?;
                out.put_u16(replies.len() as u16); // at most MAX_BATCH
                replies.iter().try_for_each(|reply| reply.write(out))?;
            }
        }
        Ok(())
    }
}

impl BatchReply<'_> {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Done { op, nfds, reply } => {
                out.put(&[op.code(), Status::Ok.code(), *nfds]);
                framed(out, |out| reply.write(out), |n| EncodeError::check("payload", n, MAX_PAYLOAD))
            }
            Self::Failed { op, status, message } => {
                out.put(&[op.code(), status.code(), 0]);
                let message = cut_message(message);
                out.put_u32(message.len() as u32); // at most MAX_MESSAGE
                out.put(message.as_bytes());
                Ok(())
            }
        }
    }
}

fn read_list<'a>(r: &mut Reader<'a>) -> Result<ListPage<'a>, DecodeError> {
    let count = usize::from(r.u16()?);
    // Bound the allocation by what is there: the shortest item is a URI of two bytes and its entry.
    let mut items = Vec::with_capacity(count.min(r.left() / (2 + 2 + Entry::WIRE_LEN)));
    for _ in 0..count {
        let uri = ObjUri::parse(r.bytes16("URI", MAX_URI)?).map_err(Malformed::Uri)?;
        items.push((uri, Entry::read(r)?));
    }
    Ok(ListPage { items, cursor: r.bytes16("cursor", MAX_CURSOR)? })
}

fn read_batch<'a>(r: &mut Reader<'a>) -> Result<Vec<BatchReply<'a>>, DecodeError> {
    let count = limited("batched operations", r.u16()?.into(), MAX_BATCH)?;
    let mut replies = Vec::with_capacity(count);
    for _ in 0..count {
        let op = Op::try_from(r.u8()?)?;
        if !op.batchable() {
            return Err(Malformed::Misplaced { field: "operation in a batch", value: op.code().into() }.into());
        }
        let (status, nfds) = (Status::try_from(r.u8()?)?, r.u8()?);
        let len = limited("payload", r.u32()?.into(), MAX_PAYLOAD)?;
        let bytes = r.bytes(len)?;
        // One object has one body, and a failure has none.
        limited("descriptors of a batched operation", nfds.into(), usize::from(status == Status::Ok))?;
        replies.push(match status {
            Status::Ok => BatchReply::Done { op, nfds, reply: Reply::parse(op, bytes)? },
            status => BatchReply::Failed { op, status, message: message(bytes) },
        });
    }
    Ok(replies)
}
