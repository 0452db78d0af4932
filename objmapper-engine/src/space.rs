//! Room for the next bytes of a body: in an adopted record, in heap, or in a draft.
//!
//! The order of attempts (how much is requested of the limit, when something is evicted, what counts as a failure) is
//! that of Varnish's own engines (`storage/storage_simple.c`), so that operators' numbers keep their meaning. A body is
//! in heap up to `threshold`, then in a draft; if the store refuses it, or more of it, in heap charged to
//! `fallback_heap`.

use std::ptr::NonNull;

use crate::adopted;
use crate::body::Body;
use crate::counters;
use crate::draft::Draft;
use crate::engine::Engine;
use crate::fallback::Charge;
use crate::grant::{ChunkLimits, take};
use crate::heap::HeapChunk;
use crate::state::{Medium, Piece, State, View};
use crate::to_draft;
use crate::writer::{Target, Writer};

/// Surplus below this is not worth a copy (as in `sml_trimstore`).
const TRIM_WORTHWHILE: usize = 512;

/// Why there is no room for further bytes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// The storage's limit is reached, and nothing more can be evicted.
    Limit,
    /// The store cannot take the body, and `fallback_heap` is used up: see [`crate::transit`].
    FallbackHeap,
}

impl Body {
    /// Returns room for the next bytes: an address, and how many bytes may be written there before [`Body::extend`].
    ///
    /// `want` is the expected number of bytes (never 0); `estimated` is true if it is the origin's Content-Length and
    /// not a default. `nuke` evicts an object and returns whether it could. Only the writer calls this.
    pub fn space(
        &self,
        engine: &Engine,
        want: usize,
        estimated: bool,
        limits: ChunkLimits,
        nuke: &mut dyn FnMut() -> bool,
    ) -> Result<(NonNull<u8>, usize), NoRoom> {
        let mut writer = self.writer();
        let writer = &mut *writer;
        if let Some(room) = adopted::room(self, writer, engine, want, limits, nuke) {
            return Ok(room);
        }
        let (len, next) = {
            let view = self.view();
            let next = next(view.state(), view.len.saturating_add(want as u64) > engine.options.threshold)?;
            if let Some(room) = heap_room(&view) {
                return Ok(room);
            }
            (view.len, next)
        };
        let charged = match next {
            Next::Store => match store_space(self, writer, engine, want, estimated, limits, nuke) {
                Ok(room) => {
                    engine.maintenance.keep_room(&engine.account);
                    return room.ok_or(NoRoom::Limit);
                }
                Err(Refused) => {
                    continue_in_heap(self, writer, engine, len);
                    true
                }
            },
            Next::FallbackHeap => true,
            Next::Heap => false,
        };
        let chunk = if charged {
            fallback_alloc(engine, want, estimated, limits, nuke)?
        } else {
            heap_alloc(engine, want, limits, nuke).ok_or(NoRoom::Limit)?
        };
        engine.maintenance.keep_room(&engine.account);
        let mut view = self.view();
        let start = view.len;
        view.pieces.push(Piece { start, len: 0, medium: Medium::Heap(chunk) });
        heap_room(&view).ok_or(NoRoom::Limit)
    }

    /// Releases the surplus of a body that is complete. Only the writer calls this, once.
    pub fn trim(&self, engine: &Engine) {
        let mut writer = self.writer();
        {
            let mut view = self.view();
            if !view.state().is_incoming() {
                return;
            }
            trim_heap(&mut view, &mut writer.retired, engine);
        }
        trim_draft(self, &mut writer, engine);
    }
}

/// Where the next bytes of a body go.
enum Next {
    Heap,
    Store,
    FallbackHeap,
}

/// Returns where the next bytes of a body go that `exceeds` the threshold with them. Room that there is in heap is used
/// first.
fn next(state: &State, exceeds: bool) -> Result<Next, NoRoom> {
    match state {
        State::Heap if exceeds => Ok(Next::Store),
        State::Heap => Ok(Next::Heap),
        State::Draft(_) => Ok(Next::Store),
        State::Refused | State::Mixed(_) | State::Adopted(_) => Ok(Next::FallbackHeap),
        State::Transit(_) => Err(NoRoom::FallbackHeap),
        // An announced record has become the body before, or was given up; a move ends in the call that began it.
        State::Announced { .. } | State::Moving => Err(NoRoom::Limit),
        State::Settled | State::Stored(_) | State::Orphan { .. } => Err(NoRoom::Limit),
    }
}

/// Returns the room that there is in the last piece, if it is in heap.
pub(crate) fn heap_room(view: &View) -> Option<(NonNull<u8>, usize)> {
    let piece = view.pieces.last()?;
    let Medium::Heap(chunk) = &piece.medium else { return None };
    let used = piece.len as usize;
    let room = chunk.size().checked_sub(used).filter(|room| *room > 0)?;
    NonNull::new(chunk.ptr().as_ptr().wrapping_add(used)).map(|ptr| (ptr, room))
}

fn heap_alloc(engine: &Engine, want: usize, limits: ChunkLimits, nuke: &mut dyn FnMut() -> bool) -> Option<HeapChunk> {
    let mut chunk = None;
    take(
        want,
        limits,
        |size| {
            chunk = HeapChunk::alloc(&engine.account, size);
            chunk.is_some()
        },
        nuke,
    )?;
    chunk.inspect(|chunk| engine.count_piece(chunk))
}

/// Allocates heap for a body that the store cannot take, by halves down to a chunk. A body whose announced length does
/// not fit gets none, to leave it to bodies that do fit.
fn fallback_alloc(
    engine: &Engine,
    want: usize,
    estimated: bool,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Result<HeapChunk, NoRoom> {
    let heap = &engine.fallback;
    if estimated && !heap.has(Charge::Cached, want as u64) {
        return Err(NoRoom::FallbackHeap);
    }
    let granted = take(want, limits, |size| heap.take(Charge::Cached, size as u64), &mut || false);
    let granted = granted.ok_or(NoRoom::FallbackHeap)?;
    let chunk = heap_alloc(engine, granted, limits, nuke);
    let used = chunk.as_ref().map_or(0, HeapChunk::size);
    heap.give_back(Charge::Cached, granted.saturating_sub(used) as u64);
    chunk.map(|chunk| chunk.charged(Charge::Cached)).ok_or(NoRoom::Limit)
}

/// The store cannot take the body, or no more of it.
struct Refused;

/// Returns room in the body's draft. `Ok(None)`: the limit is reached and nothing can be evicted.
fn store_space(
    body: &Body,
    writer: &mut Writer,
    engine: &Engine,
    want: usize,
    estimated: bool,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Result<Option<(NonNull<u8>, usize)>, Refused> {
    let len = body.len();
    if writer.draft().is_none() {
        // What is in heap already moves, so that the body is contiguous.
        let Some(granted) = take(want, limits, |size| engine.account.alloc(len + size as u64), nuke) else {
            return Ok(None);
        };
        let reserved = len + granted as u64;
        let hint = if estimated { len + want as u64 } else { 0 };
        match to_draft::begin(body, &mut writer.retired, engine, hint, reserved, len) {
            Some(begun) => writer.target = Target::Draft(begun),
            None => {
                engine.account.alloc_failed(reserved);
                return Err(Refused);
            }
        }
    }
    let draft = writer.draft().ok_or(Refused)?;
    if draft.reserved() <= len {
        // A body of unknown length grows in ever larger steps, so that a long one has few of them.
        let step = if estimated { want } else { want.max((len / 4) as usize / limits.chunk * limits.chunk) };
        let Some(granted) = take(step, limits, |size| engine.account.grow(size as u64), nuke) else {
            return Ok(None);
        };
        if !draft.grow(engine, granted as u64) {
            engine.account.shrink(granted as u64);
            return Err(Refused);
        }
        // The draft may have moved to another file.
        let last = body.view().enter(State::Draft(draft.reading()));
        drop(last);
    }
    to_draft::room(body, engine, draft, len).map(Some).ok_or(Refused)
}

/// Writes what is left in a draft's buffer, if the fetch ended without a trim.
pub(crate) fn write_rest(body: &Body, writer: &mut Writer, engine: &Engine) {
    let is_buffered = matches!(body.view().pieces.last(), Some(Piece { medium: Medium::Buffer(_), .. }));
    if is_buffered && writer.draft().is_some_and(|draft| draft.is_whole()) {
        trim_draft(body, writer, engine);
    }
}

fn trim_draft(body: &Body, writer: &mut Writer, engine: &Engine) {
    let len = body.len();
    let Some(draft) = writer.draft() else { return };
    if !to_draft::flush(body, engine, draft, len) {
        continue_in_heap(body, writer, engine, len);
    }
    if let Some(draft) = writer.draft() {
        draft.trim(engine, len);
        drop_empty_buffer(&mut body.view());
    }
}

/// Continues a body in heap of which the store takes no more than the present `len` bytes. If none of them are in the
/// file, all of the body moves to heap, and the draft ends; else it is `Mixed`.
fn continue_in_heap(body: &Body, writer: &mut Writer, engine: &Engine, len: u64) {
    // Without a draft it never left the heap.
    let Some(draft) = writer.draft() else { return };
    drop_empty_buffer(&mut body.view());
    if draft.is_empty() && back_to_heap(body, engine, draft, len) {
        writer.discard_draft(engine);
        return;
    }
    // If this fails, as it did before, the bytes stay in the buffer, which is counted already.
    to_draft::flush(body, engine, draft, len);
    draft.end_at(len);
    counters::add(&engine.counters.c_mixed, 1);
    let last = body.view().enter(State::Mixed(draft.reading()));
    drop(last);
}

/// Moves a draft's buffer, which holds all of the body, to heap. Returns false if there is no heap for it.
fn back_to_heap(body: &Body, engine: &Engine, draft: &mut Draft, len: u64) -> bool {
    let chunk = if len == 0 {
        None
    } else {
        let buffer = match body.view().pieces.last() {
            Some(Piece { start: 0, medium: Medium::Buffer(buffer), .. }) => buffer.clone(),
            _ => return false,
        };
        let Some(chunk) = engine.take_over(len) else { return false };
        // SAFETY: as in `Draft::write`: all of the `len` bytes are body, and we are the fetch.
        chunk.copy_from(unsafe { buffer.bytes(len as usize) });
        draft.hand_over(engine, len);
        Some(chunk)
    };
    let last = {
        let mut view = body.view();
        if let Some(chunk) = chunk {
            view.pieces.clear();
            view.pieces.push(Piece { start: 0, len, medium: Medium::Heap(chunk) });
        }
        view.enter(State::Refused)
    };
    drop(last);
    true
}

/// Removes the last piece if it is an empty buffer.
fn drop_empty_buffer(view: &mut View) {
    if matches!(view.pieces.last(), Some(Piece { len: 0, medium: Medium::Buffer(_), .. })) {
        view.pieces.pop();
    }
}

fn trim_heap(view: &mut View, retired: &mut Vec<HeapChunk>, engine: &Engine) {
    let Some(Piece { medium: Medium::Heap(chunk), len, .. }) = view.pieces.last() else { return };
    let len = *len as usize;
    if len == 0 {
        if let Some(Piece { medium: Medium::Heap(chunk), .. }) = view.pieces.pop() {
            retired.push(chunk);
        }
        return;
    }
    if chunk.size() - len < TRIM_WORTHWHILE {
        return;
    }
    let charge = chunk.charge();
    if !engine.fallback.take(charge, len as u64) {
        return;
    }
    let Some(exact) = HeapChunk::alloc(&engine.account, len) else {
        engine.fallback.give_back(charge, len as u64);
        return;
    };
    let exact = exact.charged(charge);
    engine.count_piece(&exact);
    // SAFETY: the chunk's first `len` bytes are body: the fetch wrote them, and they do not change any more.
    exact.copy_from(unsafe { std::slice::from_raw_parts(chunk.ptr().as_ptr(), len) });
    if let Some(piece) = view.pieces.last_mut()
        && let Medium::Heap(surplus) = std::mem::replace(&mut piece.medium, Medium::Heap(exact))
    {
        retired.push(surplus);
    }
}
