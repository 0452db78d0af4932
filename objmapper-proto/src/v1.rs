//! Protocol V1: a request, its response, the next request.
//!
//! A connection whose first byte is not `O` speaks V1. After an OK response to a [`Mode::Fd`](crate::Mode::Fd)
//! request that is not a delete, the byte [`FD_BYTE`](crate::FD_BYTE) follows with the descriptor.

use crate::error::{DecodeError, EncodeError};
use crate::limits::{MAX_METADATA, MAX_URI};
use crate::metadata::Metadata;
use crate::status::Status;
use crate::wire::{Put, Reader};

/// V1 request: `mode u8, urilen u16, uri`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The mode byte as it came: a server answers one that stands for nothing, it does not hang up.
    pub mode: u8,
    /// The URI as it came: v0.1 servers answer an empty or odd one, so it is not an
    /// [`ObjUri`](crate::ObjUri) yet. At most [`MAX_URI`] bytes.
    pub uri: &'a [u8],
}

/// V1 response: `status u8, content_len u64, meta_len u16, meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// How it went.
    pub status: Status,
    /// Bytes of the object; v0.1 says 0 for a new or present one and 1 for a successful delete.
    pub content_len: u64,
    /// More about it.
    pub metadata: Metadata<'a>,
}

impl<'a> Request<'a> {
    /// Decodes the request at the start of `buf`; also says how many bytes it took.
    ///
    /// # Errors
    /// See [`DecodeError`]. A URI over the limit is malformed: v0.1 hangs up on it.
    pub fn decode(buf: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut r = Reader::new(buf);
        let mode = r.u8()?;
        let uri = r.bytes16("URI", MAX_URI)?;
        Ok((Self { mode, uri }, r.used()))
    }

    /// Appends the request to `out`.
    ///
    /// # Errors
    /// If the URI is over its limit.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        EncodeError::check("URI", self.uri.len(), MAX_URI)?;
        out.put_u8(self.mode);
        out.put_u16(self.uri.len() as u16); // at most MAX_URI
        out.put(self.uri);
        Ok(())
    }
}

impl<'a> Response<'a> {
    /// Decodes the response at the start of `buf`; also says how many bytes it took.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(buf: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut r = Reader::new(buf);
        let response = Self::read(&mut r)?;
        Ok((response, r.used()))
    }

    /// What V1 and V2 responses have in common.
    pub(crate) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let status = Status::try_from(r.u8()?)?;
        let content_len = r.u64()?;
        let meta_len = r.u16()?;
        let metadata = Metadata::read(r, meta_len)?;
        Ok(Self { status, content_len, metadata })
    }

    /// Appends the response to `out`.
    ///
    /// # Errors
    /// If the metadata is over its limit.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let meta = self.metadata.as_bytes();
        EncodeError::check("metadata", meta.len(), MAX_METADATA)?;
        out.put_u8(self.status.code());
        out.put_u64(self.content_len);
        out.put_u16(meta.len() as u16); // at most MAX_METADATA
        out.put(meta);
        Ok(())
    }
}
