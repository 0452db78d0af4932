//! A body: where its bytes are, during the fetch and afterwards. Its states, and which calls are legal in each, are drawn in
//! `state.rs`.
//!
//! One thread writes (the fetch), any number read. The writer has a state and a lock of its own (`writer.rs`), which it
//! holds while it works; what readers see of its work is the view (`state.rs`), whose lock is held for a few
//! instructions. A reader of a settled body takes the view's lock once for each part.
//!
//! Bytes in heap that a reader was given by address stay there until the writer is done *and* no reader follows it any
//! more ([`Body::settle`]). A buffer stays while a [`Span`] holds it. Bytes in a file have no address: they are read, or
//! sent, from the file.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::backing::StoredBody;
use crate::counters;
use crate::engine::Engine;
use crate::span::{FileSpan, Hold, MappedSpan, NoSpan, Part, Span};
use crate::state::{Front, Medium, State, View};
use crate::writer::{Target, Writer};

/// A body. What a hit looks at comes first: its address costs no addition.
#[derive(Default)]
#[repr(C)]
pub struct Body {
    view: Mutex<View>,
    writer: Mutex<Writer>,
}

/// Where bytes of a body are.
enum At {
    /// In memory.
    Address(Span),
    /// In the file of the published body `key`, up to `end`; `total` is the body's length now.
    Stored { key: u64, end: u64, total: u64 },
    /// In a draft's file, up to `end`; `total` is the body's length now.
    Draft { file: Arc<File>, end: u64, total: u64 },
}

impl At {
    fn stored(stored: &StoredBody, total: u64) -> At {
        At::Stored { key: stored.key, end: total.min(stored.body_len), total }
    }
}

/// Returns where the bytes from `offset` on are, of a body that is not stored, or behind those that are. Not inlined, to
/// be out of the way of a stored body's readers.
#[inline(never)]
fn find_piece(view: MutexGuard<'_, View>, offset: u64) -> Result<At, NoSpan> {
    let total = view.len;
    if let Some(record) = view.state().stored().filter(|record| offset < record.body_len) {
        return Ok(At::stored(record, total));
    }
    let piece = view.piece_at(offset).ok_or(NoSpan::End)?;
    let skip = offset.checked_sub(piece.start).ok_or(NoSpan::End)?;
    let len = piece.len.checked_sub(skip).filter(|len| *len > 0).ok_or(NoSpan::End)?;
    let (ptr, hold) = match &piece.medium {
        Medium::Heap(chunk) => (NonNull::new(chunk.ptr().as_ptr().wrapping_add(skip as usize)), Hold::Object),
        Medium::Buffer(buffer) => (buffer.at(skip as usize), Hold::Buffer(buffer.clone())),
        Medium::File => {
            let file = view.state().file().cloned().ok_or(NoSpan::End)?;
            return Ok(At::Draft { file, end: offset + len, total });
        }
        Medium::Freed => return Err(NoSpan::End),
    };
    Ok(At::Address(Span { ptr: ptr.ok_or(NoSpan::End)?, len: len as usize, total, hold }))
}

impl Body {
    /// Makes a settled body.
    pub(crate) fn of(view: View) -> Body {
        Body { writer: Mutex::default(), view: Mutex::new(view) }
    }

    /// Locks the view.
    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock()
    }

    /// Locks the writer's state, which only the writer does, and [`Body::slim`].
    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock()
    }

    /// Returns the number of bytes that are body.
    pub fn len(&self) -> u64 {
        self.view().len
    }

    /// Returns true if the body has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the first `n` bytes of the room that [`Body::space`] returned last body. The writer has written them.
    pub fn extend(&self, n: u64) {
        let mut view = self.view();
        let is_adopted = matches!(view.state(), State::Adopted(_));
        if !view.state().is_incoming() {
            return;
        }
        match view.pieces.last_mut() {
            Some(piece) => piece.len += n,
            // A record, whose bytes are there already.
            None if is_adopted => {}
            None => return,
        }
        view.len += n;
    }

    /// Returns the bytes from `offset` on, as many as are in one place: in memory or in a file.
    pub fn part(&self, engine: &Engine, offset: u64) -> Result<Part, NoSpan> {
        let at = self.find(offset)?;
        self.part_at(engine, offset, at)
    }

    /// As [`Body::part`], for a consumer that passes addresses to the kernel and never reads there: a published body is
    /// mapped, if mmap(2) succeeds.
    pub fn part_for_kernel(&self, engine: &Engine, offset: u64) -> Result<Part, NoSpan> {
        let at = self.find(offset)?;
        if let At::Stored { key, end, total } = at {
            let map = match engine.mapped(key) {
                Some(map) => Some(map),
                None => engine.map(&self.stored()?)?,
            };
            if let Some(map) = map {
                return Ok(Part::Mapped(MappedSpan { map, offset, len: end - offset, total }));
            }
        }
        self.part_at(engine, offset, at)
    }

    fn part_at(&self, engine: &Engine, offset: u64, at: At) -> Result<Part, NoSpan> {
        let (file, end, total) = match at {
            At::Address(span) => return Ok(Part::Addressable(span)),
            At::Stored { key, end, total } => {
                (engine.opened(key).map_or_else(|| engine.open(&self.stored()?), Ok)?, end, total)
            }
            At::Draft { file, end, total } => (file, end, total),
        };
        Ok(Part::InFile(FileSpan { file, offset, len: end - offset, total }))
    }

    /// Returns the bytes of the published body from `offset` on, including those that [`Body::extend`] has not made
    /// body yet.
    pub(crate) fn stored_from(&self, engine: &Engine, offset: u64) -> Result<FileSpan, NoSpan> {
        let stored = self.stored()?;
        let len = stored.body_len.checked_sub(offset).filter(|len| *len > 0).ok_or(NoSpan::End)?;
        Ok(FileSpan { file: engine.open(&stored)?, offset, len, total: stored.body_len })
    }

    /// Returns true if all of the body is in heap. A body that still comes in may leave it.
    pub fn is_in_heap(&self) -> bool {
        let view = self.view();
        view.state().stored().is_none() && view.state().file().is_none()
    }

    /// Returns the published body. A clone changes the reference count of the tier's directory, a cache line that all
    /// workers share, so that a reader calls this only if the caches do not have the body.
    fn stored(&self) -> Result<StoredBody, NoSpan> {
        self.view().state().stored().cloned().ok_or(NoSpan::End)
    }

    /// Returns where the bytes from `offset` on are.
    fn find(&self, offset: u64) -> Result<At, NoSpan> {
        let view = self.view();
        if offset >= view.len || offset < view.given_back {
            return Err(NoSpan::End);
        }
        match view.state() {
            State::Stored(stored) if offset < stored.body_len => Ok(At::stored(stored, view.len)),
            _ => find_piece(view, offset),
        }
    }

    /// Frees the bytes before `offset`, which a final iteration has read; of a file's pages multiples of `unit` bytes
    /// (at least a page). What cannot be freed because the writer works is freed by a later call. The caller guarantees
    /// that there is no other reader.
    pub fn give_back(&self, engine: &Engine, offset: u64, unit: u64) {
        self.free_before(engine, self.writer.try_lock().as_deref_mut(), offset, unit);
    }

    /// As [`Body::give_back`]; what a draft has in its file only if the caller has the writer's lock.
    pub(crate) fn free_before(&self, engine: &Engine, writer: Option<&mut Writer>, offset: u64, unit: u64) {
        let mut view = self.view();
        let view = &mut *view;
        if matches!(view.state(), State::Moving) {
            return;
        }
        let mut freed: SmallVec<[Medium; 4]> = SmallVec::new();
        let last = view.pieces.len().saturating_sub(1);
        let open_ended = !matches!(view.state(), State::Stored(_));
        for (index, piece) in view.pieces.iter_mut().enumerate() {
            // The last piece may still grow.
            if piece.start + piece.len > offset || (index == last && open_ended) {
                break;
            }
            if matches!(piece.medium, Medium::Heap(_) | Medium::Buffer(_)) {
                freed.push(std::mem::replace(&mut piece.medium, Medium::Freed));
            }
        }
        for medium in freed {
            if let Medium::Heap(chunk) = medium {
                engine.free_piece(chunk);
            }
        }
        if let Some(draft) = writer.and_then(Writer::draft) {
            let from = view.given_back;
            let to = offset.min(draft.accounted());
            if to > from {
                engine.account.shrink(to - from);
                counters::sub(&engine.counters.g_body_bytes, to - from);
                draft.give_back(engine, to, unit);
                view.given_back = to;
            }
        }
    }

    /// Counts and logs the loss of a body that a reader could not read because of `error`. A body is counted once. The
    /// caller removes its object from the cache.
    pub fn lose(&self, engine: &Engine, error: &io::Error) {
        let (stored, counted) = {
            let mut view = self.view();
            (view.state().stored().cloned(), std::mem::replace(&mut view.loss_counted, true))
        };
        engine.read_failed(stored.as_ref(), error);
        if !counted {
            engine.count_loss(stored.as_ref());
        }
    }

    /// Releases all storage. The caller guarantees that there are no readers.
    pub fn slim(&self, engine: &Engine) {
        let mut writer = self.writer();
        let (state, pieces) = self.view().take();
        writer.free_retired(engine);
        for piece in pieces {
            if let Medium::Heap(chunk) = piece.medium {
                engine.free_piece(chunk);
            }
        }
        match state {
            State::Announced { record, .. } => engine.cancel_adoption(record),
            State::Stored(stored) | State::Adopted(stored) | State::Transit(Front::Record(stored)) => {
                engine.forget(&stored);
            }
            State::Orphan { file, outstanding } => {
                drop(file);
                engine.end_draft_accounting(outstanding);
            }
            // The pages are free when the last descriptor is closed: before the account grants the bytes again.
            State::Draft(file) | State::Mixed(file) | State::Transit(Front::File(file)) => drop(file),
            State::Heap | State::Moving | State::Refused | State::Settled | State::Transit(Front::Heap) => {}
        }
        match std::mem::take(&mut writer.target) {
            Target::Draft(draft) => draft.discard(engine),
            Target::Heap | Target::Record(_) => {}
        }
    }

    /// Returns where the body is, for varnishd's panic message.
    pub fn describe(&self) -> Description {
        // A panicking thread may hold the lock itself.
        let Some(view) = self.view.try_lock() else { return Description::default() };
        let mut description = Description { len: Some(view.len), ..Description::default() };
        for piece in &view.pieces {
            match &piece.medium {
                Medium::Heap(_) => description.heap_pieces += 1,
                Medium::File | Medium::Buffer(_) => description.in_draft = true,
                Medium::Freed => {}
            }
        }
        description.object = view.state().stored().map(StoredBody::object);
        description
    }
}

/// See [`Body::describe`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Description {
    /// The length in bytes; `None` while another thread holds the body's lock.
    pub len: Option<u64>,
    /// The number of pieces in heap.
    pub heap_pieces: usize,
    /// True if any part is in a draft.
    pub in_draft: bool,
    /// The published body's number in objmapper.
    pub object: Option<u64>,
}
