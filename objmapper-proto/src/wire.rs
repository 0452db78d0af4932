//! Big-endian reading and writing with every bound checked.

use crate::error::{DecodeError, Malformed};

/// A cursor over received bytes. Running out of them is `Incomplete`, never a panic.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    buf: &'a [u8],
    pos: usize,
}

macro_rules! int {
    ($($name:ident: $t:ty),*) => {$(
        pub(crate) fn $name(&mut self) -> Result<$t, DecodeError> {
            Ok(<$t>::from_be_bytes(self.array()?))
        }
    )*};
}

impl<'a> Reader<'a> {
    pub(crate) fn new(buf: &'a [u8]) -> Self {
        Self { buf, pos: 0 }
    }

    /// Returns the number of bytes that were taken.
    pub(crate) fn used(&self) -> usize {
        self.pos
    }

    /// Returns the number of bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.buf.len() - self.pos
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.left();
        if n > left {
            return Err(DecodeError::Incomplete { needed: n - left });
        }
        let out = &self.buf[self.pos..self.pos + n];
        self.pos += n;
        Ok(out)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    int!(u8: u8, u16: u16, u32: u32, u64: u64, i64: i64);

    pub(crate) fn token(&mut self) -> Result<[u8; 16], DecodeError> {
        self.array()
    }

    /// Bytes behind a u16 length of at most `limit`.
    pub(crate) fn bytes16(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let n = self.u16()?;
        limited(field, n.into(), limit)?;
        self.bytes(n.into())
    }
}

/// Returns `value`, or an error if it is above `limit`.
pub(crate) fn limited(field: &'static str, value: u64, limit: usize) -> Result<usize, Malformed> {
    let limit64 = limit as u64;
    if value > limit64 {
        return Err(Malformed::TooLong { field, value, limit: limit64 });
    }
    // At most `limit`, which is a usize.
    Ok(value as usize)
}

/// Parses a payload that is there in full: it must neither end early nor go on after its last field.
pub(crate) fn payload<'a, T>(
    field: &'static str,
    buf: &'a [u8],
    parse: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<T, Malformed> {
    let mut r = Reader::new(buf);
    let value = parse(&mut r).map_err(|e| match e {
        DecodeError::Incomplete { needed } => Malformed::Short { field, missing: needed },
        DecodeError::Malformed(m) => m,
    })?;
    match r.left() {
        0 => Ok(value),
        extra => Err(Malformed::Trailing { field, extra }),
    }
}

/// Refuses the bits of `value` that are not in `known`.
pub(crate) fn reserved(field: &'static str, value: u8, known: u8) -> Result<(), Malformed> {
    match value & !known {
        0 => Ok(()),
        bits => Err(Malformed::Reserved { field, bits: bits.into() }),
    }
}

/// Appends to a buffer in wire order.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);
    fn put_u8(&mut self, v: u8) {
        self.put(&[v]);
    }
    fn put_u16(&mut self, v: u16) {
        self.put(&v.to_be_bytes());
    }
    fn put_u32(&mut self, v: u32) {
        self.put(&v.to_be_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.put(&v.to_be_bytes());
    }
    fn put_i64(&mut self, v: i64) {
        self.put(&v.to_be_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Appends what `write` writes, behind its length as a u32. On failure the buffer is as it was.
pub(crate) fn framed<E>(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    check: impl FnOnce(usize) -> Result<(), E>,
) -> Result<(), E> {
    let at = out.len();
    out.put_u32(0);
    let start = out.len();
    let done = write(out).and_then(|()| check(out.len() - start));
    match done {
        Ok(()) => {
            // Checked against a limit far below 4 GiB.
            let len = (out.len() - start) as u32;
            out[at..start].copy_from_slice(&len.to_be_bytes());
            Ok(())
        }
        Err(e) => {
            out.truncate(at);
            Err(e)
        }
    }
}

/// A set of flags of one byte, whose reserved bits are refused: its constants, and how it comes from the wire and goes there.
macro_rules! byte_flags {
    ($(#[$doc:meta])* $name:ident, $field:literal, { $($(#[$flag_doc:meta])* $flag:ident = $bit:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(u8);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$flag_doc])* pub const $flag: Self = Self($bit);)+

            const KNOWN: u8 = $($bit)|+;

            /// Makes a set from the byte on the wire.
            ///
            /// # Errors
            /// If reserved bits are set.
            pub fn from_bits(bits: u8) -> Result<Self, $crate::error::Malformed> {
                $crate::wire::reserved($field, bits, Self::KNOWN)?;
                Ok(Self(bits))
            }

            /// Returns the byte on the wire.
            #[must_use]
            pub const fn bits(self) -> u8 {
                self.0
            }

            /// Returns true if all of `other` are set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }
    };
}
pub(crate) use byte_flags;
