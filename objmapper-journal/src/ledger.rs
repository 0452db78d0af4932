//! Which slot of the table is used, by which record, and how much of each segment is live.
//!
//! | a slot is | from | to |
//! |---|---|---|
//! | free | the start, `remove`, a failed write | pending |
//! | pending: its record is in the inbox | `reserve` | written, by `write`; removed; free, by `abandon` |
//! | removed: while it was pending | `remove` | free, by `write` or `abandon` |
//! | written: its entry is in the file | `write`, `restore` | free, by `remove` |

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::entry::{ENTRY_LEN, Entry, RecordPlace, Times};
use crate::inbox::Item;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Pending,
    Removed,
    Written,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    segment: u32,
    len: u32,
    state: State,
}

/// A segment's file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Segment {
    /// Bytes of records that have slots.
    pub(crate) live: u64,
    /// Bytes of the file.
    pub(crate) len: u64,
    /// True if nothing more is written to it.
    pub(crate) closed: bool,
}

pub(crate) struct Ledger {
    file: File,
    slots: Vec<Slot>,
    free: Vec<u32>,
    segments: BTreeMap<u32, Segment>,
    /// New times of pending slots.
    times: HashMap<u32, Times>,
    objects: u64,
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * ENTRY_LEN as u64
}

impl Ledger {
    pub(crate) fn new(file: File) -> Ledger {
        Ledger {
            file,
            slots: Vec::new(),
            free: Vec::new(),
            segments: BTreeMap::new(),
            times: HashMap::new(),
            objects: 0,
        }
    }

    /// Enters what was found at the start: `slots` of the file, and the segments with their lengths.
    pub(crate) fn restore(&mut self, slots: usize, found: &[(u32, RecordPlace)], segments: &[(u32, u64)]) {
        self.slots = vec![Slot { segment: 0, len: 0, state: State::Free }; slots];
        for (segment, len) in segments {
            self.segments.insert(*segment, Segment { live: 0, len: *len, closed: true });
        }
        for (slot, place) in found {
            if let Some(entry) = self.slots.get_mut(*slot as usize) {
                *entry = Slot { segment: place.segment, len: place.len, state: State::Written };
                self.objects += 1;
                if let Some(segment) = self.segments.get_mut(&place.segment) {
                    segment.live += u64::from(place.len);
                }
            }
        }
        let free = self.slots.iter().enumerate().rev().filter(|(_, slot)| slot.state == State::Free);
        self.free = free.map(|(index, _)| index as u32).collect();
    }

    /// Takes a slot for a record that is about to be written. `None`: the table is full.
    pub(crate) fn reserve(&mut self, place: RecordPlace) -> Option<u32> {
        let taken = Slot { segment: place.segment, len: place.len, state: State::Pending };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = taken;
                slot
            }
            None => {
                // The two largest numbers are the callers' own.
                let slot = u32::try_from(self.slots.len()).ok().filter(|slot| *slot < u32::MAX - 1)?;
                self.slots.push(taken);
                slot
            }
        };
        self.objects += 1;
        self.segments.entry(place.segment).or_default().live += u64::from(place.len);
        Some(slot)
    }

    /// Frees the slot of an object. Returns the segment's number if nothing of it is live any more and it may be removed.
    pub(crate) fn remove(&mut self, slot: u32) -> io::Result<Option<u32>> {
        let Some(entry) = self.slots.get(slot as usize).copied() else { return Ok(None) };
        match entry.state {
            State::Free | State::Removed => Ok(None),
            State::Pending => {
                self.slots[slot as usize].state = State::Removed;
                self.objects = self.objects.saturating_sub(1);
                Ok(None)
            }
            State::Written => {
                self.file.write_all_at(&[0; 8], offset(slot))?;
                Ok(self.release(slot))
            }
        }
    }

    fn release(&mut self, slot: u32) -> Option<u32> {
        let entry = &mut self.slots[slot as usize];
        if std::mem::replace(&mut entry.state, State::Free) != State::Removed {
            self.objects = self.objects.saturating_sub(1);
        }
        let (segment, len) = (entry.segment, entry.len);
        self.free.push(slot);
        self.times.remove(&slot);
        self.less_live(segment, len)
    }

    fn less_live(&mut self, number: u32, len: u32) -> Option<u32> {
        let segment = self.segments.get_mut(&number)?;
        segment.live = segment.live.saturating_sub(u64::from(len));
        self.empty(number)
    }

    /// Takes a closed segment without live records out. Its file is the caller's to remove.
    fn empty(&mut self, number: u32) -> Option<u32> {
        let segment = self.segments.get(&number)?;
        if !segment.closed || segment.live > 0 {
            return None;
        }
        self.segments.remove(&number);
        Some(number)
    }

    /// Sets an object's times.
    pub(crate) fn set_times(&mut self, slot: u32, times: Times) -> io::Result<()> {
        match self.slots.get(slot as usize).map(|entry| entry.state) {
            Some(State::Pending) => {
                self.times.insert(slot, times);
                Ok(())
            }
            Some(State::Written) => {
                let Some(mut entry) = self.read(slot)? else { return Ok(()) };
                entry.times = times;
                self.file.write_all_at(&entry.encode(), offset(slot))
            }
            _ => Ok(()),
        }
    }

    /// Reads a written entry; `None` if it is damaged.
    pub(crate) fn read(&self, slot: u32) -> io::Result<Option<Entry>> {
        let mut bytes = [0; ENTRY_LEN];
        self.file.read_exact_at(&mut bytes, offset(slot))?;
        Ok(Entry::decode(&bytes).ok().flatten())
    }

    /// Notes that a batch of a segment's records is in its file.
    pub(crate) fn grown(&mut self, number: u32, len: u64, closed: bool) -> Option<u32> {
        let segment = self.segments.entry(number).or_default();
        segment.len = segment.len.max(len);
        segment.closed |= closed;
        self.empty(number)
    }

    /// Writes the entries of records that are in their file. Returns the number of entries, and segments that may be removed.
    pub(crate) fn write(&mut self, mut items: Vec<Item>) -> io::Result<(u64, Vec<u32>)> {
        let mut unneeded = Vec::new();
        let mut written = 0;
        items.sort_unstable_by_key(|item| match item {
            Item::New { slot, .. } | Item::Moved { slot, .. } => *slot,
        });
        // Consecutive slots are one write.
        let mut run: Vec<u8> = Vec::new();
        let mut first = 0;
        let mut next = 0;
        let mut items = items.into_iter();
        while let Some(item) = items.next() {
            let step = match item {
                Item::New { slot, .. } if self.slots[slot as usize].state == State::Removed => {
                    unneeded.extend(self.release(slot));
                    Ok(())
                }
                Item::New { slot, mut entry } => {
                    if let Some(times) = self.times.remove(&slot) {
                        entry.times = times;
                    }
                    let mut flushed = Ok(());
                    if slot != next && !run.is_empty() {
                        flushed = self.file.write_all_at(&run, offset(first));
                        run.clear();
                    }
                    if run.is_empty() {
                        first = slot;
                    }
                    run.extend_from_slice(&entry.encode());
                    next = slot + 1;
                    self.slots[slot as usize].state = State::Written;
                    written += 1;
                    flushed
                }
                Item::Moved { slot, sequence, from, place } => {
                    self.moved(slot, sequence, from, place).map(|emptied| unneeded.extend(emptied))
                }
            };
            if let Err(error) = step {
                self.abandon(items.collect());
                return Err(error);
            }
        }
        if !run.is_empty() {
            self.file.write_all_at(&run, offset(first))?;
        }
        Ok((written, unneeded))
    }

    /// Gives an entry the new place of its record, unless the object is gone.
    fn moved(&mut self, slot: u32, sequence: u64, from: u32, place: RecordPlace) -> io::Result<Option<u32>> {
        let entry = self.slots[slot as usize];
        if entry.state != State::Written || entry.segment != from {
            return Ok(None);
        }
        match self.read(slot)? {
            Some(mut written) if written.sequence == sequence => {
                written.record = place;
                self.file.write_all_at(&written.encode(), offset(slot))?;
            }
            _ => return Ok(None),
        }
        self.slots[slot as usize].segment = place.segment;
        self.slots[slot as usize].len = place.len;
        self.segments.entry(place.segment).or_default().live += u64::from(place.len);
        Ok(self.less_live(from, entry.len))
    }

    /// Frees the slots of records that could not be written.
    pub(crate) fn abandon(&mut self, items: Vec<Item>) {
        for item in items {
            if let Item::New { slot, .. } = item {
                let _ = self.release(slot);
            }
        }
    }

    /// Returns the closed segment with the smallest live part, and its live slots, if the dead parts of all together are more
    /// than `slack` and than the live ones.
    pub(crate) fn mostly_dead(&self, slack: u64) -> Option<(u32, Vec<u32>)> {
        let stats = self.bytes();
        if stats.1.saturating_sub(stats.0) <= slack.max(stats.0) {
            return None;
        }
        let closed = self.segments.iter().filter(|(_, segment)| segment.closed && segment.len > 0);
        let (number, segment) =
            closed.min_by(|(_, a), (_, b)| (a.live * b.len.max(1)).cmp(&(b.live * a.len.max(1))))?;
        if segment.live * 2 > segment.len {
            return None;
        }
        let slots = self.slots.iter().enumerate();
        let live = slots.filter(|(_, slot)| slot.state == State::Written && slot.segment == *number);
        Some((*number, live.map(|(index, _)| index as u32).collect()))
    }

    /// Returns the bytes of live records, and of all segments.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.segments.values().fold((0, 0), |(live, len), segment| (live + segment.live, len + segment.len))
    }

    /// Takes the closed segments without live records out, and returns their numbers.
    pub(crate) fn without_live(&mut self) -> Vec<u32> {
        let dead: Vec<u32> = self.segments.iter().filter(|(_, s)| s.closed && s.live == 0).map(|(n, _)| *n).collect();
        dead.iter().for_each(|number| {
            self.segments.remove(number);
        });
        dead
    }

    /// Returns the number of objects.
    pub(crate) fn objects(&self) -> u64 {
        self.objects
    }

    /// A descriptor of the table, to read many entries.
    pub(crate) fn table(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}
