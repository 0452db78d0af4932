//! Capabilities of HELLO and HELLO_ACK.

/// A set of capability bits. Bits without a name are kept and mean nothing: HELLO is the place where each
/// side says what it knows, and an unknown bit of the other side is not granted rather than refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Caps(u16);

impl Caps {
    /// None of them; all that v0.1's server grants.
    pub const NONE: Self = Self(0);
    /// Responses may come out of order.
    pub const OUT_OF_ORDER: Self = Self(0x0001);
    /// Several requests may be outstanding.
    pub const PIPELINING: Self = Self(0x0002);
    /// Compression.
    pub const COMPRESSION: Self = Self(0x0004);
    /// Multiplexing.
    pub const MULTIPLEXING: Self = Self(0x0008);
    /// Segmented responses.
    pub const SEGMENTED: Self = Self(0x0010);
    /// The extensions of `EXTENSIONS.md`, version 1.
    pub const EXTENSIONS: Self = Self(0x8000);

    /// From the wire.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// As on the wire.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all of `other` are in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
