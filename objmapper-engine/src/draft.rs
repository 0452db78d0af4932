//! A body that is being written to the store: its file, and the buffer through which the fetch writes.
//!
//! A [`Draft`] is the [writer](crate::writer)'s, whose lock is held while the fetch works on it: during a write and a
//! request. The body's first `written` bytes are in the file, those from there on in the buffer, and, once the store has
//! refused more (`ends_at`), the rest in heap.
//!
//! * The account grants bytes before the store reserves them, and the store releases them before the account: bytes
//!   that the account grants to another fetch are free in the store too.
//! * Readers have a read-only descriptor of their own, and never one through which the file could be changed.
//! * `punched <= given_back`, and `given_back <= reserved`: the account does not count bytes that a final iteration has
//!   freed.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;
use objmapper_client::Outage;

use crate::backing::{DraftFile, DraftSize, Failure};
use crate::counters;
use crate::engine::Engine;
use crate::write_buffer::WriteBuffer;

/// A draft of a body.
pub(crate) struct Draft {
    file: DraftFile,
    /// The descriptor for readers, which is read-only.
    reading: Arc<File>,
    /// Bytes reserved with the account, from the body's start; less what was given back.
    reserved: u64,
    /// The number of first bytes of the body that were read and freed by a final iteration. Those of them that are not
    /// in the file yet are not written.
    given_back: u64,
    /// Those of `given_back` whose pages are freed.
    punched: u64,
    /// The expected length; 0 if it is unknown.
    hint: u64,
    /// The number of first bytes of the body that are in the file.
    written: u64,
    /// The file's size.
    file_size: u64,
    /// The buffer for the bytes from `written` on.
    buffer: Option<Arc<WriteBuffer>>,
    /// The offset from which on the body is in heap; `None` while all of it goes to the file.
    ends_at: Option<u64>,
    /// Bytes of a record's tail behind the body, accounted beside `reserved`.
    tail: u64,
}

/// The buffer could not be written to the file, and is still the only place of its bytes.
pub(crate) struct Unwritten;

impl Draft {
    /// Begins a draft with `reserved` bytes, for a body of `hint` bytes (0: unknown). `fill` writes the body's present
    /// bytes to its file. `None`: the store, or this process, failed; this is counted.
    pub(crate) fn begin(
        engine: &Engine,
        hint: u64,
        reserved: u64,
        fill: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Option<Box<Draft>> {
        let file = engine.create_draft(DraftSize { granted: reserved, expected: hint })?;
        let open = || reopen_read_only(file.file()?);
        let opened = open().or_else(|error| if engine.drop_caches(&error) { open() } else { Err(error) });
        let begun = opened.and_then(|reading| {
            fill(file.file()?)?;
            Ok(Arc::new(reading))
        });
        let reading = match begun {
            Ok(reading) => reading,
            Err(error) => {
                engine.draft_error("beginning a body", &error);
                file.abort();
                return None;
            }
        };
        Some(Box::new(Draft {
            file,
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

    /// Enters the draft in the counters. The first `len` bytes of the body are in its file; of these a final iteration
    /// has freed the first `given_back`.
    pub(crate) fn start_accounting(&mut self, engine: &Engine, len: u64, given_back: u64) {
        engine.account.shrink(given_back);
        (self.written, self.file_size, self.given_back) = (len, len, given_back);
        counters::add(&engine.counters.g_writing, 1);
        counters::add(&engine.counters.g_bodies, 1);
        counters::add(&engine.counters.g_body_bytes, self.reserved - given_back);
    }

    /// Returns the descriptor for readers.
    pub(crate) fn reading(&self) -> Arc<File> {
        self.reading.clone()
    }

    /// Returns the bytes reserved in total.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Returns the number of first bytes of the body that the draft accounts for.
    pub(crate) fn accounted(&self) -> u64 {
        self.ends_at.unwrap_or(self.reserved)
    }

    /// Ends the draft at `len`: the rest of the body goes to heap.
    pub(crate) fn end_at(&mut self, len: u64) {
        self.ends_at.get_or_insert(len);
        self.buffer = None;
    }

    /// Reserves `bytes` more, which the caller has accounted. Returns false if the store refused. A final iteration
    /// leaves holes in the file: such a draft is never published, and needs no reservation for them. Bytes that are not
    /// freed yet need one: the store holds a draft to its reservation.
    pub(crate) fn grow(&mut self, engine: &Engine, bytes: u64) -> bool {
        let reserved = self.reserved + bytes;
        let size = DraftSize { granted: reserved - self.punched, expected: self.hint };
        if let Err(failure) = self.reserve_or_move(engine, size) {
            engine.count_fallback(&failure);
            return false;
        }
        self.reserved = reserved;
        counters::add(&engine.counters.g_body_bytes, bytes);
        true
    }

    /// Reserves room for a record's tail behind the `len` bytes of a complete body. A failure is counted.
    pub(crate) fn reserve_tail(&mut self, engine: &Engine, len: u64, tail: u64) -> Result<(), Failure> {
        let size = DraftSize { granted: len + tail, expected: 0 };
        self.reserve_or_move(engine, size).inspect_err(|failure| engine.count_failure(failure))
    }

    /// Sets the reservation. If the draft's tier is full, moves the draft to another one. Readers that have the old
    /// file go on reading it; later readers are given the new one ([`Draft::reading`]).
    fn reserve_or_move(&mut self, engine: &Engine, size: DraftSize) -> Result<(), Failure> {
        let full = match engine.reserve(&mut self.file, size) {
            Err(full @ Failure::Outage { kind: Outage::Full, .. }) => full,
            other => return other,
        };
        // A draft with holes is never published, so that a move gains nothing: the rest goes to heap.
        if self.given_back > 0 {
            return Err(full);
        }
        let moved = match engine.backing().create_elsewhere(&self.file, size, self.written) {
            None => return Err(full),
            Some(created) => created?,
        };
        let open = || reopen_read_only(moved.file()?);
        match open().or_else(|error| if engine.drop_caches(&error) { open() } else { Err(error) }) {
            Ok(reading) => {
                self.reading = Arc::new(reading);
                std::mem::replace(&mut self.file, moved).abort();
                Ok(())
            }
            Err(error) => {
                moved.abort();
                Err(error.into())
            }
        }
    }

    /// Returns true if the buffer is full; the body ends at `len`.
    pub(crate) fn is_full(&self, len: u64) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| len - self.written >= buffer.size() as u64)
    }

    /// Returns where the bytes from `len`, the body's end, on can be written: a buffer that is not full, its used
    /// bytes, and the bytes that may still be written there. `None`: there is no memory; this is counted.
    pub(crate) fn space(&mut self, engine: &Engine, len: u64) -> Option<(Arc<WriteBuffer>, usize, usize)> {
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
        let space = (buffer.size() - used).min(usize::try_from(self.reserved - len).unwrap_or(usize::MAX));
        Some((buffer.clone(), used, space))
    }

    /// Writes the buffered bytes of the body, which ends at `len`, to the file, and returns the buffer, for
    /// [`Draft::reuse_buffer`]; `None` if there is none. `Err`: the write failed, and the bytes stay in the buffer;
    /// this is counted.
    pub(crate) fn write(&mut self, engine: &Engine, len: u64) -> Result<Option<Arc<WriteBuffer>>, Unwritten> {
        if self.ends_at.is_some() {
            return Ok(None);
        }
        let Some(buffer) = self.buffer.take() else { return Ok(None) };
        // SAFETY: the fetch wrote what is body before it said so (`Body::extend`), and it is the fetch that calls.
        let bytes = unsafe { buffer.bytes((len - self.written) as usize) };
        // Bytes that were given back are not read again.
        let skip = (self.given_back.saturating_sub(self.written) as usize).min(bytes.len());
        if skip < bytes.len() {
            let from = self.written + skip as u64;
            if let Err(error) = self.file.file().and_then(|file| file.write_all_at(&bytes[skip..], from)) {
                engine.draft_error("writing a body", &error);
                return Err(Unwritten);
            }
            self.file_size = len;
        }
        self.written = len;
        Ok(Some(buffer))
    }

    /// Reuses a buffer whose bytes are in the file, unless a reader still holds it, or it is a short one, of the size
    /// that was expected.
    pub(crate) fn reuse_buffer(&mut self, mut buffer: Arc<WriteBuffer>, len: u64) {
        let suits = buffer.size() == WriteBuffer::MAX_SIZE || self.hint > len;
        self.buffer = (suits && Arc::get_mut(&mut buffer).is_some()).then_some(buffer);
    }

    /// Releases the surplus behind `len`. The writer has nothing to [`write`](Draft::write) any more.
    pub(crate) fn trim(&mut self, engine: &Engine, len: u64) {
        self.buffer = None;
        let len = self.ends_at.unwrap_or(len);
        // Readers end below this size: none is affected.
        match self.file.file().and_then(|file| set_size(file, self.written)) {
            Ok(()) => self.file_size = self.written,
            Err(error) => engine.file_error("trimming a body", &error),
        }
        engine.reserve_less(&mut self.file, len.saturating_sub(self.punched));
        // After the store's reservation: another fetch that is granted these bytes here must not be refused by the
        // store.
        let surplus = self.reserved.saturating_sub(len);
        if surplus > 0 {
            engine.account.shrink(surplus);
            counters::sub(&engine.counters.g_body_bytes, surplus);
            self.reserved = len;
        }
    }

    /// Frees the pages of the bytes before `to`, which are not read again, in multiples of `unit`.
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
            .file
            .file()
            .and_then(|file| uninterrupted(|| Ok(fallocate(file.as_fd(), flags, from as i64, (to - from) as i64)?)));
        if let Err(error) = punched {
            engine.file_error("giving back a body's pages", &error);
        }
    }

    /// Returns the number of first bytes of the body that are in the file.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Ends the part of the body that the draft accounts for at `start`: the rest is in heap.
    pub(crate) fn ends_before(&mut self, start: u64) {
        self.ends_at = Some(start);
    }

    /// Returns true if all of the body is in the file or the buffer, and none of it was given back.
    pub(crate) fn is_whole(&self) -> bool {
        self.ends_at.is_none() && self.given_back == 0
    }

    /// Makes the file of a body that is complete with `len` bytes end there. Returns false if it does not.
    pub(crate) fn finish(&mut self, engine: &Engine, len: u64) -> bool {
        if self.tail == 0 && (self.reserved != len || self.file_size != len) {
            // The fetch ended without a trim.
            self.trim(engine, len);
        }
        self.file_size == len + self.tail
    }

    /// Returns true if no bytes were written to the file and none were given back.
    pub(crate) fn is_empty(&self) -> bool {
        self.written == 0 && self.given_back == 0
    }

    /// Transfers `bytes` of what the account granted to another allocation.
    pub(crate) fn hand_over(&mut self, engine: &Engine, bytes: u64) {
        self.reserved -= bytes;
        counters::sub(&engine.counters.g_body_bytes, bytes);
    }

    /// Returns the file, to be written to and published.
    pub(crate) fn file(&mut self) -> &mut DraftFile {
        &mut self.file
    }

    /// The bytes of a record's tail behind the body.
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Notes a tail of `bytes`, which the caller has written behind the body and accounted.
    pub(crate) fn add_tail(&mut self, bytes: u64) {
        self.tail = bytes;
        self.file_size += bytes;
    }

    /// Closes the writable descriptor, as publishing demands.
    pub(crate) fn close(&mut self) {
        self.buffer = None;
        self.file.close();
    }

    /// Returns true after [`Draft::close`].
    pub(crate) fn is_closed(&self) -> bool {
        self.file.file().is_err()
    }

    /// Returns the bytes that the account counts for the draft.
    pub(crate) fn outstanding(&self) -> u64 {
        self.reserved - self.given_back + self.tail
    }

    /// Aborts the draft and ends its accounting.
    pub(crate) fn discard(self, engine: &Engine) {
        let outstanding = self.outstanding();
        let Draft { file, reading, .. } = self;
        drop(reading);
        file.abort();
        // After the store's reservation, as in `trim`.
        engine.end_draft_accounting(outstanding);
    }
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |n| n as u64)
}

/// Repeats a call that a signal interrupted. None of these calls waits for another process.
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
