//! How a complete draft becomes a published, immutable body: under a name of its own when the fetch is over
//! ([`Body::settle`]), or before that as a record that others find ([`Body::publish`]).
//!
//! objmapper publishes only what nobody can write to any more. Only the writer ever could: readers see a draft through
//! another descriptor, which is read-only, and go on reading while it is published.

use std::os::unix::fs::FileExt;

use crate::adopt::Adoption;
use crate::backing::{Failure, Lengths, Stored};
use crate::body::{Body, Place};
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

    /// The fetch is over: frees what was replaced, and publishes a draft if `keep`, others will look the object up. Of
    /// those who followed the fetch, nobody reads in heap any more. `false`: it could not be published or is lost, the
    /// object must leave the cache. `owner` names the object to [`Engine::sweep`], should objmapper lose the body.
    #[must_use]
    pub fn settle(&self, engine: &Engine, keep: bool, owner: usize) -> bool {
        let (retired, adoption) = {
            let mut inner = self.lock();
            (std::mem::take(&mut inner.retired), inner.adoption.take())
        };
        for chunk in retired {
            engine.free_piece(chunk);
        }
        if let Some(Adoption::Announced(announced)) = adoption {
            engine.forgo(announced);
        }
        let stored = self.lock().stored.clone();
        match stored {
            _ if !keep => true,
            Some(stored) => register(self, engine, &stored, owner),
            None => settle_draft(self, engine, owner),
        }
    }
}

fn settle_draft(body: &Body, engine: &Engine, owner: usize) -> bool {
    write_rest(body, engine);
    let Some((mut writing, len)) = take_complete(body) else { return true };
    if len == 0 {
        let mut inner = body.lock();
        inner.pieces.clear();
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
            published(body, engine, *writing, &stored);
            register(body, engine, &stored, owner)
        }
        None => {
            counters::add(&engine.counters.c_publish_failed, 1);
            // Who has begun to read it can go on: the descriptor keeps the file.
            body.lock().orphan = Some(writing.outstanding());
            false
        }
    }
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
    engine.complain(&format!("a record could not be published: {failure}"));
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
    engine.remember(stored, writing.into_reading());
    let mut inner = body.lock();
    inner.stored = Some(stored.clone());
    inner.orphan = None;
    let unneeded = (std::mem::take(&mut inner.pieces), inner.reading.take());
    drop(inner);
    drop(unneeded);
}
