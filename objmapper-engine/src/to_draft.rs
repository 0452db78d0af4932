//! A body's way to its draft: first from heap to the file, then through the buffer.
//!
//! Only the writer calls these functions. The body's lock is not held during a write to the file; the pieces that are
//! written stay where they are until the lock is taken again and the file's piece replaces them, so that readers always
//! find each byte.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use smallvec::SmallVec;

use crate::body::{Body, Inner, Piece, Place};
use crate::draft::Writing;
use crate::engine::Engine;

/// Begins a draft with `reserved` bytes, for a body of `hint` bytes (0: unknown), and moves the `len` bytes in heap
/// there. `None`: the store, or this process, failed; this is counted.
pub(crate) fn begin(body: &Body, engine: &Engine, hint: u64, reserved: u64, len: u64) -> Option<Box<Writing>> {
    let begun = Writing::begin(engine, hint, reserved, |file| copy_from_heap(body, file));
    let mut inner = body.lock();
    let inner = &mut *inner;
    inner.moving = false;
    let mut writing = begun?;
    inner.reading = Some(writing.reading());
    // Bytes that a final iteration has freed are neither in heap nor in the file.
    let gone = inner.pieces.iter().filter(|piece| matches!(piece.place, Place::Gone));
    let given_back = gone.map(|piece| piece.start + piece.len).max().unwrap_or(0);
    inner.given_back = given_back;
    for piece in inner.pieces.drain(..) {
        if let Place::Heap(chunk) = piece.place {
            inner.retired.push(chunk);
        }
    }
    if len > 0 {
        inner.pieces.push(Piece { start: 0, len, place: Place::File });
    }
    writing.start_accounting(engine, len, given_back);
    Some(writing)
}

/// Returns where the bytes from `len`, the body's end, on can be written, and how many. `None`: the file cannot take
/// more; this is counted.
pub(crate) fn room(body: &Body, engine: &Engine, writing: &mut Writing, len: u64) -> Option<(NonNull<u8>, usize)> {
    if writing.is_full(len) && !flush(body, engine, writing, len) {
        return None;
    }
    let (buffer, used, room) = writing.room(engine, len)?;
    let ptr = buffer.at(used)?;
    if used == 0 {
        let mut inner = body.lock();
        if !matches!(inner.pieces.last(), Some(Piece { place: Place::Buffer(_), .. })) {
            inner.pieces.push(Piece { start: len, len: 0, place: Place::Buffer(buffer) });
        }
    }
    Some((ptr, room))
}

/// Writes the buffered bytes of the body, which ends at `len`, to the file. Returns false if the write failed: the
/// bytes stay in the buffer; this is counted.
pub(crate) fn flush(body: &Body, engine: &Engine, writing: &mut Writing, len: u64) -> bool {
    match writing.write(engine, len) {
        Ok(Some(buffer)) => {
            show_written(&mut body.lock());
            writing.reuse_buffer(buffer, len);
            true
        }
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Writes the body's pieces in heap to the file. `Inner::moving` keeps a final iteration from freeing them until the
/// caller has taken them out of the body and clears it.
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

/// Turns the last piece, a buffer whose bytes were written, into a part of the file's piece.
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
