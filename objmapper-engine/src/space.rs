//! Room for the next bytes of a body: in an adopted record, in heap, or in a draft.
//!
//! The order of attempts (how much is requested of the limit, when something is evicted, what counts as a failure) is
//! that of Varnish's own engines (`storage/storage_simple.c`), so that operators' numbers keep their meaning. A body is
//! in heap up to `threshold`, then in a draft; if the store refuses it, or more of it, in heap charged to
//! `fallback_heap`.

use std::ptr::NonNull;

use crate::adopted;
use crate::body::{Body, Inner, Piece, Place};
use crate::counters;
use crate::draft::Writing;
use crate::engine::Engine;
use crate::fallback::Charge;
use crate::grant::{ChunkLimits, take};
use crate::heap::HeapChunk;
use crate::to_draft;

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
        if let Some(room) = adopted::room(self, engine, want, limits, nuke) {
            return Ok(room);
        }
        let (len, in_draft, heap_only) = {
            let inner = self.lock();
            if let Some(room) = heap_room(&inner) {
                return Ok(room);
            }
            (inner.len, inner.writing.is_some(), inner.heap_only)
        };
        let mut refused = heap_only;
        let wants_store = !heap_only && (in_draft || len.saturating_add(want as u64) > engine.options.threshold);
        if wants_store {
            match store_space(self, engine, want, estimated, limits, nuke) {
                Ok(room) => {
                    engine.maintenance.keep_room(&engine.account);
                    return room.ok_or(NoRoom::Limit);
                }
                Err(Refused) => {
                    refused = true;
                    let writing = {
                        let mut inner = self.lock();
                        inner.heap_only = true;
                        inner.writing.take()
                    };
                    if let Some(writing) = writing {
                        let mixed = continue_in_heap(self, engine, writing, len);
                        self.lock().writing = mixed;
                    }
                }
            }
        }
        let chunk = if refused {
            fallback_alloc(engine, want, estimated, limits, nuke)?
        } else {
            heap_alloc(engine, want, limits, nuke).ok_or(NoRoom::Limit)?
        };
        engine.maintenance.keep_room(&engine.account);
        let mut inner = self.lock();
        let start = inner.len;
        inner.pieces.push(Piece { start, len: 0, place: Place::Heap(chunk) });
        heap_room(&inner).ok_or(NoRoom::Limit)
    }

    /// Releases the surplus of a body that is complete. Only the writer calls this, once.
    pub fn trim(&self, engine: &Engine) {
        trim_heap(&mut self.lock(), engine);
        trim_draft(self, engine);
    }
}

pub(crate) fn heap_room(inner: &Inner) -> Option<(NonNull<u8>, usize)> {
    let piece = inner.pieces.last()?;
    let Place::Heap(chunk) = &piece.place else { return None };
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
    engine: &Engine,
    want: usize,
    estimated: bool,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Result<Option<(NonNull<u8>, usize)>, Refused> {
    let (mut writing, len) = {
        let mut inner = body.lock();
        (inner.writing.take(), inner.len)
    };
    let result = 'grow: {
        let writing = match &mut writing {
            Some(writing) => writing,
            None => {
                // What is in heap already moves, so that the body is contiguous.
                let Some(granted) = take(want, limits, |size| engine.account.alloc(len + size as u64), nuke) else {
                    break 'grow Ok(None);
                };
                let reserved = len + granted as u64;
                let hint = if estimated { len + want as u64 } else { 0 };
                match to_draft::begin(body, engine, hint, reserved, len) {
                    Some(begun) => writing.insert(begun),
                    None => {
                        engine.account.alloc_failed(reserved);
                        break 'grow Err(Refused);
                    }
                }
            }
        };
        if writing.reserved() <= len {
            // A body of unknown length grows in ever larger steps, so that a long one has few of them.
            let step = if estimated { want } else { want.max((len / 4) as usize / limits.chunk * limits.chunk) };
            let Some(granted) = take(step, limits, |size| engine.account.grow(size as u64), nuke) else {
                break 'grow Ok(None);
            };
            if !writing.grow(engine, granted as u64) {
                engine.account.shrink(granted as u64);
                break 'grow Err(Refused);
            }
            // The draft may have moved to another file.
            body.lock().reading = Some(writing.reading());
        }
        match to_draft::room(body, engine, writing, len) {
            Some(room) => Ok(Some(room)),
            None => Err(Refused),
        }
    };
    body.lock().writing = writing;
    result
}

/// Writes what is left in a draft's buffer, if the fetch ended without a trim.
pub(crate) fn write_rest(body: &Body, engine: &Engine) {
    let is_buffered = {
        let inner = body.lock();
        let buffered = matches!(inner.pieces.last(), Some(Piece { place: Place::Buffer(_), .. }));
        buffered && inner.writing.as_ref().is_some_and(|writing| writing.is_whole())
    };
    if is_buffered {
        trim_draft(body, engine);
    }
}

fn trim_draft(body: &Body, engine: &Engine) {
    let (writing, len) = {
        let mut inner = body.lock();
        (inner.writing.take(), inner.len)
    };
    let Some(mut writing) = writing else { return };
    if !to_draft::flush(body, engine, &mut writing, len) {
        match continue_in_heap(body, engine, writing, len) {
            Some(mixed) => writing = mixed,
            None => return,
        }
    }
    writing.trim(engine, len);
    let mut inner = body.lock();
    drop_empty_buffer(&mut inner);
    inner.writing = Some(writing);
}

/// Continues a body in heap of which the store takes no more than the present `len` bytes. If none of them are in the
/// file, all of the body moves to heap and `None` is returned; else it is mixed, and its draft is returned.
fn continue_in_heap(body: &Body, engine: &Engine, mut writing: Box<Writing>, len: u64) -> Option<Box<Writing>> {
    drop_empty_buffer(&mut body.lock());
    if writing.is_empty() && back_to_heap(body, engine, &mut writing, len) {
        body.lock().reading = None;
        writing.discard(engine);
        return None;
    }
    // If this fails, as it did before, the bytes stay in the buffer, which is counted already.
    to_draft::flush(body, engine, &mut writing, len);
    writing.end_at(len);
    counters::add(&engine.counters.c_mixed, 1);
    Some(writing)
}

/// Moves a draft's buffer, which holds all of the body, to heap. Returns false if there is no heap for it.
fn back_to_heap(body: &Body, engine: &Engine, writing: &mut Writing, len: u64) -> bool {
    if len == 0 {
        return true;
    }
    let buffer = match body.lock().pieces.last() {
        Some(Piece { start: 0, place: Place::Buffer(buffer), .. }) => buffer.clone(),
        _ => return false,
    };
    let Some(chunk) = engine.take_over(len) else { return false };
    // SAFETY: as in `Writing::write`: all of the `len` bytes are body, and we are the fetch.
    chunk.copy_from(unsafe { buffer.bytes(len as usize) });
    writing.hand_over(engine, len);
    let mut inner = body.lock();
    inner.pieces.clear();
    inner.pieces.push(Piece { start: 0, len, place: Place::Heap(chunk) });
    true
}

/// Removes the last piece if it is an empty buffer.
fn drop_empty_buffer(inner: &mut Inner) {
    if matches!(inner.pieces.last(), Some(Piece { len: 0, place: Place::Buffer(_), .. })) {
        inner.pieces.pop();
    }
}

fn trim_heap(inner: &mut Inner, engine: &Engine) {
    let Some(Piece { place: Place::Heap(chunk), len, .. }) = inner.pieces.last() else { return };
    let len = *len as usize;
    if len == 0 {
        if let Some(Piece { place: Place::Heap(chunk), .. }) = inner.pieces.pop() {
            inner.retired.push(chunk);
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
    if let Some(piece) = inner.pieces.last_mut()
        && let Place::Heap(surplus) = std::mem::replace(&mut piece.place, Place::Heap(exact))
    {
        inner.retired.push(surplus);
    }
}
