//! The two frames of the extensions, delimited but not decoded.

use crate::error::{DecodeError, EncodeError};
use crate::limits::{MAX_FDS, MAX_MESSAGE, MAX_PAYLOAD};
use crate::status::Status;
use crate::v2::FrameType;
use crate::wire::{Put, Reader, limited};

/// `10 id u32, op u8, flags u8, len u32, payload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestFrame<'a> {
    /// The request's id, which the reply repeats.
    pub id: u32,
    /// An [`Op`](super::Op), or an operation of a later version.
    pub op: u8,
    /// Flags of the operation.
    pub flags: u8,
    /// The payload, for [`Request::parse`](super::Request::parse).
    pub payload: &'a [u8],
}

/// `11 id u32, op u8, status u8, nfds u8, len u32, payload`; then, if `nfds` > 0, one
/// [`FD_BYTE`](crate::FD_BYTE) with as many descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyFrame<'a> {
    /// The request's.
    pub id: u32,
    /// The request's.
    pub op: u8,
    /// The outcome of the request.
    pub status: Status,
    /// The number of descriptors that follow.
    pub nfds: u8,
    /// With status OK the payload for [`Reply::parse`](super::Reply::parse), else a message.
    pub payload: &'a [u8],
}

impl<'a> RequestFrame<'a> {
    /// Bytes of the frame before its payload.
    pub const HEAD_LEN: usize = 11;

    /// After the type byte.
    pub(crate) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (id, op, flags) = (r.u32()?, r.u8()?, r.u8()?);
        let len = limited("payload", r.u32()?.into(), MAX_PAYLOAD)?;
        Ok(Self { id, op, flags, payload: r.bytes(len)? })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        EncodeError::check("payload", self.payload.len(), MAX_PAYLOAD)?;
        Self::head(self.id, self.op, self.flags, out);
        out.put_u32(self.payload.len() as u32); // at most MAX_PAYLOAD
        out.put(self.payload);
        Ok(())
    }

    /// Everything before `len`.
    pub(super) fn head(id: u32, op: u8, flags: u8, out: &mut Vec<u8>) {
        out.put_u8(FrameType::ExtRequest as u8);
        out.put_u32(id);
        out.put_u8(op);
        out.put_u8(flags);
    }
}

impl<'a> ReplyFrame<'a> {
    /// Bytes of the frame before its payload.
    pub const HEAD_LEN: usize = 12;

    /// After the type byte.
    pub(crate) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (id, op) = (r.u32()?, r.u8()?);
        let status = Status::try_from(r.u8()?)?;
        let nfds = r.u8()?;
        limited("descriptors", nfds.into(), MAX_FDS)?;
        let len = limited("payload", r.u32()?.into(), MAX_PAYLOAD)?;
        Ok(Self { id, op, status, nfds, payload: r.bytes(len)? })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        EncodeError::check("payload", self.payload.len(), MAX_PAYLOAD)?;
        EncodeError::check("descriptors", self.nfds.into(), MAX_FDS)?;
        Self::head(self.id, self.op, self.status, self.nfds, out);
        out.put_u32(self.payload.len() as u32); // at most MAX_PAYLOAD
        out.put(self.payload);
        Ok(())
    }

    /// Everything before `len`.
    pub(super) fn head(id: u32, op: u8, status: Status, nfds: u8, out: &mut Vec<u8>) {
        out.put_u8(FrameType::ExtReply as u8);
        out.put_u32(id);
        out.put_u8(op);
        out.put_u8(status.code());
        out.put_u8(nfds);
    }

    /// Appends the reply to a failed request: `status` and a message, truncated to its limit.
    pub fn encode_failure(id: u32, op: u8, status: Status, message: &str, out: &mut Vec<u8>) {
        Self::head(id, op, status, 0, out);
        let message = cut_message(message);
        out.put_u32(message.len() as u32); // at most MAX_MESSAGE
        out.put(message.as_bytes());
    }

    /// Returns the message of a reply that is not OK. Bytes that are not UTF-8 are replaced, as the text is for a log.
    #[must_use]
    pub fn message(&self) -> String {
        message(self.payload)
    }
}

/// Returns a received message as text for a log.
pub(super) fn message(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_MESSAGE)]);
    cut_message(&text).to_owned()
}

/// Truncates `text` at a character boundary to at most `MAX_MESSAGE` bytes.
pub(super) fn cut_message(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
