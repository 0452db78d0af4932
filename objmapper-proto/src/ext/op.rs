//! Operation codes of the extensions, the flags of each, and the operations that a BATCH may have.

use crate::error::Malformed;

/// Operation of an extension request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Begin or resume a session.
    Attach = 0x01,
    /// Look up without creating.
    Lookup = 0x02,
    /// Create a private object.
    Create = 0x03,
    /// Change a private object's reservation.
    Reserve = 0x04,
    /// Publish a private object.
    Commit = 0x05,
    /// Abort a private object.
    Abort = 0x06,
    /// Delete a published object.
    Delete = 0x07,
    /// Sizes and counts of the store.
    Stat = 0x08,
    /// List by prefix, a page at a time.
    List = 0x09,
    /// Wait for a URI, or get the lease to fetch it.
    Lease = 0x0a,
    /// End a lease.
    Unlease = 0x0b,
    /// Drop pins of objects.
    Release = 0x0c,
    /// Several operations in one frame.
    Batch = 0x0d,
    /// End the session at once.
    Detach = 0x0e,
    /// Take back what the unread replies of a lost connection gave.
    Lost = 0x0f,
}

impl Op {
    /// All operations.
    pub const ALL: [Self; 15] = [
        Self::Attach,
        Self::Lookup,
        Self::Create,
        Self::Reserve,
        Self::Commit,
        Self::Abort,
        Self::Delete,
        Self::Stat,
        Self::List,
        Self::Lease,
        Self::Unlease,
        Self::Release,
        Self::Batch,
        Self::Detach,
        Self::Lost,
    ];

    /// Returns the byte on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Returns true if a BATCH may have the operation.
    #[must_use]
    pub const fn batchable(self) -> bool {
        matches!(self, Self::Lookup | Self::Commit | Self::Abort | Self::Delete | Self::Release)
    }

    /// Returns the request flags that the operation has.
    pub(super) const fn known_flags(self) -> u8 {
        match self {
            Self::Attach => 0x07,
            Self::Lookup | Self::Lease => 0x03,
            Self::Commit => 0x0f,
            Self::Delete => 0x01,
            _ => 0,
        }
    }
}

impl TryFrom<u8> for Op {
    type Error = Malformed;

    fn try_from(byte: u8) -> Result<Self, Malformed> {
        Self::ALL
            .get(usize::from(byte).wrapping_sub(1))
            .copied()
            .ok_or(Malformed::Unknown { field: "operation", value: byte.into() })
    }
}
