//! A body's way to its draft: first from heap to the file, then through the buffer.
//!
//! Only the writer calls these functions. The view's lock is not held during a write to the file; the pieces that are
//! written stay where they are until the lock is taken again and the file's piece replaces them, so that readers always
//! find each byte.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use smallvec::SmallVec;

use crate::body::Body;
use crate::draft::Draft;
use crate::engine::Engine;
use crate::heap::HeapChunk;
use crate::state::{Medium, Piece, State, View};

/// Begins a draft with `reserved` bytes, for a body of `hint` bytes (0: unknown), and moves the `len` bytes in heap
/// there; the heap is `retired`. `None`: the store, or this process, failed; this is counted, and the body is `Refused`.
pub(crate) fn begin(
    body: &Body,
    retired: &mut Vec<HeapChunk>,
    engine: &Engine,
    hint: u64,
    reserved: u64,
    len: u64,
) -> Option<Box<Draft>> {
    let _ = body.view().enter(State::Moving);
    let begun = Draft::begin(engine, hint, reserved, |file| copy_from_heap(body, file));
    let mut view = body.view();
    let Some(mut draft) = begun else {
        let _ = view.enter(State::Refused);
        return None;
    };
    let _ = view.enter(State::Draft(draft.reading()));
    // Bytes that a final iteration has freed are neither in heap nor in the file.
    let freed = view.pieces.iter().filter(|piece| matches!(piece.medium, Medium::Freed));
    let given_back = freed.map(|piece| piece.start + piece.len).max().unwrap_or(0);
    view.given_back = given_back;
    for piece in view.pieces.drain(..) {
        if let Medium::Heap(chunk) = piece.medium {
            retired.push(chunk);
        }
    }
    if len > 0 {
        view.pieces.push(Piece { start: 0, len, medium: Medium::File });
    }
    draft.start_accounting(engine, len, given_back);
    Some(draft)
}

/// Returns where the bytes from `len`, the body's end, on can be written, and how many. `None`: the file cannot take
/// more; this is counted.
pub(crate) fn room(body: &Body, engine: &Engine, draft: &mut Draft, len: u64) -> Option<(NonNull<u8>, usize)> {
    if draft.is_full(len) && !flush(body, engine, draft, len) {
        return None;
    }
    let (buffer, used, room) = draft.space(engine, len)?;
    let ptr = buffer.at(used)?;
    if used == 0 {
        let mut view = body.view();
        if !matches!(view.pieces.last(), Some(Piece { medium: Medium::Buffer(_), .. })) {
            view.pieces.push(Piece { start: len, len: 0, medium: Medium::Buffer(buffer) });
        }
    }
    Some((ptr, room))
}

/// Writes the buffered bytes of the body, which ends at `len`, to the file. Returns false if the write failed: the
/// bytes stay in the buffer; this is counted.
pub(crate) fn flush(body: &Body, engine: &Engine, draft: &mut Draft, len: u64) -> bool {
    match draft.write(engine, len) {
        Ok(Some(buffer)) => {
            show_written(&mut body.view());
            draft.reuse_buffer(buffer, len);
            true
        }
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Writes the body's pieces in heap to the file. In the state `Moving` a final iteration frees none of them; the caller
/// leaves it when it has taken them out of the body.
fn copy_from_heap(body: &Body, file: &File) -> std::io::Result<()> {
    let pieces: SmallVec<[(u64, NonNull<u8>, usize); 8]> = {
        let view = body.view();
        let in_heap = view.pieces.iter().filter_map(|piece| match &piece.medium {
            Medium::Heap(chunk) => Some((piece.start, chunk.ptr(), piece.len as usize)),
            _ => None,
        });
        in_heap.collect()
    };
    for (start, ptr, len) in pieces {
        // SAFETY: the first `len` bytes of the chunk are body, which was written before it became that and does not
        // change any more. The chunk is not freed meanwhile: only the writer, which we are, and a final iteration
        // (`Body::give_back`) take pieces away, and the latter leaves them alone in the state `Moving`.
        file.write_all_at(unsafe { std::slice::from_raw_parts(ptr.as_ptr(), len) }, start)?;
    }
    Ok(())
}

/// Turns the last piece, a buffer whose bytes were written, into a part of the file's piece.
fn show_written(view: &mut View) {
    let Some(Piece { start, len, medium: Medium::Buffer(_) }) = view.pieces.last() else { return };
    let (start, len) = (*start, *len);
    view.pieces.pop();
    match view.pieces.last_mut() {
        Some(Piece { len: before, medium: Medium::File, .. }) => *before += len,
        _ if len > 0 => view.pieces.push(Piece { start, len, medium: Medium::File }),
        _ => {}
    }
}
