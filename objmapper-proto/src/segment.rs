//! Segments of V2's segmented responses.

use crate::error::{DecodeError, Malformed};
use crate::wire::{Put, Reader, byte_flags};

/// The way in which a segment's bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegmentKind {
    /// `copy_len` bytes in the response itself.
    Inline = 0,
    /// `storage_len` bytes from `offset` of a descriptor.
    Fd = 1,
    /// The same, meant to be spliced: a descriptor is sent as for `Fd`.
    Splice = 2,
}

impl TryFrom<u8> for SegmentKind {
    type Error = Malformed;

    fn try_from(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Self::Inline),
            1 => Ok(Self::Fd),
            2 => Ok(Self::Splice),
            _ => Err(Malformed::Unknown { field: "segment type", value: byte.into() }),
        }
    }
}

byte_flags! {
    /// Flags of a segment.
    SegmentFlags, "segment flags", {
        /// The last segment.
        FIN = 1,
        /// The segment uses the last descriptor that was sent before; none is sent for it.
        REUSE_FD = 2,
        /// The receiver may ignore the segment.
        OPTIONAL = 4,
    }
}

/// One segment, 32 bytes: `type u8, flags u8, 0 u16, copy_len u32, logical_len u64, offset u64, storage_len u64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The way in which its bytes are sent.
    pub kind: SegmentKind,
    /// Flags.
    pub flags: SegmentFlags,
    /// Bytes of it in the response itself; 0 unless it is inline.
    pub copy_len: u32,
    /// Bytes of the object that it represents.
    pub logical_len: u64,
    /// Offset of its first byte in its descriptor.
    pub offset: u64,
    /// Bytes of it in its descriptor.
    pub storage_len: u64,
}

impl Segment {
    /// Bytes of a segment on the wire.
    pub const WIRE_LEN: usize = 32;

    /// Returns true if a descriptor is sent for it, with an [`FD_BYTE`](crate::FD_BYTE) of its own.
    #[must_use]
    pub fn brings_fd(&self) -> bool {
        self.kind != SegmentKind::Inline && !self.flags.contains(SegmentFlags::REUSE_FD)
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = SegmentKind::try_from(r.u8()?)?;
        let flags = SegmentFlags::from_bits(r.u8()?)?;
        let zero = r.u16()?;
        if zero != 0 {
            return Err(Malformed::Reserved { field: "segment", bits: zero.into() }.into());
        }
        let segment =
            Self { kind, flags, copy_len: r.u32()?, logical_len: r.u64()?, offset: r.u64()?, storage_len: r.u64()? };
        if kind != SegmentKind::Inline && segment.copy_len != 0 {
            return Err(Malformed::Misplaced { field: "copy_len", value: segment.copy_len.into() }.into());
        }
        if segment.offset.checked_add(segment.storage_len).is_none() {
            return Err(Malformed::Misplaced { field: "storage_len", value: segment.storage_len }.into());
        }
        Ok(segment)
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u8(self.kind as u8);
        out.put_u8(self.flags.bits());
        out.put_u16(0);
        out.put_u32(self.copy_len);
        out.put_u64(self.logical_len);
        out.put_u64(self.offset);
        out.put_u64(self.storage_len);
    }
}
