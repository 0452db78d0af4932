//! Reads entries and records, many in a row: most are beside the one before.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::xxh3_64;

use crate::entry::{DIGEST_AT, ENTRY_LEN, Entry};
use crate::journal::{Journal, RECORD_HEAD};

/// Bytes that are read at a time.
const WINDOW: usize = 1 << 20;
/// Segments that are open at a time.
const MAX_SEGMENTS: usize = 8;

/// The part of a file that was read last.
struct Window {
    file: File,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn new(file: File) -> Window {
        Window { file, start: 0, bytes: Vec::new() }
    }

    /// Returns `len` bytes at `at`.
    fn read(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let inside = at >= self.start && at + len as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            self.bytes.resize(WINDOW.max(len), 0);
            let mut filled = 0;
            while filled < self.bytes.len() {
                match self.file.read_at(&mut self.bytes[filled..], at + filled as u64) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.bytes.clear();
                        return Err(error);
                    }
                }
            }
            self.bytes.truncate(filled);
            self.start = at;
        }
        let from = (at - self.start) as usize;
        self.bytes.get(from..from + len).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads what a journal was opened with.
pub struct Reader<'a> {
    journal: &'a Journal,
    table: Window,
    segments: VecDeque<(u32, Window)>,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Reader<'_> {
    pub(crate) fn new(journal: &Journal, table: File) -> Reader<'_> {
        Reader { journal, table: Window::new(table), segments: VecDeque::new() }
    }

    /// Reads the entry in a slot.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is free.
    pub fn entry(&mut self, slot: u32) -> io::Result<Entry> {
        let bytes = self.table.read(u64::from(slot) * ENTRY_LEN as u64, ENTRY_LEN)?;
        let bytes = bytes.first_chunk::<ENTRY_LEN>().ok_or_else(|| damaged("a short entry"))?;
        Entry::decode(bytes).map_err(|e| damaged(&e.to_string()))?.ok_or_else(|| damaged("a free slot"))
    }

    /// Reads the key in a slot, without a look at what else is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn digest(&mut self, slot: u32) -> io::Result<[u8; 32]> {
        let bytes = self.table.read(u64::from(slot) * ENTRY_LEN as u64, ENTRY_LEN)?;
        Ok(*bytes[DIGEST_AT..].first_chunk().ok_or_else(|| damaged("a short entry"))?)
    }

    /// Reads an entry's record, and checks that it is what was written for this entry.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn record(&mut self, entry: &Entry) -> io::Result<&[u8]> {
        let place = entry.record;
        match self.segments.iter().position(|(number, _)| *number == place.segment) {
            // The last one is the one that was used last.
            Some(index) if index + 1 == self.segments.len() => {}
            Some(index) => {
                if let Some(used) = self.segments.remove(index) {
                    self.segments.push_back(used);
                }
            }
            None => {
                let file = self.journal.segment_file(place.segment)?.ok_or_else(|| damaged("a segment is missing"))?;
                if self.segments.len() >= MAX_SEGMENTS {
                    self.segments.pop_front();
                }
                self.segments.push_back((place.segment, Window::new(file)));
            }
        }
        let Some((_, window)) = self.segments.back_mut() else { return Err(damaged("no segment")) };
        let framed = window.read(u64::from(place.offset), place.len as usize)?;
        parse(framed, entry.sequence).ok_or_else(|| damaged("a damaged record"))
    }
}

/// The head of a record's frame: a checksum of both, and the sequence number.
pub(crate) fn frame_head(sequence: u64, payload: &[u8]) -> [u8; RECORD_HEAD] {
    // A record of another object has another checksum.
    let check = xxh3_64(payload) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut head = [0; RECORD_HEAD];
    head[..8].copy_from_slice(&check.to_le_bytes());
    head[8..].copy_from_slice(&sequence.to_le_bytes());
    head
}

/// The record in a frame, if it is whole and of this object.
fn parse(framed: &[u8], sequence: u64) -> Option<&[u8]> {
    let (head, payload) = framed.split_first_chunk::<RECORD_HEAD>()?;
    (*head == frame_head(sequence, payload)).then_some(payload)
}
