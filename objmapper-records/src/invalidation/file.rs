//! The files of the invalidation log (`RECORD.md`, "The invalidation log"): the log's head with its newest entries, and
//! *parts*, which hold older ones and never change.

use std::sync::Arc;

use objmapper_client::{ObjUri, UriSpace};

use crate::invalidation::codec::LogEntry;
use crate::record::bytes::{Malformed, Reader, put_bytes};
use crate::record::vary::hex;

/// The version of the format. A version that older readers cannot follow has another URI, and is written beside the
/// older one for as long as there is one, so that a reader meets only versions that it knows.
const VERSION: u8 = 1;

/// Why a log cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    Damaged(Malformed),
    /// It is of this version, which is newer than the reader's. It is left alone.
    Newer(u8),
}

impl From<Malformed> for Unusable {
    fn from(why: Malformed) -> Self {
        Self::Damaged(why)
    }
}

/// Up to which announcement on a board a log stands for entries that were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Healed {
    /// The board's name.
    pub(crate) board: [u8; 16],
    /// The announcement's number.
    pub(crate) through: u64,
}

impl Healed {
    /// Returns true if this announcement is covered. Numbers begin anywhere and wrap.
    pub(crate) fn covers(&self, board: [u8; 16], number: u64) -> bool {
        self.board == board && self.through.wrapping_sub(number) < 1 << 63
    }
}

/// A part of the log, as its head names it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Part {
    /// Random: the name of its object.
    pub(crate) id: [u8; 16],
    /// The sequence number of its last entry.
    pub(crate) last: u64,
    /// The time of its last entry, seconds since 1970.
    pub(crate) at: f64,
    /// The bytes of its entries.
    pub(crate) len: u32,
}

/// The head of a log, with its newest entries. Sequence numbers ascend from `floor`, exclusive, to `last`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogFile {
    /// The space's prefix.
    prefix: Vec<u8>,
    /// Random. A record whose mark has another nonce is older than this log, and is invalidated.
    pub(crate) nonce: [u8; 16],
    /// When it was begun, seconds since 1970.
    pub(crate) began: f64,
    /// The sequence number of the newest entry that was dropped. A record whose mark is below it is invalidated.
    pub(crate) floor: u64,
    /// The time of that entry, seconds since 1970.
    pub(crate) floor_at: f64,
    /// The sequence number of the newest entry.
    pub(crate) last: u64,
    pub(crate) healed: Option<Healed>,
    /// The parts, the oldest first.
    pub(crate) parts: Vec<Part>,
    /// The entries behind the last part, in the order of their sequence numbers.
    pub(crate) entries: Vec<Arc<LogEntry>>,
}

impl LogFile {
    /// The greatest sequence number that is read: entries that are appended to such a log still get greater ones.
    pub(crate) const MAX_SEQUENCE: u64 = 1 << 62;

    /// Makes an empty log.
    pub(crate) fn new(prefix: &[u8], nonce: [u8; 16], began: f64) -> Self {
        Self {
            prefix: prefix.to_vec(),
            nonce,
            began,
            floor: 0,
            floor_at: 0.0,
            last: 0,
            healed: None,
            parts: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// Returns the bytes of the entries that are not in a part.
    pub(crate) fn inline_len(&self) -> usize {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// Returns the bytes of all entries, superseded ones included.
    pub(crate) fn len(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.len)).sum::<u64>() + self.inline_len() as u64
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_bytes(&mut out, &self.prefix);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.began.to_be_bytes());
        out.extend_from_slice(&self.floor.to_be_bytes());
        out.extend_from_slice(&self.floor_at.to_be_bytes());
        out.extend_from_slice(&self.last.to_be_bytes());
        out.push(self.healed.is_some().into());
        if let Some(healed) = &self.healed {
            out.extend_from_slice(&healed.board);
            out.extend_from_slice(&healed.through.to_be_bytes());
        }
        // Each holds tens of KiB: there are far fewer than u32 can count.
        out.extend_from_slice(&(self.parts.len() as u32).to_be_bytes());
        for part in &self.parts {
            out.extend_from_slice(&part.id);
            out.extend_from_slice(&part.last.to_be_bytes());
            out.extend_from_slice(&part.at.to_be_bytes());
            out.extend_from_slice(&part.len.to_be_bytes());
        }
        for entry in &self.entries {
            entry.encode(&mut out);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8], prefix: &[u8]) -> Result<Self, Unusable> {
        let mut r = Reader::new(bytes);
        match r.u8()? {
            VERSION => {}
            newer @ 2.. => return Err(Unusable::Newer(newer)),
            0 => return Err(Malformed("version").into()),
        }
        if r.bytes()? != prefix {
            return Err(Malformed("prefix").into());
        }
        let mut log = Self::new(prefix, r.array()?, r.f64()?);
        (log.floor, log.floor_at, log.last) = (r.u64()?, r.f64()?, r.u64()?);
        log.healed = if r.bool()? { Some(Healed { board: r.array()?, through: r.u64()? }) } else { None };
        let mut former = 0;
        for _ in 0..r.u32()? {
            let part = Part { id: r.array()?, last: r.u64()?, at: r.f64()?, len: r.u32()? };
            if part.last <= former {
                return Err(Malformed("part").into());
            }
            former = part.last;
            log.parts.push(part);
        }
        log.entries = entries(&mut r, former.max(log.floor), log.last)?;
        let in_order = log.floor <= log.last && former <= log.last && log.last <= Self::MAX_SEQUENCE;
        if in_order { Ok(log) } else { Err(Malformed("sequence").into()) }
    }
}

/// Takes entries until the end. Their sequence numbers ascend from `after`, exclusive, to at most `last`.
fn entries(r: &mut Reader<'_>, after: u64, last: u64) -> Result<Vec<Arc<LogEntry>>, Malformed> {
    let mut entries = Vec::new();
    let mut former = after;
    while !r.is_empty() {
        let entry = LogEntry::decode(r)?;
        if entry.seq <= former || entry.seq > last {
            return Err(Malformed("sequence"));
        }
        former = entry.seq;
        entries.push(Arc::new(entry));
    }
    Ok(entries)
}

impl Part {
    /// Returns the URI of its object.
    pub(crate) fn uri(&self, space: &UriSpace) -> ObjUri<'static> {
        let mut name = [0; 32];
        name[..16].copy_from_slice(&self.id);
        space.uri(&[b"l", &hex(&name)[..32]])
    }

    /// Encodes a part with these entries.
    pub(crate) fn encode(&self, nonce: [u8; 16], entries: &[Arc<LogEntry>]) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&self.id);
        for entry in entries {
            entry.encode(&mut out);
        }
        out
    }

    /// Decodes this part of the log with this nonce.
    pub(crate) fn decode(&self, bytes: &[u8], nonce: [u8; 16]) -> Result<Vec<Arc<LogEntry>>, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u8()? != VERSION || r.array()? != nonce || r.array()? != self.id {
            return Err(Malformed("part"));
        }
        let entries = entries(&mut r, 0, self.last)?;
        if entries.last().is_some_and(|entry| entry.seq == self.last) { Ok(entries) } else { Err(Malformed("part")) }
    }
}
