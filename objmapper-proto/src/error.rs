//! Errors of decoders and encoders.

use crate::uri::UriError;

/// The reason why a decoder returns no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame has not arrived whole: at least `needed` more bytes are to come. Never 0.
    #[error("at least {needed} more bytes needed")]
    Incomplete {
        /// How many bytes are missing at least; more may turn out to be missing once they have come.
        needed: usize,
    },
    /// No further byte can make a frame of these bytes: the connection cannot be used any longer.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
}

/// The defect of bytes that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length or count is over its limit in [`crate::limits`].
    #[error("{field} is {value}, the limit is {limit}")]
    TooLong {
        /// Name of the field.
        field: &'static str,
        /// What it said.
        value: u64,
        /// What it may say at most.
        limit: u64,
    },
    /// A number without a meaning.
    #[error("{field} {value:#04x} is unknown")]
    Unknown {
        /// Name of the field.
        field: &'static str,
        /// What it said.
        value: u64,
    },
    /// Bits that must be 0.
    #[error("{field} has reserved bits {bits:#x}")]
    Reserved {
        /// Name of the field.
        field: &'static str,
        /// The bits that should not be there.
        bits: u64,
    },
    /// A payload of known length ends within a field.
    #[error("{field} is {missing} bytes short")]
    Short {
        /// Name of the payload.
        field: &'static str,
        /// How many bytes are missing at least.
        missing: usize,
    },
    /// A payload of known length goes on after its last field.
    #[error("{field} has {extra} bytes too many")]
    Trailing {
        /// Name of the payload.
        field: &'static str,
        /// How many bytes are left over.
        extra: usize,
    },
    /// Text that is not UTF-8.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// Name of the field.
        field: &'static str,
    },
    /// HELLO without its magic `OBJM`.
    #[error("magic is {0:#010x}, not OBJM")]
    Magic(u32),
    /// HELLO of another version.
    #[error("protocol version {0}, not 2")]
    Version(u8),
    /// A field that only stands where it must not, or is missing where it must stand.
    #[error("{field} must not be {value} here")]
    Misplaced {
        /// Name of the field.
        field: &'static str,
        /// What it said.
        value: u64,
    },
    /// A URI that breaks the rules of [`crate::ObjUri`].
    #[error("URI: {0}")]
    Uri(#[from] UriError),
}

/// A value that does not fit into its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, the limit is {limit}")]
pub struct EncodeError {
    /// Name of the field.
    pub field: &'static str,
    /// How long it is.
    pub value: usize,
    /// How long it may be, see [`crate::limits`].
    pub limit: usize,
}

impl EncodeError {
    pub(crate) fn check(field: &'static str, value: usize, limit: usize) -> Result<(), Self> {
        if value > limit { Err(Self { field, value, limit }) } else { Ok(()) }
    }
}
