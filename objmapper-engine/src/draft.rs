//! A body that is being written to objmapper: its file, and the buffer through which the fetch writes.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;

use crate::backing::{Draft, Failure, Room};
use crate::counters;
use crate::engine::Engine;
use crate::write_buffer::WriteBuffer;

/// The writer's view of a draft.
pub(crate) struct Writing {
    draft: Draft,
    /// Its file for the readers.
    reading: Arc<File>,
    /// Bytes reserved with the account, from the body's start; less what was given back.
    reserved: u64,
    /// The body's first bytes, which nobody will read again. Of those that are not in the file yet, none will be.
    given_back: u64,
    /// Of these, the ones whose pages are freed.
    punched: u64,
    /// The expected length; 0 if nobody knows.
    hint: u64,
    /// The body's first bytes: those that are in the file.
    written: u64,
    /// The file's size.
    file_size: u64,
    /// Where the bytes from `written` on are put.
    buffer: Option<Arc<WriteBuffer>>,
    /// The rest of the body is in heap: from here on. What was in the buffer then is there.
    ends_at: Option<u64>,
    /// Bytes of a record's tail behind the body, accounted beside `reserved`.
    tail: u64,
}

/// What was in the buffer is still there only.
pub(crate) struct Unwritten;

impl Writing {
    /// Begins a draft of `reserved` bytes (of `hint` in the end; 0 is unknown). `fill` writes to its file what there is of the
    /// body already. `None`: objmapper can't; this is counted.
    pub(crate) fn begin(
        engine: &Engine,
        hint: u64,
        reserved: u64,
        fill: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Option<Box<Writing>> {
        let draft = engine.create_draft(Room { granted: reserved, expected: hint })?;
        let open = || reopen_read_only(draft.file()?);
        let opened = open().or_else(|error| if engine.drop_caches(&error) { open() } else { Err(error) });
        let begun = opened.and_then(|reading| {
            fill(draft.file()?)?;
            Ok(Arc::new(reading))
        });
        let reading = match begun {
            Ok(reading) => reading,
            Err(error) => {
                engine.draft_error("beginning a body", &error);
                draft.abort();
                return None;
            }
        };
        Some(Box::new(Writing {
            draft,
            reading,
            reserved,
            given_back: 0,
            punched: 0,
            hint,
            written: 0,
            file_size: 0,
            buffer: None,
            ends_at: None,
            tail: 0,
        }))
    }

    /// The first `len` bytes of the body were written as it began; of these the first `given_back` will not be read.
    pub(crate) fn start_accounting(&mut self, engine: &Engine, len: u64, given_back: u64) {
        engine.account.shrink(given_back);
        (self.written, self.file_size, self.given_back) = (len, len, given_back);
        counters::add(&engine.counters.g_writing, 1);
        counters::add(&engine.counters.g_bodies, 1);
        counters::add(&engine.counters.g_body_bytes, self.reserved - given_back);
    }

    /// The file for the readers.
    pub(crate) fn reading(&self) -> Arc<File> {
        self.reading.clone()
    }

    /// Bytes of room in total.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// The body's first bytes, which the draft accounts for.
    pub(crate) fn accounted(&self) -> u64 {
        self.ends_at.unwrap_or(self.reserved)
    }

    /// The rest of the body, from `len` on, is in heap.
    pub(crate) fn end_at(&mut self, len: u64) {
        self.ends_at.get_or_insert(len);
        self.buffer = None;
    }

    /// `bytes` more were accounted. `false`: objmapper can't have them. What a final iteration gave back is holes in
    /// the file: such a draft is never published, and needs no reservation for them. What is given back and not freed yet
    /// needs one: the store holds a draft to its reservation.
    pub(crate) fn grow(&mut self, engine: &Engine, bytes: u64) -> bool {
        let reserved = self.reserved + bytes;
        let room = Room { granted: reserved - self.punched, expected: self.hint };
        if let Err(failure) = self.reserve_or_move(engine, room) {
            engine.count_fallback(&failure);
            return false;
        }
        self.reserved = reserved;
        counters::add(&engine.counters.g_body_bytes, bytes);
        true
    }

    /// Reserves room for a record's tail behind the `len` bytes of a complete body. A failure is counted.
    pub(crate) fn reserve_tail(&mut self, engine: &Engine, len: u64, tail: u64) -> Result<(), Failure> {
        let room = Room { granted: len + tail, expected: 0 };
        self.reserve_or_move(engine, room).inspect_err(|failure| engine.count_failure(failure))
    }

    /// Sets the reservation; where the draft's tier is full, goes on in another one. Readers that have the old file read on
    /// there; those to come are given the new one ([`Writing::reading`]).
    fn reserve_or_move(&mut self, engine: &Engine, room: Room) -> Result<(), Failure> {
        let full = match engine.reserve(&mut self.draft, room) {
            Err(full @ Failure::Full(_)) => full,
            other => return other,
        };
        // A draft with holes is never published: heap serves as well for the rest of it.
        if self.given_back > 0 {
            return Err(full);
        }
        let moved = match engine.backing().create_elsewhere(&self.draft, room, self.written) {
            None => return Err(full),
            Some(created) => created?,
        };
        let open = || reopen_read_only(moved.file()?);
        match open().or_else(|error| if engine.drop_caches(&error) { open() } else { Err(error) }) {
            Ok(reading) => {
                self.reading = Arc::new(reading);
                std::mem::replace(&mut self.draft, moved).abort();
                Ok(())
            }
            Err(error) => {
                moved.abort();
                Err(Failure::Io(error.to_string()))
            }
        }
    }

    /// Is the buffer full, when the body ends at `len`?
    pub(crate) fn is_full(&self, len: u64) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| len - self.written >= buffer.size() as u64)
    }

    /// Where the bytes from `len`, the body's end, on can be written: a buffer that is not full, how much of it is used, and
    /// how many bytes more may be written there. `None`: there is no memory; this is counted.
    pub(crate) fn room(&mut self, engine: &Engine, len: u64) -> Option<(Arc<WriteBuffer>, usize, usize)> {
        let buffer = match &self.buffer {
            Some(buffer) => buffer,
            None => {
                let expected = self.hint.checked_sub(len).filter(|more| *more > 0).unwrap_or(u64::MAX);
                let size = usize::try_from(expected).unwrap_or(usize::MAX).min(WriteBuffer::MAX_SIZE);
                let Some(buffer) = WriteBuffer::new(size) else {
                    engine.draft_error("memory for a body that comes in", &std::io::ErrorKind::OutOfMemory.into());
                    return None;
                };
                self.buffer.insert(Arc::new(buffer))
            }
        };
        let used = (len - self.written) as usize;
        let room = (buffer.size() - used).min(usize::try_from(self.reserved - len).unwrap_or(usize::MAX));
        Some((buffer.clone(), used, room))
    }

    /// Writes to the file what of the body, which ends at `len`, is not there yet, and gives the buffer to
    /// [`Writing::reuse_buffer`]; none if nothing is in one. `Err`: it could not be written, and stays where it is; this is counted.
    pub(crate) fn write(&mut self, engine: &Engine, len: u64) -> Result<Option<Arc<WriteBuffer>>, Unwritten> {
        if self.ends_at.is_some() {
            return Ok(None);
        }
        let Some(buffer) = self.buffer.take() else { return Ok(None) };
        // SAFETY: the fetch wrote what is body before it said so (`Body::extend`), and it is the fetch that calls.
        let bytes = unsafe { buffer.bytes((len - self.written) as usize) };
        // Nobody wants what was given back.
        let skip = (self.given_back.saturating_sub(self.written) as usize).min(bytes.len());
        if skip < bytes.len() {
            let from = self.written + skip as u64;
            if let Err(error) = self.draft.file().and_then(|file| file.write_all_at(&bytes[skip..], from)) {
                engine.draft_error("writing a body", &error);
                return Err(Unwritten);
            }
            self.file_size = len;
        }
        self.written = len;
        Ok(Some(buffer))
    }

    /// A buffer whose bytes are in the file is used again, unless somebody still reads there, or it was a short one, for what
    /// was expected.
    pub(crate) fn reuse_buffer(&mut self, mut buffer: Arc<WriteBuffer>, len: u64) {
        let suits = buffer.size() == WriteBuffer::MAX_SIZE || self.hint > len;
        self.buffer = (suits && Arc::get_mut(&mut buffer).is_some()).then_some(buffer);
    }

    /// Gives the surplus behind `len` back. The writer has nothing to [`write`](Writing::write) any more.
    pub(crate) fn trim(&mut self, engine: &Engine, len: u64) {
        self.buffer = None;
        let len = self.ends_at.unwrap_or(len);
        // Readers are below: nobody looks at what goes.
        match self.draft.file().and_then(|file| set_size(file, self.written)) {
            Ok(()) => self.file_size = self.written,
            Err(error) => engine.file_error("trimming a body", &error),
        }
        engine.reserve_less(&mut self.draft, len.saturating_sub(self.punched));
        // After objmapper's: what this allows somebody, objmapper must not refuse.
        let surplus = self.reserved.saturating_sub(len);
        if surplus > 0 {
            engine.account.shrink(surplus);
            counters::sub(&engine.counters.g_body_bytes, surplus);
            self.reserved = len;
        }
    }

    /// Nobody will read the bytes before `to` again: their pages are freed, as far as they have any, in multiples of
    /// `unit`.
    pub(crate) fn give_back(&mut self, engine: &Engine, to: u64, unit: u64) {
        self.given_back = to;
        let unit = unit.max(page_size());
        let (from, to) = (self.punched, to.min(self.written) / unit * unit);
        if to <= from {
            return;
        }
        self.punched = to;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let punched = self
            .draft
            .file()
            .and_then(|file| uninterrupted(|| Ok(fallocate(file.as_fd(), flags, from as i64, (to - from) as i64)?)));
        if let Err(error) = punched {
            engine.file_error("giving back a body's pages", &error);
        }
    }

    /// The body's first bytes that are in the file.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// What the draft counts of the body ends before `start`: the rest is in heap.
    pub(crate) fn ends_before(&mut self, start: u64) {
        self.ends_at = Some(start);
    }

    /// Is all of the body in the file?
    pub(crate) fn is_whole(&self) -> bool {
        self.ends_at.is_none() && self.given_back == 0
    }

    /// The body is complete with `len` bytes: sees to it that the file ends there. `false`: it does not.
    pub(crate) fn finish(&mut self, engine: &Engine, len: u64) -> bool {
        if self.tail == 0 && (self.reserved != len || self.file_size != len) {
            // A fetch that ended without saying so.
            self.trim(engine, len);
        }
        self.file_size == len + self.tail
    }

    /// Is nothing in the file that anybody may read, or was given back?
    pub(crate) fn is_empty(&self) -> bool {
        self.written == 0 && self.given_back == 0
    }

    /// Another allocation takes `bytes` of what the account granted.
    pub(crate) fn hand_over(&mut self, engine: &Engine, bytes: u64) {
        self.reserved -= bytes;
        counters::sub(&engine.counters.g_body_bytes, bytes);
    }

    /// The draft itself, to be published.
    pub(crate) fn draft(&mut self) -> &mut Draft {
        &mut self.draft
    }

    /// Bytes of a record's tail behind the body.
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// So many bytes were written behind the body, and accounted.
    pub(crate) fn add_tail(&mut self, bytes: u64) {
        self.tail = bytes;
        self.file_size += bytes;
    }

    /// Nothing more is written: closes the writable descriptor.
    pub(crate) fn close(&mut self) {
        self.buffer = None;
        self.draft.close();
    }

    /// See [`Writing::close`].
    pub(crate) fn is_closed(&self) -> bool {
        self.draft.file().is_err()
    }

    /// Bytes that the account counts.
    pub(crate) fn outstanding(&self) -> u64 {
        self.reserved - self.given_back + self.tail
    }

    /// The file for readers.
    pub(crate) fn into_reading(self) -> Arc<File> {
        self.reading
    }

    /// The body is not wanted any more.
    pub(crate) fn discard(self, engine: &Engine) {
        let outstanding = self.outstanding();
        self.draft.abort();
        // After objmapper's, as in `trim`.
        engine.end_draft_accounting(outstanding);
    }
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |n| n as u64)
}

/// Calls again what a signal interrupted: none of these calls may wait for somebody else.
fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn set_size(file: &File, size: u64) -> std::io::Result<()> {
    let size = i64::try_from(size).map_err(std::io::Error::other)?;
    uninterrupted(|| Ok(ftruncate(file, size)?))
}

/// A second, read-only descriptor of a draft's file.
fn reopen_read_only(file: &File) -> std::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let fd = nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(File::from(fd))
}
