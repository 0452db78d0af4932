//! A body that is being written to objmapper: its file, and the window through which the fetch writes. Nobody else uses
//! that window.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;

use crate::backing::{Draft, Room};
use crate::body::{Body, Inner, Piece, Place};
use crate::counters;
use crate::engine::Engine;

/// A window of a body whose length nobody knows maps at least so much address space. It costs nothing until it is used.
const FIRST_WINDOW: u64 = 1 << 20;
/// No window of such a body maps more.
const LARGEST_WINDOW: u64 = 256 << 20;
/// No window maps more of what an origin only announces: address space ends, and with it every mapping would fail.
const LONGEST_HINT: u64 = 64 << 30;
/// Pages are allocated up to the next multiple of this, ahead of the writer, so that folios of that size can be taken.
const POPULATE_STEP: u64 = 1 << 20;

/// The writer's view of a draft.
pub(crate) struct Writing {
    draft: Draft,
    /// Its file for the readers.
    reading: Arc<File>,
    /// Bytes reserved with the account, from the body's start; less what was given back.
    reserved: u64,
    given_back: u64,
    /// The file's size: whole pages, so that every byte of a page that is reserved can be written. It grows with the
    /// pages that are allocated.
    file_size: u64,
    /// The expected length.
    hint: u64,
    /// Until the draft is closed.
    window: Option<MmapRaw>,
    /// Offset in the file of the window's first byte; a multiple of the page size.
    window_start: u64,
    /// The body offset where the window's piece begins.
    piece_start: u64,
    /// Pages below this are made and mapped.
    populated: u64,
    /// Has the window a piece in the body?
    shown: bool,
    /// The rest of the body is in heap: from here on.
    ends_at: Option<u64>,
    /// Bytes of a record's tail behind the body, accounted beside `reserved`.
    tail: u64,
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |n| n as u64)
}

fn page_ceil(n: u64) -> u64 {
    n.next_multiple_of(page_size())
}

fn page_floor(n: u64) -> u64 {
    n / page_size() * page_size()
}

impl Writing {
    /// Begins a draft of `reserved` bytes (of `hint` in the end), and copies the `len` bytes of heap there.
    /// `None`: objmapper can't; this is counted.
    pub(crate) fn begin(engine: &Engine, body: &Body, hint: u64, reserved: u64, len: u64) -> Option<Box<Writing>> {
        let draft = engine.create_draft(Room { granted: reserved, expected: hint })?;
        let window_len = hint.min(LONGEST_HINT).max(reserved).max(if hint > reserved { 0 } else { FIRST_WINDOW });
        let open = || Ok((map_window(draft.file()?, 0, window_len)?, reopen_read_only(draft.file()?)?));
        let opened = open().or_else(|error| if engine.relieve(&error) { open() } else { Err(error) });
        let (window, reading) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                engine.draft_error("mapping a new body", &error);
                draft.abort();
                return None;
            }
        };
        let mut writing = Box::new(Writing {
            draft,
            reading: Arc::new(reading),
            reserved,
            given_back: 0,
            file_size: 0,
            hint,
            window: Some(window),
            window_start: 0,
            piece_start: 0,
            populated: 0,
            shown: false,
            ends_at: None,
            tail: 0,
        });
        if len > 0 {
            writing.populate(engine, 0, len)?;
            // Only the writer, which we are, changes pieces; readers may read them while we do.
            for piece in &body.lock().pieces {
                if let Place::Heap(chunk) = &piece.place {
                    let (from, to) = (chunk.ptr().as_ptr(), writing.address(piece.start)?.as_ptr());
                    // SAFETY: `piece.len` bytes of the chunk are initialised body; the window maps
                    // `piece.start + piece.len <= len <= populated` bytes, private to us until it is shown; heap and
                    // mapping do not overlap.
                    unsafe { std::ptr::copy_nonoverlapping(from, to, piece.len as usize) };
                }
            }
        }
        counters::add(&engine.counters.g_writing, 1);
        counters::add(&engine.counters.g_bodies, 1);
        counters::add(&engine.counters.g_body_bytes, reserved);
        Some(writing)
    }

    /// Bytes of room in total.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Body bytes that may be in the file.
    pub(crate) fn in_file(&self) -> u64 {
        self.ends_at.unwrap_or(self.reserved)
    }

    pub(crate) fn gave_back(&mut self, bytes: u64) {
        self.given_back += bytes;
    }

    /// The rest of the body, from `len` on, is in heap.
    pub(crate) fn end_at(&mut self, len: u64) {
        self.ends_at.get_or_insert(len);
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

    /// Where the bytes from `len` on can be written, and how many.
    pub(crate) fn room(&mut self, engine: &Engine, len: u64) -> Option<(NonNull<u8>, usize)> {
        let mut end = self.window_end();
        if len >= end {
            let start = page_floor(len);
            let expected = (self.reserved.max(self.hint) - start).min(LONGEST_HINT);
            let size = expected.max(len.clamp(FIRST_WINDOW, LARGEST_WINDOW));
            match self.draft.file().and_then(|file| map_window(file, start, size)) {
                Ok(window) => self.window = Some(window),
                Err(error) => {
                    engine.draft_error("mapping a body", &error);
                    return None;
                }
            }
            self.window_start = start;
            self.piece_start = len;
            self.populated = self.populated.max(start);
            self.shown = false;
            end = self.window_end();
        }
        let end = end.min(self.reserved);
        if self.populated <= len {
            self.populate(engine, len, end.min((len + 1).next_multiple_of(POPULATE_STEP)))?;
        }
        let room = self.populated.min(end).checked_sub(len).filter(|room| *room > 0)?;
        Some((self.address(len)?, room as usize))
    }

    fn address(&self, offset: u64) -> Option<NonNull<u8>> {
        let window = self.window.as_ref()?;
        NonNull::new(window.as_mut_ptr().wrapping_add((offset - self.window_start) as usize))
    }

    fn window_end(&self) -> u64 {
        self.window_start + self.window.as_ref().map_or(0, MmapRaw::len) as u64
    }

    /// Allocates the pages of the bytes `from..to`. A full file system is an error here, not a SIGBUS later.
    ///
    /// In memory by `fallocate`, which takes folios as large as the length allows; the faults that follow find them.
    /// The file grows with it: if it had its full size at once, tmpfs would take whole huge pages (DESIGN.md, "How a
    /// body is written", has the measurement). On disk that would only make unwritten extents, and every fault would
    /// go to the journal: there the pages are made writable in one go.
    fn populate(&mut self, engine: &Engine, from: u64, to: u64) -> Option<()> {
        let start = page_floor(from);
        let end = page_ceil(to).min(self.window_end());
        let len = end.saturating_sub(start);
        let allocated = self.draft.file().and_then(|file| {
            if self.draft.is_in_memory() {
                return uninterrupted(|| Ok(fallocate(file, FallocateFlags::empty(), start as i64, len as i64)?));
            }
            set_size(file, self.file_size.max(end))?;
            let Some(window) = &self.window else { return Ok(()) };
            let at = (start - self.window_start) as usize;
            uninterrupted(|| window.advise_range(Advice::PopulateWrite, at, len as usize))
        });
        match allocated {
            Ok(()) => {
                self.populated = end;
                self.file_size = self.file_size.max(end);
                Some(())
            }
            Err(error) => {
                engine.draft_error("allocating a body's pages", &error);
                None
            }
        }
    }

    /// Puts the window into the body's pieces, in the place of what was in heap.
    pub(crate) fn show_window(&mut self, inner: &mut Inner) {
        if self.shown {
            return;
        }
        self.shown = true;
        let len = self.window_end() - self.window_start;
        let place = Place::Window { start: self.window_start, len, map: None };
        inner.reading.get_or_insert_with(|| self.reading.clone());
        if self.piece_start == 0 {
            for piece in inner.pieces.drain(..) {
                if let Place::Heap(chunk) = piece.place {
                    inner.retired.push(chunk);
                }
            }
            inner.pieces.push(Piece { start: 0, len: inner.len, place });
        } else {
            inner.pieces.push(Piece { start: inner.len, len: 0, place });
        }
    }

    /// Gives the surplus behind `len` back.
    pub(crate) fn trim(&mut self, engine: &Engine, len: u64) {
        let len = self.ends_at.unwrap_or(len);
        // Readers are below `len`: nobody touches the pages that go.
        match self.draft.file().and_then(|file| set_size(file, len)) {
            Ok(()) => self.file_size = len,
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

    /// Frees the pages of the bytes `from..to`, which nobody will read again.
    pub(crate) fn punch(&self, engine: &Engine, from: u64, to: u64) {
        let (from, to) = (page_floor(from), page_floor(to));
        if to <= from {
            return;
        }
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

    /// Nothing more is written: unmaps the window and closes the writable descriptor.
    pub(crate) fn close(&mut self) {
        self.window = None;
        self.draft.close();
    }

    /// See [`Writing::close`].
    pub(crate) fn is_closed(&self) -> bool {
        self.window.is_none()
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
        drop(self.window);
        self.draft.abort();
        // After objmapper's, as in `trim`.
        engine.lost_draft(outstanding);
    }
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

fn map_window(file: &File, start: u64, len: u64) -> std::io::Result<MmapRaw> {
    let len = usize::try_from(page_ceil(len)).map_err(std::io::Error::other)?;
    MmapOptions::new().offset(start).len(len).map_raw(file)
}

/// A second, read-only descriptor of a draft's file.
fn reopen_read_only(file: &File) -> std::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let fd = nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(File::from(fd))
}
