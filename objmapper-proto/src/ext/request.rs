//! Requests: decodes and encodes the payload of each operation's request.

use super::board::{Fence, SHARDS};
use super::frame::RequestFrame;
use super::op::Op;
use super::types::{IfVersion, Tier, Token, Want};
use crate::error::{DecodeError, EncodeError, Malformed};
use crate::limits::{MAX_BATCH, MAX_CURSOR, MAX_PAYLOAD, MAX_RELEASE, MAX_URI};
use crate::status::Status;
use crate::uri::ObjUri;
use crate::wire::{Put, Reader, framed, limited, payload, reserved};

/// The parameters of COMMIT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit<'a> {
    /// The private object's handle, from CREATE.
    pub handle: u64,
    /// Its file's size, in bytes.
    pub length: u64,
    /// Milliseconds since 1970 after which the object may be dropped; 0 is never.
    pub expires: i64,
    /// The version that the URI must have for the commit to succeed.
    pub if_version: IfVersion,
    /// The object's URI.
    pub uri: ObjUri<'a>,
    /// Requests a descriptor, a pin, or both.
    pub want: Want,
    /// If true, the object is deleted with its session (flag 4).
    pub ephemeral: bool,
    /// The value that a fence must have for the commit to succeed (flag 8). It need not be the fence of `uri`.
    pub fence: Option<Fence>,
}

/// An extension request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Begin ([`Token::NEW`]) or resume a session.
    Attach {
        /// The session's token.
        session: Token,
        /// Send the tiers' directories (flag 1).
        directories: bool,
        /// Send the board (flag 2).
        board: bool,
        /// Send the connection's number (flag 4), for [`Request::Lost`].
        number: bool,
    },
    /// Look up without creating.
    Lookup {
        /// What.
        uri: ObjUri<'a>,
        /// A descriptor, a pin.
        want: Want,
    },
    /// Create a private object.
    Create {
        /// The tier; `None` lets the store choose.
        tier: Option<Tier>,
        /// Bytes to reserve.
        length: u64,
        /// The URI that COMMIT will name; `None` if it is not known yet.
        uri: Option<ObjUri<'a>>,
    },
    /// Set a private object's reservation.
    Reserve {
        /// Which.
        handle: u64,
        /// Bytes in total.
        length: u64,
    },
    /// Publish a private object.
    Commit(Commit<'a>),
    /// Abort a private object.
    Abort {
        /// Which.
        handle: u64,
    },
    /// Delete an object.
    Delete {
        /// The version that the URI must have for the delete to succeed.
        if_version: IfVersion,
        /// What.
        uri: ObjUri<'a>,
        /// If true (flag 1), the body is of no more use but the URI is not invalidated: its fence stays, and private objects
        /// created for it can be committed.
        evict: bool,
    },
    /// Sizes and counts of the store.
    Stat,
    /// A page of URIs.
    List {
        /// The prefix of the URIs; empty for all. It is not an [`ObjUri`], as it may end with `/`.
        prefix: &'a [u8],
        /// The cursor of the page before; empty for the first page.
        cursor: &'a [u8],
        /// The maximum number of entries.
        max: u16,
    },
    /// Wait for a URI, or get the lease to fetch it.
    Lease {
        /// The maximum waiting time in milliseconds.
        wait: u32,
        /// The time after which a granted lease ends, in milliseconds.
        hold: u32,
        /// What.
        uri: ObjUri<'a>,
        /// A descriptor, a pin, if it is present.
        want: Want,
    },
    /// End a lease.
    Unlease {
        /// Which.
        lease: u64,
        /// The time for which further LEASE requests are refused, in milliseconds; 0 grants the next waiter.
        refuse: u32,
    },
    /// Drop pins.
    Release {
        /// Of which objects.
        objects: Vec<u64>,
    },
    /// Several operations, carried out in order. Operations that are not [`Op::batchable`] are refused.
    Batch(Vec<Request<'a>>),
    /// End the session.
    Detach,
    /// A connection of the session was lost: what its unread replies gave is given back, and nothing more of it is
    /// carried out.
    Lost {
        /// Its number, from the reply to ATTACH.
        connection: u64,
        /// Extension replies that the client read on it, not counting ATTACH's and those before it.
        read: u64,
    },
}

/// The reason why a complete request cannot be decoded. The connection stays; [`BadRequest::status`] is
/// the status of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// An operation of a later version.
    #[error("operation {0:#04x} is unknown")]
    UnknownOp(u8),
    /// The payload or a flag is malformed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl BadRequest {
    /// Returns the status for the reply.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::UnknownOp(_) => Status::Unsupported,
            Self::Malformed(_) => Status::InvalidRequest,
        }
    }
}

const PIN_BITS: u8 = 0x03;
const COMMIT_EPHEMERAL: u8 = 0x04;
const COMMIT_FENCE: u8 = 0x08;
const ATTACH_DIRECTORIES: u8 = 0x01;
const ATTACH_BOARD: u8 = 0x02;
const ATTACH_NUMBER: u8 = 0x04;
const DELETE_EVICT: u8 = 0x01;

fn read_uri<'a>(r: &mut Reader<'a>) -> Result<ObjUri<'a>, DecodeError> {
    let bytes = r.bytes16("URI", MAX_URI)?;
    Ok(ObjUri::parse(bytes).map_err(Malformed::Uri)?)
}

fn read_fence(r: &mut Reader<'_>) -> Result<Fence, DecodeError> {
    let shard = limited("fence", r.u32()?.into(), SHARDS as usize - 1)?;
    Ok(Fence { shard: shard as u32, value: r.u64()? }) // below SHARDS
}

/// An `ObjUri` is at most `MAX_URI` long by construction.
pub(super) fn put_uri(out: &mut Vec<u8>, uri: &ObjUri<'_>) {
    out.put_u16(uri.as_bytes().len() as u16);
    out.put(uri.as_bytes());
}

const fn bit(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

impl<'a> Request<'a> {
    /// Decodes a frame's payload.
    ///
    /// # Errors
    /// See [`BadRequest`].
    pub fn parse(op: u8, flags: u8, bytes: &'a [u8]) -> Result<Self, BadRequest> {
        let op = Op::try_from(op).map_err(|_| BadRequest::UnknownOp(op))?;
        Ok(Self::parse_op(op, flags, bytes)?)
    }

    fn parse_op(op: Op, flags: u8, bytes: &'a [u8]) -> Result<Self, Malformed> {
        reserved("flags", flags, op.known_flags())?;
        payload("request", bytes, |r| {
            Ok(match op {
                Op::Attach => Self::Attach {
                    session: Token(r.token()?),
                    directories: flags & ATTACH_DIRECTORIES != 0,
                    board: flags & ATTACH_BOARD != 0,
                    number: flags & ATTACH_NUMBER != 0,
                },
                Op::Lookup => Self::Lookup { uri: read_uri(r)?, want: Want::from_bits(flags) },
                Op::Create => Self::Create {
                    tier: match r.u8()? {
                        0 => None,
                        tier => Some(Tier::try_from(tier)?),
                    },
                    length: r.u64()?,
                    uri: match r.bytes16("URI", MAX_URI)? {
                        b"" => None,
                        uri => Some(ObjUri::parse(uri).map_err(Malformed::Uri)?),
                    },
                },
                Op::Reserve => Self::Reserve { handle: r.u64()?, length: r.u64()? },
                Op::Commit => Self::Commit(Commit {
                    handle: r.u64()?,
                    length: r.u64()?,
                    expires: r.i64()?,
                    if_version: IfVersion::from_raw(r.u64()?),
                    uri: read_uri(r)?,
                    want: Want::from_bits(flags & PIN_BITS),
                    ephemeral: flags & COMMIT_EPHEMERAL != 0,
                    fence: match flags & COMMIT_FENCE {
                        0 => None,
                        _ => Some(read_fence(r)?),
                    },
                }),
                Op::Abort => Self::Abort { handle: r.u64()? },
                Op::Delete => Self::Delete {
                    if_version: IfVersion::from_raw(r.u64()?),
                    uri: read_uri(r)?,
                    evict: flags & DELETE_EVICT != 0,
                },
                Op::Stat => Self::Stat,
                Op::List => Self::List {
                    prefix: r.bytes16("prefix", MAX_URI)?,
                    cursor: r.bytes16("cursor", MAX_CURSOR)?,
                    max: r.u16()?,
                },
                Op::Lease => {
                    let (wait, hold) = (r.u32()?, r.u32()?);
                    Self::Lease { wait, hold, uri: read_uri(r)?, want: Want::from_bits(flags) }
                }
                Op::Unlease => Self::Unlease { lease: r.u64()?, refuse: r.u32()? },
                Op::Release => {
                    let count = usize::from(r.u16()?);
                    // Bound the allocation by what is there.
                    let mut objects = Vec::with_capacity(count.min(r.left() / 8));
                    for _ in 0..count {
                        objects.push(r.u64()?);
                    }
                    Self::Release { objects }
                }
                Op::Batch => Self::Batch(read_batch(r)?),
                Op::Detach => Self::Detach,
                Op::Lost => Self::Lost { connection: r.u64()?, read: r.u64()? },
            })
        })
    }

    /// Returns the request's operation.
    #[must_use]
    pub fn op(&self) -> Op {
        match self {
            Self::Attach { .. } => Op::Attach,
            Self::Lookup { .. } => Op::Lookup,
            Self::Create { .. } => Op::Create,
            Self::Reserve { .. } => Op::Reserve,
            Self::Commit(_) => Op::Commit,
            Self::Abort { .. } => Op::Abort,
            Self::Delete { .. } => Op::Delete,
            Self::Stat => Op::Stat,
            Self::List { .. } => Op::List,
            Self::Lease { .. } => Op::Lease,
            Self::Unlease { .. } => Op::Unlease,
            Self::Release { .. } => Op::Release,
            Self::Batch(_) => Op::Batch,
            Self::Detach => Op::Detach,
            Self::Lost { .. } => Op::Lost,
        }
    }

    /// Returns the request's flags.
    #[must_use]
    pub fn flags(&self) -> u8 {
        match self {
            Self::Attach { directories, board, number, .. } => {
                bit(*directories, ATTACH_DIRECTORIES) | bit(*board, ATTACH_BOARD) | bit(*number, ATTACH_NUMBER)
            }
            Self::Delete { evict, .. } => bit(*evict, DELETE_EVICT),
            Self::Lookup { want, .. } | Self::Lease { want, .. } => want.bits(),
            Self::Commit(c) => {
                c.want.bits() | bit(c.ephemeral, COMMIT_EPHEMERAL) | bit(c.fence.is_some(), COMMIT_FENCE)
            }
            _ => 0,
        }
    }

    /// Appends it as a frame to `out`.
    ///
    /// # Errors
    /// If a part of it is over its limit; `out` is as it was.
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = out.len();
        RequestFrame::head(id, self.op().code(), self.flags(), out);
        framed(out, |out| self.write(out), |n| EncodeError::check("payload", n, MAX_PAYLOAD))
            .inspect_err(|_| out.truncate(start))
    }

    /// The payload.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Attach { session, .. } => out.put(&session.0),
            Self::Lookup { uri, .. } => put_uri(out, uri),
            Self::Create { tier, length, uri } => {
                out.put_u8(tier.map_or(0, Tier::code));
                out.put_u64(*length);
                match uri {
                    Some(uri) => put_uri(out, uri),
                    None => out.put_u16(0),
                }
            }
            Self::Reserve { handle, length } => {
                out.put_u64(*handle);
                out.put_u64(*length);
            }
            Self::Commit(c) => {
                out.put_u64(c.handle);
                out.put_u64(c.length);
                out.put_i64(c.expires);
                out.put_u64(c.if_version.raw());
                put_uri(out, &c.uri);
                if let Some(fence) = c.fence {
                    out.put_u32(fence.shard);
                    out.put_u64(fence.value);
                }
            }
            Self::Abort { handle } => out.put_u64(*handle),
            Self::Delete { if_version, uri, .. } => {
                out.put_u64(if_version.raw());
                put_uri(out, uri);
            }
            Self::Stat | Self::Detach => {}
            Self::Lost { connection, read } => {
                out.put_u64(*connection);
                out.put_u64(*read);
            }
            Self::List { prefix, cursor, max } => {
                EncodeError::check("prefix", prefix.len(), MAX_URI)?;
                EncodeError::check("cursor", cursor.len(), MAX_CURSOR)?;
                out.put_u16(prefix.len() as u16); // at most MAX_URI
                out.put(prefix);
                out.put_u16(cursor.len() as u16); // at most MAX_CURSOR
                out.put(cursor);
                out.put_u16(*max);
            }
            Self::Lease { wait, hold, uri, .. } => {
                out.put_u32(*wait);
                out.put_u32(*hold);
                put_uri(out, uri);
            }
            Self::Unlease { lease, refuse } => {
                out.put_u64(*lease);
                out.put_u32(*refuse);
            }
            Self::Release { objects } => {
                EncodeError::check("released objects", objects.len(), MAX_RELEASE)?;
                out.put_u16(objects.len() as u16); // at most MAX_RELEASE
                for object in objects {
                    out.put_u64(*object);
                }
            }
            Self::Batch(requests) => {
                EncodeError::check("batched operations", requests.len(), MAX_BATCH)?;
                out.put_u16(requests.len() as u16); // at most MAX_BATCH
                for request in requests {
                    // A batch within a batch would be refused by the other side; refuse it here, where
                    // the mistake is.
                    if !request.op().batchable() {
                        return Err(EncodeError { field: "operations that cannot be batched", value: 1, limit: 0 });
                    }
                    out.put_u8(request.op().code());
                    out.put_u8(request.flags());
                    framed(out, |out| request.write(out), |n| EncodeError::check("payload", n, MAX_PAYLOAD))?;
                }
            }
        }
        Ok(())
    }
}

fn read_batch<'a>(r: &mut Reader<'a>) -> Result<Vec<Request<'a>>, DecodeError> {
    let count = limited("batched operations", r.u16()?.into(), MAX_BATCH)?;
    let mut requests = Vec::with_capacity(count);
    for _ in 0..count {
        let (op, flags) = (Op::try_from(r.u8()?)?, r.u8()?);
        if !op.batchable() {
            return Err(Malformed::Misplaced { field: "operation in a batch", value: op.code().into() }.into());
        }
        let len = limited("payload", r.u32()?.into(), MAX_PAYLOAD)?;
        requests.push(Request::parse_op(op, flags, r.bytes(len)?)?);
    }
    Ok(requests)
}
