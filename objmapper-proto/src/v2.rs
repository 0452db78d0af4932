//! Protocol V2: HELLO, requests and responses with ids, CLOSE.

use crate::caps::Caps;
use crate::error::{DecodeError, EncodeError, Malformed};
use crate::ext;
use crate::limits::{MAX_INLINE, MAX_METADATA, MAX_PIPELINE, MAX_SEGMENTS, MAX_URI};
use crate::metadata::Metadata;
use crate::segment::{Segment, SegmentKind};
use crate::status::Status;
use crate::v1;
use crate::wire::{Put, Reader, limited};

/// `OBJM`, the first four bytes of HELLO and HELLO_ACK.
pub const MAGIC: u32 = 0x4f42_4a4d;
/// The version byte of HELLO and HELLO_ACK.
pub const VERSION: u8 = 2;

/// Request flag: a new object goes into the ephemeral tier.
pub const FLAG_EPHEMERAL: u8 = 0x02;

/// First byte of each frame after HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// [`Request`], to the server.
    Request = 0x01,
    /// [`Response`], to the client.
    Response = 0x02,
    /// Close, to the server.
    Close = 0x03,
    /// The answer to Close, to the client.
    CloseAck = 0x04,
    /// [`Segmented`], to the client.
    Segmented = 0x05,
    /// [`ext::RequestFrame`], to the server.
    ExtRequest = 0x10,
    /// [`ext::ReplyFrame`], to the client.
    ExtReply = 0x11,
}

impl TryFrom<u8> for FrameType {
    type Error = Malformed;

    fn try_from(byte: u8) -> Result<Self, Malformed> {
        Ok(match byte {
            0x01 => Self::Request,
            0x02 => Self::Response,
            0x03 => Self::Close,
            0x04 => Self::CloseAck,
            0x05 => Self::Segmented,
            0x10 => Self::ExtRequest,
            0x11 => Self::ExtReply,
            _ => return Err(Malformed::Unknown { field: "frame type", value: byte.into() }),
        })
    }
}

/// The protocol that HELLO has settled for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// V2 as in v0.1.
    V2,
    /// V2 and the extensions ([`Caps::EXTENSIONS`] granted).
    Extended,
}

/// The client's first frame, 9 bytes: `OBJM, 02, caps u16, pipeline u16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The capabilities that the client knows.
    pub caps: Caps,
    /// The number of outstanding requests that the client asks for, at most [`MAX_PIPELINE`].
    pub pipeline: u16,
}

/// The server's first frame, 10 bytes: as HELLO, and `parallelism u8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloAck {
    /// The capabilities that are granted.
    pub caps: Caps,
    /// The maximum number of outstanding requests. v0.1 says 0 or 1; either means one.
    pub pipeline: u16,
    /// The number of requests that the server works on at a time.
    pub parallelism: u8,
}

fn read_hello(r: &mut Reader<'_>) -> Result<(Caps, u16), DecodeError> {
    // Byte by byte, so that a wrong first byte is an error at once and not a wait for eight more.
    for (at, expected) in MAGIC.to_be_bytes().into_iter().enumerate() {
        let byte = r.u8()?;
        if byte != expected {
            let shift = 24 - 8 * at as u32;
            return Err(Malformed::Magic(u32::from(byte) << shift).into());
        }
    }
    match r.u8()? {
        VERSION => {}
        other => return Err(Malformed::Version(other).into()),
    }
    Ok((Caps::from_bits(r.u16()?), r.u16()?))
}

fn write_hello(out: &mut Vec<u8>, caps: Caps, pipeline: u16) {
    out.put_u32(MAGIC);
    out.put_u8(VERSION);
    out.put_u16(caps.bits());
    out.put_u16(pipeline.min(MAX_PIPELINE));
}

impl Hello {
    /// Bytes of HELLO on the wire.
    pub const WIRE_LEN: usize = 9;

    /// Decodes a HELLO. Returns it and the number of bytes that it took. A pipeline over the limit is cut to the limit, because
    /// the server decides it.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(buf: &[u8]) -> Result<(Self, usize), DecodeError> {
        let mut r = Reader::new(buf);
        let (caps, pipeline) = read_hello(&mut r)?;
        Ok((Self { caps, pipeline: pipeline.min(MAX_PIPELINE) }, r.used()))
    }

    /// Appends it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        write_hello(out, self.caps, self.pipeline);
    }
}

impl HelloAck {
    /// Bytes of HELLO_ACK on the wire.
    pub const WIRE_LEN: usize = 10;

    /// Decodes a HELLO_ACK. Returns it and the number of bytes that it took.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(buf: &[u8]) -> Result<(Self, usize), DecodeError> {
        let mut r = Reader::new(buf);
        let (caps, pipeline) = read_hello(&mut r)?;
        limited("pipeline", pipeline.into(), MAX_PIPELINE.into())?;
        let parallelism = r.u8()?;
        Ok((Self { caps, pipeline, parallelism }, r.used()))
    }

    /// Appends it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        write_hello(out, self.caps, self.pipeline);
        out.put_u8(self.parallelism);
    }
}

/// Type 1: `01, id u32, flags u8, mode u8, urilen u16, uri`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The request's id, which the response repeats.
    pub id: u32,
    /// [`FLAG_EPHEMERAL`]. v0.1 ignores other bits, so they are kept as they came.
    pub flags: u8,
    /// The mode byte as it came; see [`crate::Mode`].
    pub mode: u8,
    /// The URI as it came; see [`v1::Request::uri`].
    pub uri: &'a [u8],
}

/// Type 2: `02, id u32, status u8, content_len u64, meta_len u16, meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The id of the request.
    pub id: u32,
    /// The response as in V1.
    pub body: v1::Response<'a>,
}

/// Type 5: `05, id u32, status u8, count u16, meta_len u16, meta, count × segment, inline bytes`; then an
/// [`FD_BYTE`](crate::FD_BYTE) with one descriptor for each segment that [brings one](Segment::brings_fd).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segmented<'a> {
    /// The id of the request.
    pub id: u32,
    /// The outcome of the request.
    pub status: Status,
    /// The metadata of the object, or of the failure.
    pub metadata: Metadata<'a>,
    /// The segments in the object's order.
    pub segments: Vec<Segment>,
    /// The bytes of all inline segments, one behind the other.
    pub inline: &'a [u8],
}

/// A frame that a client sends after HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFrame<'a> {
    /// Type 1.
    Request(Request<'a>),
    /// Type 3: `03, reason u8`.
    Close {
        /// The reason; 0 is "done".
        reason: u8,
    },
    /// Type 0x10.
    Ext(ext::RequestFrame<'a>),
}

/// A frame that a server sends after HELLO_ACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// Type 2.
    Response(Response<'a>),
    /// Type 5.
    Segmented(Segmented<'a>),
    /// Type 4: `04, 00, outstanding u32`.
    CloseAck {
        /// The number of requests that were not answered.
        outstanding: u32,
    },
    /// Type 0x11.
    Ext(ext::ReplyFrame<'a>),
}

fn unknown_type(kind: FrameType) -> DecodeError {
    Malformed::Unknown { field: "frame type", value: u64::from(kind as u8) }.into()
}

impl<'a> ClientFrame<'a> {
    /// Decodes the frame at the start of `buf`. Returns it and the number of bytes that it took.
    ///
    /// # Errors
    /// See [`DecodeError`]. After a malformed frame the connection cannot be used.
    pub fn decode(buf: &'a [u8], dialect: Dialect) -> Result<(Self, usize), DecodeError> {
        let mut r = Reader::new(buf);
        let frame = match FrameType::try_from(r.u8()?)? {
            FrameType::Request => {
                Self::Request(Request { id: r.u32()?, flags: r.u8()?, mode: r.u8()?, uri: r.bytes16("URI", MAX_URI)? })
            }
            FrameType::Close => Self::Close { reason: r.u8()? },
            FrameType::ExtRequest if dialect == Dialect::Extended => Self::Ext(ext::RequestFrame::read(&mut r)?),
            other => return Err(unknown_type(other)),
        };
        Ok((frame, r.used()))
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// If a part of it is over its limit; `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Request(q) => {
                EncodeError::check("URI", q.uri.len(), MAX_URI)?;
                out.put_u8(FrameType::Request as u8);
                out.put_u32(q.id);
                out.put_u8(q.flags);
                out.put_u8(q.mode);
                out.put_u16(q.uri.len() as u16); // at most MAX_URI
                out.put(q.uri);
                Ok(())
            }
            Self::Close { reason } => {
                out.put(&[FrameType::Close as u8, *reason]);
                Ok(())
            }
            Self::Ext(frame) => frame.encode(out),
        }
    }
}

impl<'a> ServerFrame<'a> {
    /// Decodes the frame at the start of `buf`. Returns it and the number of bytes that it took. Descriptors that follow the
    /// frame, and the [`FD_BYTE`](crate::FD_BYTE) that carries them, are not part of it.
    ///
    /// # Errors
    /// See [`DecodeError`]. After a malformed frame the connection cannot be used.
    pub fn decode(buf: &'a [u8], dialect: Dialect) -> Result<(Self, usize), DecodeError> {
        let mut r = Reader::new(buf);
        let frame = match FrameType::try_from(r.u8()?)? {
            FrameType::Response => Self::Response(Response { id: r.u32()?, body: v1::Response::read(&mut r)? }),
            FrameType::Segmented => Self::Segmented(Segmented::read(&mut r)?),
            FrameType::CloseAck => {
                let zero = r.u8()?;
                if zero != 0 {
                    return Err(Malformed::Reserved { field: "CLOSE_ACK", bits: zero.into() }.into());
                }
                Self::CloseAck { outstanding: r.u32()? }
            }
            FrameType::ExtReply if dialect == Dialect::Extended => Self::Ext(ext::ReplyFrame::read(&mut r)?),
            other => return Err(unknown_type(other)),
        };
        Ok((frame, r.used()))
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// If a part of it is over its limit; `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Response(response) => {
                let start = out.len();
                out.put_u8(FrameType::Response as u8);
                out.put_u32(response.id);
                response.body.encode(out).inspect_err(|_| out.truncate(start))
            }
            Self::Segmented(segmented) => segmented.write(out),
            Self::CloseAck { outstanding } => {
                out.put(&[FrameType::CloseAck as u8, 0]);
                out.put_u32(*outstanding);
                Ok(())
            }
            Self::Ext(frame) => frame.encode(out),
        }
    }
}

impl<'a> Segmented<'a> {
    /// Returns the number of descriptors that follow the frame.
    #[must_use]
    pub fn fd_count(&self) -> usize {
        self.segments.iter().filter(|s| s.brings_fd()).count()
    }

    /// Returns the inline bytes of the segment `index`; `None` if it has none.
    #[must_use]
    pub fn inline_of(&self, index: usize) -> Option<&'a [u8]> {
        let segment = self.segments.get(index).filter(|s| s.kind == SegmentKind::Inline)?;
        let before: usize = self.segments[..index].iter().map(|s| s.copy_len as usize).sum();
        self.inline.get(before..before + segment.copy_len as usize)
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let id = r.u32()?;
        let status = Status::try_from(r.u8()?)?;
        let count = limited("segment count", r.u16()?.into(), MAX_SEGMENTS)?;
        let meta_len = r.u16()?;
        let metadata = Metadata::read(r, meta_len)?;
        let mut segments = Vec::with_capacity(count);
        let mut inline_len = 0_u64;
        for index in 0..count {
            let segment = Segment::read(r)?;
            if segment.flags.contains(crate::SegmentFlags::REUSE_FD) && !segments.iter().any(Segment::brings_fd) {
                // No descriptor came before that could be reused.
                return Err(Malformed::Misplaced { field: "segment flag REUSE_FD", value: index as u64 }.into());
            }
            inline_len += u64::from(segment.copy_len);
            segments.push(segment);
        }
        let inline = r.bytes(limited("inline bytes", inline_len, MAX_INLINE)?)?;
        Ok(Self { id, status, metadata, segments, inline })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let meta = self.metadata.as_bytes();
        EncodeError::check("metadata", meta.len(), MAX_METADATA)?;
        EncodeError::check("segment count", self.segments.len(), MAX_SEGMENTS)?;
        EncodeError::check("inline bytes", self.inline.len(), MAX_INLINE)?;
        let announced: usize = self.segments.iter().map(|s| s.copy_len as usize).sum();
        EncodeError::check("sum of copy_len", announced, self.inline.len())?;
        EncodeError::check("inline bytes", self.inline.len(), announced)?;
        out.put_u8(FrameType::Segmented as u8);
        out.put_u32(self.id);
        out.put_u8(self.status.code());
        out.put_u16(self.segments.len() as u16); // at most MAX_SEGMENTS
        out.put_u16(meta.len() as u16); // at most MAX_METADATA
        out.put(meta);
        for segment in &self.segments {
            segment.write(out);
        }
        out.put(self.inline);
        Ok(())
    }
}
