//! The ban log of a space: its bans, their limits, and whether they let a record be used.
//!
//! A record has a *mark*, the nonce and the sequence number of the log when its fetch began. It may be used if the
//! nonce is the log's, the number is at least the floor, and no later ban matches it. Anything that the log cannot
//! decide invalidates the record.

use crate::invalidation::bans::evaluate::{Patterns, matches};
use crate::invalidation::bans::spec::{Ban, Test};
use crate::lookup::request::RequestView;
use crate::record::bytes::{Malformed, Reader, put_bytes};
use crate::record::head::Head;
use crate::record::stored::Mark;
use crate::record::tail::{MAX_TAIL, TRAILER_LEN};

/// A ban and its sequence number.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    seq: u64,
    ban: Ban,
    /// The bytes that it takes in the log.
    size: usize,
}

/// Up to which announcement on a board a log stands for bans that were lost.
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

/// A ban log. Sequence numbers ascend from `floor`, exclusive, to `last`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Log {
    /// The space's prefix.
    prefix: Vec<u8>,
    /// Random. A record whose mark has another nonce is older than this log, and is invalidated.
    nonce: [u8; 16],
    /// The sequence number of the newest ban that was dropped. A record whose mark is below it is invalidated.
    floor: u64,
    /// The sequence number of the newest ban.
    last: u64,
    healed: Option<Healed>,
    /// The bans, in the order of their sequence numbers.
    entries: Vec<Entry>,
}

impl Log {
    /// The greatest sequence number that is read: bans that are appended to such a log still get greater ones.
    const MAX_SEQUENCE: u64 = 1 << 62;
    /// The most bans.
    pub(crate) const MAX_ENTRIES: usize = 4096;
    /// The most bytes of all bans.
    const MAX_BYTES: usize = MAX_TAIL - TRAILER_LEN - (64 << 10);
    /// Bytes of a ban besides its own.
    const ENTRY_LEN: usize = 12;

    /// Makes an empty log.
    pub(crate) fn new(prefix: &[u8], nonce: [u8; 16]) -> Self {
        Self { prefix: prefix.to_vec(), nonce, floor: 0, last: 0, healed: None, entries: Vec::new() }
    }

    /// Sets which lost announcements the log covers.
    pub(crate) fn healing(mut self, healed: Healed) -> Self {
        self.healed = Some(healed);
        self
    }

    pub(crate) fn healed(&self) -> Option<Healed> {
        self.healed
    }

    /// Returns the mark of a response that is requested from the origin now: it is newer than these bans.
    pub(crate) fn mark(&self) -> Mark {
        Mark { nonce: self.nonce, seq: self.last }
    }

    pub(crate) fn bans(&self) -> impl Iterator<Item = &Ban> {
        self.entries.iter().map(|entry| &entry.ban)
    }

    /// Appends a ban; drops its duplicates, and the oldest bans above the limits.
    pub(crate) fn append(&mut self, ban: Ban) {
        let size_of = |ban: &Ban| {
            let mut bytes = Vec::new();
            ban.encode(&mut bytes);
            bytes.len() + Self::ENTRY_LEN
        };
        let (ban, size) = match size_of(&ban) {
            size @ ..=Self::MAX_BYTES => (ban, size),
            _ => {
                let all = Ban::matching_everything(ban.time);
                let size = size_of(&all);
                (all, size)
            }
        };
        // The new ban covers everything that its duplicates cover.
        self.entries.retain(|entry| !entry.ban.is_duplicate_of(&ban));
        self.last += 1;
        self.entries.push(Entry { seq: self.last, ban, size });
        let mut total: usize = self.entries.iter().map(|entry| entry.size).sum();
        let mut drop = 0;
        while self.entries.len() - drop > Self::MAX_ENTRIES || total > Self::MAX_BYTES {
            total -= self.entries[drop].size;
            self.floor = self.entries[drop].seq;
            drop += 1;
        }
        self.entries.drain(..drop);
    }

    /// Returns true if no ban invalidates a record with this mark.
    pub(crate) fn allows(
        &self,
        mark: &Mark,
        text: &[u8],
        head: &Head,
        request: &dyn RequestView,
        patterns: &Patterns,
    ) -> bool {
        if mark.nonce != self.nonce || mark.seq < self.floor || mark.seq > self.last {
            return false;
        }
        self.entries
            .iter()
            .rev()
            .take_while(|entry| entry.seq > mark.seq)
            .all(|entry| !matches(&entry.ban, text, head, request, patterns))
    }

    /// Returns true if the key with this text was purged after the mark, or if the log cannot exclude it. Only the log
    /// of a v0.1 store has purges.
    pub(crate) fn has_purged(&self, mark: &Mark, text: &[u8]) -> bool {
        let is_purge = |ban: &Ban| matches!(&ban.tests[..], [Test::Key(key)] if key == text);
        mark.nonce != self.nonce
            || mark.seq < self.floor
            || self.entries.iter().any(|entry| entry.seq > mark.seq && is_purge(&entry.ban))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, &self.prefix);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.floor.to_be_bytes());
        out.extend_from_slice(&self.last.to_be_bytes());
        out.push(self.healed.is_some().into());
        if let Some(healed) = &self.healed {
            out.extend_from_slice(&healed.board);
            out.extend_from_slice(&healed.through.to_be_bytes());
        }
        for entry in &self.entries {
            out.extend_from_slice(&entry.seq.to_be_bytes());
            let mut ban = Vec::new();
            entry.ban.encode(&mut ban);
            put_bytes(&mut out, &ban);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8], prefix: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        if r.bytes()? != prefix {
            return Err(Malformed("ban log"));
        }
        let mut log = Self::new(prefix, r.array()?);
        (log.floor, log.last) = (r.u64()?, r.u64()?);
        log.healed = if r.bool()? { Some(Healed { board: r.array()?, through: r.u64()? }) } else { None };
        let mut former = log.floor;
        while !r.is_empty() {
            let seq = r.u64()?;
            let bytes = r.bytes()?;
            let mut one = Reader::new(bytes);
            let ban = Ban::decode(&mut one)?;
            one.end()?;
            if seq <= former || seq > log.last || log.entries.len() == Self::MAX_ENTRIES {
                return Err(Malformed("ban log"));
            }
            former = seq;
            log.entries.push(Entry { seq, ban, size: bytes.len() + Self::ENTRY_LEN });
        }
        if log.floor > log.last || log.last > Self::MAX_SEQUENCE { Err(Malformed("sequence")) } else { Ok(log) }
    }
}
