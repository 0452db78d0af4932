//! How a draft becomes a published, immutable body: under a name of its own when the fetch is over ([`Body::settle`]), or,
//! if all of the body is in it, before that as a record that others find ([`Body::publish`]).
//!
//! objmapper publishes only what nobody can write to any more. Only the writer ever could: readers see a draft through
//! another descriptor, which is read-only, and go on reading while it is published.

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

/// What became of [`Body::publish`]. But for [`Outcome::Done`], the body is what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Others find it.
    Done,
    /// The body, or some of it, is not in a draft.
    Elsewhere,
    /// The URI was deleted since its fence was looked at.
    Conflict,
    /// The store has no room for the tail, or our own limit has none.
    Full,
    /// The store is not connected.
    Down,
    /// It did not answer in time: it may have published the record.
    Timeout,
    /// Anything else; it is logged.
    Failed,
}

impl Body {
    /// Publishes the complete body as a record that others find. The fetch has ended well, [`Body::trim`] was called,
    /// and [`Body::settle`] was not yet. `nuke` is as in [`Body::space`]. It may wait for the store, within a deadline.
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
                // It may have another file now.
                inner.reading = Some(writing.reading());
                inner.writing = Some(writing);
                outcome
            }
        }
    }

    /// The fetch is over: frees what was replaced, and gives the body the place where it stays, if `keep`: look-ups will
    /// find the object. Of those who followed the fetch, nobody reads in heap any more. `false`: the body has no such
    /// place, or is lost; the object must leave the cache. `owner` names the object to [`Engine::sweep`], should objmapper
    /// lose the body.
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

/// Ends a body's draft: publishes what is in its file, or, if objmapper refuses, copies it to heap. What came after
/// objmapper refused more is in heap already, and stays there. So no settled body has descriptors beside those in the
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

/// The body's draft can be neither published nor copied. Readers that have begun go on: the descriptor keeps the file.
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

/// Moves the bytes that could not be written to the file from their buffer to heap. `false`: there is none.
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

/// Copies the first `len` bytes of the body from its draft's file to heap. `false`: there is no room, or the file cannot
/// be read.
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

/// Writes the record's tail behind the body, and has both published.
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
    // From here on it belongs to the file, whatever becomes of the record.
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

/// Takes a draft that holds all of its body out of it. Until it is put back or published, the body is an orphan: its
/// readers find it, and nobody else will.
fn take_complete(body: &Body) -> Option<(Box<Writing>, u64)> {
    let mut inner = body.lock();
    let in_file = inner.pieces.iter().all(|piece| matches!(piece.place, Place::File));
    let writing = inner.writing.take_if(|writing| in_file && writing.is_whole())?;
    inner.orphan = Some(writing.outstanding());
    Some((writing, inner.len))
}

/// The draft is the published body now. Who still reads from its buffer or file keeps them.
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
