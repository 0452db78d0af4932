//! The extensions of V2: look up without creating, private creation and commit, delete, list, leases, batches.
//!
//! `EXTENSIONS.md` beside this crate defines them. A frame is delimited first ([`RequestFrame`],
//! [`ReplyFrame`]) and decoded second ([`Request`], [`Reply`]). A payload that cannot be decoded is answered
//! with a status; only a frame that cannot be delimited ends the connection.
//!
//! ```
//! use objmapper_proto::{DecodeError, ObjUri, ext, v2};
//!
//! let request = ext::Request::Lookup { uri: ObjUri::parse(b"/a")?, want: ext::Want::FD };
//! let mut bytes = Vec::new();
//! request.encode(7, &mut bytes)?;
//!
//! let (frame, used) = v2::ClientFrame::decode(&bytes, v2::Dialect::Extended)?;
//! assert_eq!(used, bytes.len());
//! let v2::ClientFrame::Ext(frame) = frame else { unreachable!() };
//! assert_eq!((frame.id, ext::Request::parse(frame.op, frame.flags, frame.payload)?), (7, request));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod board;
mod frame;
mod op;
mod reply;
mod request;
mod types;

pub use board::Fence;
pub use frame::{ReplyFrame, RequestFrame};
pub use op::Op;
pub use reply::{Attached, BatchReply, LeaseOutcome, ListPage, Reply, Stat};
pub use request::{BadRequest, Commit, Request};
pub use types::{BodyPath, Entry, EntryFlags, IfVersion, OtherTier, Tier, TierLimits, TierStat, Token, Want};

/// The version of the extensions that this crate speaks.
pub const VERSION: u8 = 1;
