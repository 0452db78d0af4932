//! Records that are not written yet: copied here by the thread that has the object, written by the one that flushes.

use crate::entry::{Entry, RecordPlace};
use crate::journal::RECORD_HEAD;

/// A batch is closed when it has so many bytes: one `pwrite`.
const BATCH: usize = 256 << 10;

/// What becomes of the table when a record is written.
pub(crate) enum Item {
    /// A new object's entry.
    New { slot: u32, entry: Entry },
    /// A record that was copied forward out of the segment `from`.
    Moved { slot: u32, sequence: u64, from: u32, place: RecordPlace },
}

/// Consecutive bytes of one segment.
pub(crate) struct Batch {
    pub(crate) segment: u32,
    pub(crate) base: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) items: Vec<Item>,
    /// True if it is the segment's last one.
    pub(crate) closes: bool,
}

impl Batch {
    fn new(segment: u32, base: u32) -> Batch {
        Batch { segment, base, bytes: Vec::new(), items: Vec::new(), closes: false }
    }
}

pub(crate) struct Inbox {
    segment_size: u32,
    current: Batch,
    full: Vec<Batch>,
    /// Bytes in `full`.
    waiting: usize,
}

impl Inbox {
    /// Begins with this segment, which does not exist yet.
    pub(crate) fn new(segment_size: u32, segment: u32) -> Inbox {
        Inbox { segment_size, current: Batch::new(segment, 0), full: Vec::new(), waiting: 0 }
    }

    /// Bytes that are not written yet.
    pub(crate) fn backlog(&self) -> usize {
        self.waiting + self.current.bytes.len()
    }

    /// Returns true if a whole batch waits.
    pub(crate) fn has_full_batch(&self) -> bool {
        !self.full.is_empty()
    }

    /// Returns the place of the next record, which must be pushed next. `len` is at most the segment size.
    pub(crate) fn next_place(&mut self, len: u32) -> RecordPlace {
        let at = self.end();
        if at.saturating_add(len) > self.segment_size {
            let next = self.current.segment.wrapping_add(1);
            self.current.closes = true;
            self.close_batch(next, 0);
        } else if self.current.bytes.len() >= BATCH {
            self.close_batch(self.current.segment, at);
        }
        RecordPlace { segment: self.current.segment, offset: self.end(), len }
    }

    fn end(&self) -> u32 {
        self.current.base + self.current.bytes.len() as u32
    }

    fn close_batch(&mut self, segment: u32, base: u32) {
        let full = std::mem::replace(&mut self.current, Batch::new(segment, base));
        self.waiting += full.bytes.len();
        self.full.push(full);
    }

    /// Pushes a record that has its head.
    pub(crate) fn push(&mut self, framed: &[u8], item: Item) {
        self.current.bytes.extend_from_slice(framed);
        self.current.items.push(item);
    }

    /// Pushes a record with a head before it, which is made of the whole record.
    pub(crate) fn push_framed(&mut self, parts: &[&[u8]], item: Item, head: impl FnOnce(&[u8]) -> [u8; RECORD_HEAD]) {
        let bytes = &mut self.current.bytes;
        let at = bytes.len();
        bytes.extend_from_slice(&[0; RECORD_HEAD]);
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let (before, payload) = bytes.split_at_mut(at + RECORD_HEAD);
        before[at..].copy_from_slice(&head(payload));
        self.current.items.push(item);
    }

    /// Takes all batches.
    pub(crate) fn take(&mut self) -> Vec<Batch> {
        if !self.current.bytes.is_empty() {
            self.close_batch(self.current.segment, self.end());
        }
        self.waiting = 0;
        std::mem::take(&mut self.full)
    }

    /// Goes on in another segment: bytes of the current one could not be written.
    pub(crate) fn leave_segment(&mut self, segment: u32) {
        if self.current.segment == segment {
            self.current.closes = true;
            self.close_batch(segment.wrapping_add(1), 0);
        }
    }
}
