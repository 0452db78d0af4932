//! The tail that makes a file a record: `RECORD.md`, "Files". The trailer is at the very end, so that a truncated file
//! is no record.

use xxhash_rust::xxh3::Xxh3;

use crate::record::bytes::{Malformed, Reader};
use crate::record::head::BodySum;

/// The first bytes of the trailer.
const MAGIC: &[u8; 8] = b"OBJMRECD";
const VERSION: u16 = 1;
const FLAG_BODY_SUM: u8 = 1;
/// The bytes of the trailer that its checksum covers.
const COVERED: usize = 32;

/// The length of the trailer in bytes.
pub(crate) const TRAILER_LEN: usize = COVERED + 16;

/// The most bytes of a tail: a reader never reads more to decode a record.
pub(crate) const MAX_TAIL: usize = 1 << 20;
/// The most bytes of a body with a v0.1 peer.
pub(crate) const MAX_V01_BODY: usize = 8 << 20;

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A response.
    Record = 1,
    /// The index of a key whose responses vary.
    Vary = 2,
    /// A new head for a record.
    Renewal = 3,
    // 4 was the ban log, before it held purges.
    /// The head of an invalidation log.
    Log = 5,
    /// A part of an invalidation log.
    LogPart = 6,
}

impl TryFrom<u8> for Kind {
    type Error = Malformed;

    fn try_from(byte: u8) -> Result<Self, Malformed> {
        Ok(match byte {
            1 => Self::Record,
            2 => Self::Vary,
            3 => Self::Renewal,
            5 => Self::Log,
            6 => Self::LogPart,
            _ => return Err(Malformed("trailer")),
        })
    }
}

/// A decoded trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) kind: Kind,
    pub(crate) head_len: usize,
    pub(crate) body_len: u64,
    pub(crate) sum: Option<BodySum>,
    head_sum: [u8; 16],
    covered: [u8; COVERED],
}

/// Appends the trailer to a head: the tail of a file whose body has `body_len` bytes. `None`: the head is too long.
pub(crate) fn tail(kind: Kind, mut head: Vec<u8>, body_len: u64, sum: Option<BodySum>) -> Option<Vec<u8>> {
    if head.len() > MAX_TAIL - TRAILER_LEN {
        return None;
    }
    let head_len = u32::try_from(head.len()).ok()?;
    let mut covered = Vec::with_capacity(TRAILER_LEN);
    covered.extend_from_slice(MAGIC);
    covered.extend_from_slice(&VERSION.to_be_bytes());
    covered.push(kind as u8);
    covered.push(if sum.is_some() { FLAG_BODY_SUM } else { 0 });
    covered.extend_from_slice(&head_len.to_be_bytes());
    covered.extend_from_slice(&body_len.to_be_bytes());
    covered.extend_from_slice(&sum.map_or(0, |sum| sum.0).to_be_bytes());
    let head_sum = head_sum(&head, &covered);
    head.extend_from_slice(&covered);
    head.extend_from_slice(&head_sum);
    Some(head)
}

/// Returns true if the last bytes of a file begin as a trailer does, whether or not it is valid.
pub(crate) fn has_magic(last: &[u8; TRAILER_LEN]) -> bool {
    last.starts_with(MAGIC)
}

fn head_sum(head: &[u8], covered: &[u8]) -> [u8; 16] {
    let mut hash = Xxh3::new();
    hash.update(head);
    hash.update(covered);
    hash.digest128().to_be_bytes()
}

impl Trailer {
    /// Decodes the trailer of a file of `file_len` bytes. The caller [checks](Self::check) the head.
    pub(crate) fn parse(last: &[u8; TRAILER_LEN], file_len: u64) -> Result<Self, Malformed> {
        let mut r = Reader::new(last);
        let covered: [u8; COVERED] = r.array()?;
        let head_sum = r.array()?;
        let mut r = Reader::new(&covered);
        if r.take(MAGIC.len())? != MAGIC || r.u16()? != VERSION {
            return Err(Malformed("trailer"));
        }
        let kind = Kind::try_from(r.u8()?)?;
        let flags = r.u8()?;
        let head_len = usize::try_from(r.u32()?).map_err(|_| Malformed("trailer"))?;
        let body_len = r.u64()?;
        let sum = r.u64()?;
        r.end()?;
        let sum = match flags {
            0 if sum == 0 => None,
            FLAG_BODY_SUM => Some(BodySum(sum)),
            _ => return Err(Malformed("trailer")),
        };
        let tail_len = head_len.checked_add(TRAILER_LEN).filter(|len| *len <= MAX_TAIL).ok_or(Malformed("trailer"))?;
        if body_len.checked_add(tail_len as u64) != Some(file_len) {
            return Err(Malformed("trailer"));
        }
        Ok(Self { kind, head_len, body_len, sum, head_sum, covered })
    }

    /// Returns the length of head and trailer together.
    pub(crate) fn tail_len(&self) -> usize {
        self.head_len + TRAILER_LEN
    }

    /// Returns an error if the head has another length or checksum.
    pub(crate) fn check(&self, head: &[u8]) -> Result<(), Malformed> {
        let matches = head.len() == self.head_len && head_sum(head, &self.covered) == self.head_sum;
        if matches { Ok(()) } else { Err(Malformed("checksum of head and trailer")) }
    }
}

/// Decodes a whole file in memory: returns its trailer, head and body, with every checksum compared.
pub(crate) fn parse_whole(file: &[u8]) -> Result<(Trailer, &[u8], &[u8]), Malformed> {
    let (rest, last) = file.split_last_chunk::<TRAILER_LEN>().ok_or(Malformed("trailer"))?;
    let trailer = Trailer::parse(last, file.len() as u64)?;
    let body_len = rest.len().checked_sub(trailer.head_len).ok_or(Malformed("trailer"))?;
    let (body, head) = rest.split_at(body_len);
    trailer.check(head)?;
    check_body(&trailer, body)?;
    Ok((trailer, head, body))
}

/// Returns an error if the body has another length, or another checksum, if its publisher computed one.
pub(crate) fn check_body(trailer: &Trailer, body: &[u8]) -> Result<(), Malformed> {
    let matches = body.len() as u64 == trailer.body_len
        && trailer.sum.is_none_or(|sum| sum.0 == xxhash_rust::xxh3::xxh3_64(body));
    if matches { Ok(()) } else { Err(Malformed("checksum of the body")) }
}
