//! Metadata of V1 and V2 responses: TLVs `type u8, len u16, bytes`.

use crate::error::{DecodeError, EncodeError, Malformed};
use crate::limits::MAX_METADATA;
use crate::wire::{Put, Reader, payload};

/// One item of a response's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tlv<'a> {
    /// `01`: size of the object, in bytes.
    Size(u64),
    /// `02`: time of modification, in seconds since 1970.
    Mtime(u64),
    /// `03`: entity tag.
    Etag(&'a [u8]),
    /// `04`: media type.
    Mime(&'a [u8]),
    /// `05`: number of the backend (tier) that holds the object.
    Backend(u8),
    /// `06`: time that the server took, in microseconds.
    Latency(u32),
    /// `07`: bytes that the server's user attached.
    Payload(&'a [u8]),
    /// `08`: hints.
    Hints(&'a [u8]),
    /// `ff`: text of an error.
    Error(&'a [u8]),
    /// Any other type. Metadata is advice: a receiver ignores types that it does not know.
    Other(u8, &'a [u8]),
}

/// The metadata of a response: TLVs that have been checked for their bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metadata<'a>(&'a [u8]);

impl<'a> Tlv<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let kind = r.u8()?;
        let bytes = r.bytes16("metadata item", MAX_METADATA)?;
        Ok(match kind {
            0x01 => Self::Size(payload("metadata size", bytes, Reader::u64)?),
            0x02 => Self::Mtime(payload("metadata mtime", bytes, Reader::u64)?),
            0x03 => Self::Etag(bytes),
            0x04 => Self::Mime(bytes),
            0x05 => Self::Backend(payload("metadata backend", bytes, Reader::u8)?),
            0x06 => Self::Latency(payload("metadata latency", bytes, Reader::u32)?),
            0x07 => Self::Payload(bytes),
            0x08 => Self::Hints(bytes),
            0xff => Self::Error(bytes),
            other => Self::Other(other, bytes),
        })
    }

    /// Returns the type byte.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::Size(_) => 0x01,
            Self::Mtime(_) => 0x02,
            Self::Etag(_) => 0x03,
            Self::Mime(_) => 0x04,
            Self::Backend(_) => 0x05,
            Self::Latency(_) => 0x06,
            Self::Payload(_) => 0x07,
            Self::Hints(_) => 0x08,
            Self::Error(_) => 0xff,
            Self::Other(kind, _) => *kind,
        }
    }

    /// Appends it to a metadata block.
    ///
    /// # Errors
    /// If its bytes are longer than [`MAX_METADATA`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut bytes = |b: &[u8]| {
            EncodeError::check("metadata item", b.len(), MAX_METADATA)?;
            out.put_u8(self.kind());
            out.put_u16(b.len() as u16); // at most MAX_METADATA
            out.put(b);
            Ok(())
        };
        match self {
            Self::Size(v) | Self::Mtime(v) => bytes(&v.to_be_bytes()),
            Self::Backend(v) => bytes(&[*v]),
            Self::Latency(v) => bytes(&v.to_be_bytes()),
            Self::Etag(b) | Self::Mime(b) | Self::Payload(b) | Self::Hints(b) | Self::Error(b) => bytes(b),
            Self::Other(_, b) => bytes(b),
        }
    }
}

impl<'a> Metadata<'a> {
    /// No metadata.
    pub const EMPTY: Self = Self(&[]);

    /// Takes a metadata block, if each of its items is within bounds.
    ///
    /// # Errors
    /// The defect of the first item that is not.
    pub fn parse(block: &'a [u8]) -> Result<Self, Malformed> {
        crate::wire::limited("metadata", block.len() as u64, MAX_METADATA)?;
        payload("metadata", block, |r| {
            while r.left() > 0 {
                Tlv::read(r)?;
            }
            Ok(())
        })?;
        Ok(Self(block))
    }

    /// Builds a metadata block of `items`.
    ///
    /// # Errors
    /// If it would be longer than [`MAX_METADATA`].
    pub fn build(items: &[Tlv<'_>]) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::new();
        for item in items {
            item.encode(&mut out)?;
        }
        EncodeError::check("metadata", out.len(), MAX_METADATA)?;
        Ok(out)
    }

    /// Returns the items, in order.
    pub fn iter(&self) -> impl Iterator<Item = Tlv<'a>> + use<'a> {
        let mut r = Reader::new(self.0);
        // `parse` has read them all before, so the first error is the end.
        std::iter::from_fn(move || Tlv::read(&mut r).ok())
    }

    /// Returns the block as on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Returns the error text (type `ff`), if there is one.
    #[must_use]
    pub fn error_text(&self) -> Option<&'a [u8]> {
        self.iter().find_map(|t| if let Tlv::Error(text) = t { Some(text) } else { None })
    }

    pub(crate) fn read(r: &mut Reader<'a>, len: u16) -> Result<Self, DecodeError> {
        let n = crate::wire::limited("metadata", len.into(), MAX_METADATA)?;
        Ok(Self::parse(r.bytes(n)?)?)
    }
}
