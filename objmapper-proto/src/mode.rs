//! The way in which a V1 or V2 client asks for an object's bytes.

use crate::error::Malformed;

/// The `mode` byte of V1 and V2 requests: an ASCII digit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// As a file descriptor. The only mode that v0.1's server offers.
    Fd = b'1',
    /// Copied onto the socket.
    Copy = b'2',
    /// Spliced onto the socket.
    Splice = b'3',
    /// In segments, each of which is inline, a descriptor, or spliced.
    Segmented = b'4',
}

impl TryFrom<u8> for Mode {
    type Error = Malformed;

    fn try_from(byte: u8) -> Result<Self, Malformed> {
        match byte {
            b'1' => Ok(Self::Fd),
            b'2' => Ok(Self::Copy),
            b'3' => Ok(Self::Splice),
            b'4' => Ok(Self::Segmented),
            _ => Err(Malformed::Unknown { field: "mode", value: byte.into() }),
        }
    }
}

impl Mode {
    /// Returns the byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}
