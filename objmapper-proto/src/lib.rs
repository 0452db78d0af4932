//! The wire types of objmapper, without I/O.
//!
//! An objmapper server answers a URI with an open file descriptor over a Unix socket. This crate knows the
//! bytes on that socket only: it neither reads nor writes, so that a
//! client, a server and a test can use it on byte buffers of their own.
//!
//! * [`v1`]: one request, one response, no ids.
//! * [`v2`]: HELLO, requests with ids, segmented responses, CLOSE.
//! * [`ext`]: what [`caps::Caps::EXTENSIONS`] adds: look up without creating, commit, list, leases, batches.
//!   `EXTENSIONS.md` beside this crate is their definition.
//!
//! Decoders take the bytes that have arrived and answer either with the value and how many bytes it took,
//! or [`DecodeError::Incomplete`] ("at least so many more bytes are needed"), or
//! [`DecodeError::Malformed`] ("these bytes can never become a frame, because …").
//!
//! ```
//! use objmapper_proto::{DecodeError, v1};
//!
//! let bytes = b"1\x00\x04/a/b";
//! let (request, used) = v1::Request::decode(bytes)?;
//! assert_eq!((request.uri, used), (&b"/a/b"[..], 7));
//!
//! let early = v1::Request::decode(&bytes[..5]);
//! assert_eq!(early, Err(DecodeError::Incomplete { needed: 2 }));
//! # Ok::<(), DecodeError>(())
//! ```
#![forbid(unsafe_code)]

pub mod caps;
pub mod error;
pub mod ext;
pub mod limits;
pub mod metadata;
pub mod mode;
pub mod segment;
pub mod status;
pub mod uri;
pub mod v1;
pub mod v2;
mod wire;

pub use caps::Caps;
pub use error::{DecodeError, EncodeError, Malformed};
pub use metadata::{Metadata, Tlv};
pub use mode::Mode;
pub use segment::{Segment, SegmentFlags, SegmentKind};
pub use status::Status;
pub use uri::{ObjUri, UriError};

/// The byte that carries file descriptors (SCM_RIGHTS): ASCII `X`.
pub const FD_BYTE: u8 = 0x58;
