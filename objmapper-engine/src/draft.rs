//! A body that is being written to objmapper: its file, and the buffer through which the fetch writes.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;
use smallvec::SmallVec;

use crate::backing::{Draft, Room};
use crate::body::{Body, Inner, Piece, Place};
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

impl Writing {
    /// Begins a draft of `reserved` bytes (of `hint` in the end; 0 is unknown), and moves the `len` bytes in heap there.
    /// `None`: objmapper can't; this is counted.
    pub(crate) fn begin(engine: &Engine, body: &Body, hint: u64, reserved: u64, len: u64) -> Option<Box<Writing>> {
        let draft = engine.create_draft(Room { granted: reserved, expected: hint })?;
        let open = || reopen_read_only(draft.file()?);
        let opened = open().or_else(|error| if engine.relieve(&error) { open() } else { Err(error) });
        let begun = opened.and_then(|reading| {
            copy_from_heap(body, draft.file()?)?;
            Ok(Arc::new(reading))
        });
        let reading = match begun {
            Ok(reading) => reading,
            Err(error) => {
                body.lock().moving = false;
                engine.draft_error("beginning a body", &error);
                draft.abort();
                return None;
            }
        };
        let mut inner = body.lock();
        let inner = &mut *inner;
        inner.moving = false;
        inner.reading = Some(reading.clone());
        // What a final iteration was done with before is in no piece of heap any more, and not in the file either.
        let gone = inner.pieces.iter().filter(|piece| matches!(piece.place, Place::Gone));
        let given_back = gone.map(|piece| piece.start + piece.len).max().unwrap_or(0);
        engine.account.shrink(given_back);
        inner.given_back = given_back;
        for piece in inner.pieces.drain(..) {
            if let Place::Heap(chunk) = piece.place {
                inner.retired.push(chunk);
            }
        }
        if len > 0 {
            inner.pieces.push(Piece { start: 0, len, place: Place::File });
        }
        counters::add(&engine.counters.g_writing, 1);
        counters::add(&engine.counters.g_bodies, 1);
        counters::add(&engine.counters.g_body_bytes, reserved - given_back);
        Some(Box::new(Writing {
            draft,
            reading,
            reserved,
            given_back,
            punched: 0,
            hint,
            written: len,
            file_size: len,
            buffer: None,
            ends_at: None,
            tail: 0,
        }))
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
    /// the file: such a draft is never published, and needs no reservation for them.
    pub(crate) fn grow(&mut self, engine: &Engine, bytes: u64) -> bool {
        let reserved = self.reserved + bytes;
        if !engine.reserve(&mut self.draft, Room { granted: reserved - self.given_back, expected: self.hint }) {
            return false;
        }
        self.reserved = reserved;
        counters::add(&engine.counters.g_body_bytes, bytes);
        true
    }

    /// Where the bytes from `len`, the body's end, on can be written, and how many. `None`: the file can't have more;
    /// this is counted.
    pub(crate) fn room(&mut self, engine: &Engine, body: &Body, len: u64) -> Option<(NonNull<u8>, usize)> {
        let full = |buffer: &Arc<WriteBuffer>| len - self.written >= buffer.size() as u64;
        if self.buffer.as_ref().is_some_and(full) && !self.flush(engine, body, len) {
            return None;
        }
        let buffer = match &self.buffer {
            Some(buffer) => buffer,
            None => {
                let expected = self.hint.checked_sub(len).filter(|more| *more > 0).unwrap_or(u64::MAX);
                let size = usize::try_from(expected).unwrap_or(usize::MAX).min(WriteBuffer::LARGEST);
                let Some(buffer) = WriteBuffer::new(size) else {
                    engine.draft_error("memory for a body that comes in", &std::io::ErrorKind::OutOfMemory.into());
                    return None;
                };
                self.buffer.insert(Arc::new(buffer))
            }
        };
        let used = (len - self.written) as usize;
        if used == 0 {
            let mut inner = body.lock();
            if !matches!(inner.pieces.last(), Some(Piece { place: Place::Buffer(_), .. })) {
                inner.pieces.push(Piece { start: len, len: 0, place: Place::Buffer(buffer.clone()) });
            }
        }
        let room = (buffer.size() - used).min(usize::try_from(self.reserved - len).unwrap_or(usize::MAX));
        Some((buffer.at(used)?, room))
    }

    /// Writes to the file what of the body, which ends at `len`, is not there yet. `false`: it could not be written, and
    /// stays where it is; this is counted.
    pub(crate) fn flush(&mut self, engine: &Engine, body: &Body, len: u64) -> bool {
        if self.ends_at.is_some() {
            return true;
        }
        let Some(buffer) = self.buffer.take() else { return true };
        // SAFETY: the fetch wrote what is body before it said so (`Body::extend`), and it is the fetch that calls.
        let bytes = unsafe { buffer.bytes((len - self.written) as usize) };
        // Nobody wants what was given back.
        let skip = (self.given_back.saturating_sub(self.written) as usize).min(bytes.len());
        if skip < bytes.len() {
            let from = self.written + skip as u64;
            if let Err(error) = self.draft.file().and_then(|file| file.write_all_at(&bytes[skip..], from)) {
                engine.draft_error("writing a body", &error);
                return false;
            }
            self.file_size = len;
        }
        self.written = len;
        show_written(&mut body.lock());
        // Who reads there still has the buffer, and the fetch must take another one. A short one was for what was expected.
        let mut buffer = buffer;
        let suits = buffer.size() == WriteBuffer::LARGEST || self.hint > len;
        self.buffer = (suits && Arc::get_mut(&mut buffer).is_some()).then_some(buffer);
        true
    }

    /// Gives the surplus behind `len` back. The writer has nothing to [`flush`](Writing::flush) any more.
    pub(crate) fn trim(&mut self, engine: &Engine, len: u64) {
        self.buffer = None;
        let len = self.ends_at.unwrap_or(len);
        // Readers are below: nobody looks at what goes.
        match self.draft.file().and_then(|file| set_size(file, self.written)) {
            Ok(()) => self.file_size = self.written,
            Err(error) => engine.file_error("trimming a body", &error),
        }
        engine.reserve_less(&mut self.draft, len.saturating_sub(self.given_back));
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
        engine.lost_draft(outstanding);
    }
}

/// Writes the body's pieces in heap to the file. They are held back from a final iteration until the caller, who takes them
/// out of the body, clears `Inner::moving`.
fn copy_from_heap(body: &Body, file: &File) -> std::io::Result<()> {
    let pieces: SmallVec<[(u64, NonNull<u8>, usize); 8]> = {
        let mut inner = body.lock();
        inner.moving = true;
        let in_heap = inner.pieces.iter().filter_map(|piece| match &piece.place {
            Place::Heap(chunk) => Some((piece.start, chunk.ptr(), piece.len as usize)),
            _ => None,
        });
        in_heap.collect()
    };
    for (start, ptr, len) in pieces {
        // SAFETY: the first `len` bytes of the chunk are body, which was written before it became that and does not
        // change any more. The chunk is not freed meanwhile: only the writer, which we are, and a final iteration
        // (`Body::give_back`) take pieces away, and the latter leaves them alone while `moving` is set.
        file.write_all_at(unsafe { std::slice::from_raw_parts(ptr.as_ptr(), len) }, start)?;
    }
    Ok(())
}

/// What was in the buffer is in the file now.
fn show_written(inner: &mut Inner) {
    let Some(Piece { start, len, place: Place::Buffer(_) }) = inner.pieces.last() else { return };
    let (start, len) = (*start, *len);
    inner.pieces.pop();
    match inner.pieces.last_mut() {
        Some(Piece { len: before, place: Place::File, .. }) => *before += len,
        _ if len > 0 => inner.pieces.push(Piece { start, len, place: Place::File }),
        _ => {}
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
