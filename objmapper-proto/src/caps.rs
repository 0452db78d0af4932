//! Capabilities of HELLO and HELLO_ACK.

/// A set of capability bits. Bits without a name are kept and have no meaning: each side lists in HELLO what it
/// knows, and an unknown bit of the other side is not granted, but is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Caps(u16);

impl Caps {
    /// No capability; v0.1's server grants none.
    pub const NONE: Self = Self(0);
    /// Responses may come out of order.
    pub const OUT_OF_ORDER: Self = Self(0x0001);
    /// Several requests may be outstanding.
    pub const PIPELINING: Self = Self(0x0002);
    /// Bodies may be compressed (v0.1's bit; not used).
    pub const COMPRESSION: Self = Self(0x0004);
    /// Several streams share a connection (v0.1's bit; not used).
    pub const MULTIPLEXING: Self = Self(0x0008);
    /// Responses may come in segments.
    pub const SEGMENTED: Self = Self(0x0010);
    /// The extensions of `EXTENSIONS.md`, version 1.
    pub const EXTENSIONS: Self = Self(0x8000);

    /// Makes a set from the bits on the wire.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Returns the bits on the wire.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Returns true if the set contains all of `other`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the union of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
