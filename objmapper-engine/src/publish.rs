//! How a draft becomes a published, immutable body: under a URI of its own when the fetch has ended ([`Body::settle`]),
//! or, if all of the body is in it, before that as a record that other caches find ([`Body::publish`]).
//!
//! The store publishes only a file that no process can write to any more. Only the writer ever could: readers have
//! another descriptor of a draft, which is read-only, and go on reading while it is published.

use std::os::unix::fs::FileExt;

use smallvec::SmallVec;

use crate::adopt::Adoption;
use crate::backing::{Failure, Lengths, Stored};
use crate::body::{Body, Piece, Place};
use crate::counters;
use crate::draft::Writing;
use crate::engine::Engine;
use crate::record::Record;
use crate::space::write_rest;

/// The outcome of [`Body::publish`]. Except after [`Outcome::Done`], the body is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The record is published: other caches find it.
    Done,
    /// The body, or a part of it, is not in a draft.
    Elsewhere,
    /// The URI was deleted after its fence was read.
    Conflict,
    /// The store, or the storage's limit, has no room for the tail.
    Full,
    /// The store is not connected.
    Down,
    /// The store did not answer in time; it may have published the record.
    Timeout,
    /// Any other failure; it is logged.
    Failed,
}

impl Body {
    /// Publishes the complete body as a record that other caches find. The fetch has succeeded, [`Body::trim`] was
    /// called, and [`Body::settle`] was not yet. `nuke` is as in [`Body::space`]. May wait for the store until the
    /// deadline of a call (`timeout`).
    pub fn publish(&self, engine: &Engine, record: &Record<'_>, nuke: &mut dyn FnMut() -> bool) -> Outcome {
        write_rest(self, engine);
        let Some((mut writing, len)) = take_complete(self) else { return Outcome::Elsewhere };
        let outcome = if len == 0 || writing.is_closed() {
            Err(Outcome::Elsewhere)
        } else {
            as_record(engine, &mut writing, len, record, nuke)
        };
        match outcome {
            Ok(stored) => {
                counters::add(&engine.counters.c_published, 1);
                counters::add(&engine.counters.c_records, 1);
                published(self, engine, *writing, &stored);
                Outcome::Done
            }
            Err(outcome) => {
                match outcome {
                    Outcome::Done | Outcome::Elsewhere => {}
                    Outcome::Conflict => counters::add(&engine.counters.c_record_conflict, 1),
                    _ => counters::add(&engine.counters.c_record_failed, 1),
                }
                let mut inner = self.lock();
                inner.orphan = None;
                // The draft may have moved to another file.
                inner.reading = Some(writing.reading());
                inner.writing = Some(writing);
                outcome
            }
        }
    }

    /// Ends the fetch of a body: frees the heap that was replaced, and, if `keep` (the object is in the cache),
    /// publishes a draft. The caller guarantees that no follower of the fetch reads in heap any more. Returns false if
    /// the object must leave the cache, because its body has no place or is lost. `owner` identifies the object to
    /// [`Engine::sweep`].
    #[must_use]
    pub fn settle(&self, engine: &Engine, keep: bool, owner: usize) -> bool {
        let (retired, adoption, in_transit) = {
            let mut inner = self.lock();
            let in_transit = inner.is_in_transit();
            if !in_transit {
                inner.following = None;
            }
            (std::mem::take(&mut inner.retired), inner.adoption.take(), in_transit)
        };
        for chunk in retired {
            engine.free_piece(chunk);
        }
        if let Some(Adoption::Announced(announced)) = adoption {
            engine.cancel_adoption(announced);
        }
        if !keep {
            return true;
        }
        if in_transit {
            return false;
        }
        let stored = self.lock().stored.clone();
        match stored {
            Some(stored) => register(self, engine, &stored, owner),
            None => settle_draft(self, engine, owner),
        }
    }
}

/// Ends a body's draft: publishes what is in its file, or, if the store refuses, copies it to heap. What came after the
/// store refused more is in heap already, and stays there. So a settled body has no descriptors beside those in the
/// engine's cache.
fn settle_draft(body: &Body, engine: &Engine, owner: usize) -> bool {
    write_rest(body, engine);
    let Some(mut writing) = take_settling(body) else { return true };
    if !buffer_to_heap(body, engine, &mut writing) {
        return orphan(body, &writing);
    }
    let len = writing.written();
    if len == 0 {
        let mut inner = body.lock();
        inner.pieces.retain(|piece| matches!(piece.place, Place::Heap(_)));
        inner.reading = None;
        inner.orphan = None;
        drop(inner);
        writing.discard(engine);
        return true;
    }
    writing.finish(engine, len);
    writing.close();
    let lengths = Lengths { body: len, file: len + writing.tail() };
    match engine.publish(writing.draft(), lengths) {
        Some(stored) => {
            counters::add(&engine.counters.c_published, 1);
            if len == body.len() {
                engine.record_success();
            }
            published(body, engine, *writing, &stored);
            register(body, engine, &stored, owner)
        }
        None => {
            counters::add(&engine.counters.c_publish_failed, 1);
            if !file_to_heap(body, engine, &mut writing, len) {
                return orphan(body, &writing);
            }
            counters::add(&engine.counters.c_publish_copied, 1);
            writing.discard(engine);
            true
        }
    }
}

/// Makes the body an orphan: its draft can be neither published nor copied. Readers that have begun go on: the
/// descriptor keeps the file. Returns false, as the object must leave the cache.
fn orphan(body: &Body, writing: &Writing) -> bool {
    body.lock().orphan = Some(writing.outstanding());
    false
}

/// Takes the draft of a complete body out of it. Until the body has another place it is an orphan, as in
/// [`take_complete`].
fn take_settling(body: &Body) -> Option<Box<Writing>> {
    let mut inner = body.lock();
    let writing = inner.writing.take()?;
    inner.orphan = Some(writing.outstanding());
    Some(writing)
}

/// Moves the bytes that could not be written to the file from their buffer to heap. Returns false if there is no heap
/// for them.
fn buffer_to_heap(body: &Body, engine: &Engine, writing: &mut Writing) -> bool {
    let (start, len, buffer) = {
        let inner = body.lock();
        let buffered = inner.pieces.iter().find_map(|piece| match &piece.place {
            Place::Buffer(buffer) => Some((piece.start, piece.len, buffer.clone())),
            _ => None,
        });
        match buffered {
            Some(buffered) => buffered,
            None => return true,
        }
    };
    let Some(chunk) = engine.take_over(len) else { return false };
    // SAFETY: the piece's bytes are body, which the fetch wrote before it said so, and which does not change any more.
    chunk.copy_from(unsafe { buffer.bytes(len as usize) });
    writing.hand_over(engine, len);
    writing.ends_before(start);
    let mut inner = body.lock();
    if let Some(piece) = inner.pieces.iter_mut().find(|piece| piece.start == start) {
        piece.place = Place::Heap(chunk);
    }
    inner.orphan = Some(writing.outstanding());
    true
}

/// Copies the first `len` bytes of the body from its draft's file to heap. Returns false if there is no heap for them,
/// or the file cannot be read.
fn file_to_heap(body: &Body, engine: &Engine, writing: &mut Writing, len: u64) -> bool {
    let Some(chunk) = engine.take_over(len) else { return false };
    if let Err(error) = chunk.fill_from(&writing.reading()) {
        engine.file_error("copying a body that could not be published", &error);
        engine.hand_back(chunk);
        return false;
    }
    writing.hand_over(engine, len);
    let mut inner = body.lock();
    inner.pieces.retain(|piece| !matches!(piece.place, Place::File));
    inner.pieces.insert(0, Piece { start: 0, len, place: Place::Heap(chunk) });
    inner.reading = None;
    inner.orphan = None;
    true
}

fn register(body: &Body, engine: &Engine, stored: &Stored, owner: usize) -> bool {
    let kept = engine.register(stored, owner);
    if !kept {
        body.lock().loss_counted = true;
    }
    kept
}

/// Writes the record's tail behind the body, and publishes both.
fn as_record(
    engine: &Engine,
    writing: &mut Writing,
    len: u64,
    record: &Record<'_>,
    nuke: &mut dyn FnMut() -> bool,
) -> Result<Stored, Outcome> {
    if !writing.finish(engine, len) {
        return Err(Outcome::Failed);
    }
    let tail = record.tail.len() as u64;
    while !engine.account.grow(tail) {
        if tail > engine.account.limit() || !nuke() {
            return Err(Outcome::Full);
        }
    }
    let file = len + tail;
    let written = writing.reserve_tail(engine, len, tail).and_then(|()| {
        let result = writing.draft().file().and_then(|to| to.write_all_at(record.tail, len));
        result.map_err(|error| {
            engine.file_error("writing a record's tail", &error);
            Failure::Io(error.to_string())
        })
    });
    if let Err(failure) = written {
        writing.trim(engine, len);
        engine.account.shrink(tail);
        return Err(outcome(engine, &failure));
    }
    // From here on the tail belongs to the file, whether or not the record is published.
    counters::add(&engine.counters.g_body_bytes, tail);
    writing.add_tail(tail);
    writing.close();
    let lengths = Lengths { body: len, file };
    engine.publish_record(writing.draft(), record, lengths).map_err(|failure| outcome(engine, &failure))
}

fn outcome(engine: &Engine, failure: &Failure) -> Outcome {
    let outcome = match failure {
        Failure::Conflict => return Outcome::Conflict,
        Failure::Down(_) => Outcome::Down,
        Failure::Full(_) => Outcome::Full,
        Failure::Timeout(_) => Outcome::Timeout,
        Failure::Io(_) | Failure::Protocol(_) => Outcome::Failed,
    };
    engine.log_error(&format!("a record could not be published: {failure}"));
    outcome
}

/// Takes a draft that holds all of its body out of it. Until it is put back or published, the body is an orphan: only
/// its present readers have it.
fn take_complete(body: &Body) -> Option<(Box<Writing>, u64)> {
    let mut inner = body.lock();
    let in_file = inner.pieces.iter().all(|piece| matches!(piece.place, Place::File));
    let writing = inner.writing.take_if(|writing| in_file && writing.is_whole())?;
    inner.orphan = Some(writing.outstanding());
    Some((writing, inner.len))
}

/// Replaces the draft by the published body. Readers that still use its buffer or file keep them.
fn published(body: &Body, engine: &Engine, writing: Writing, stored: &Stored) {
    counters::sub(&engine.counters.g_writing, 1);
    engine.cache_descriptor(stored, writing.into_reading());
    let mut inner = body.lock();
    inner.stored = Some(stored.clone());
    inner.orphan = None;
    let pieces = std::mem::take(&mut inner.pieces);
    let (in_heap, in_file) = pieces.into_iter().partition(|piece| matches!(piece.place, Place::Heap(_)));
    inner.pieces = in_heap;
    let unneeded: (SmallVec<[Piece; 1]>, _) = (in_file, inner.reading.take());
    drop(inner);
    drop(unneeded);
}
