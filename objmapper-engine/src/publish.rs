//! How a draft becomes a published, immutable body: under a URI of its own when the fetch has ended ([`Body::settle`]),
//! or, if all of the body is in it, before that as a record that other caches find ([`Body::publish`]).
//!
//! The store publishes only a file that no process can write to any more. Only the writer ever could: readers have
//! another descriptor of a draft, which is read-only, and go on reading while it is published.

use std::os::unix::fs::FileExt;

use objmapper_client::{Outage, Published};
use smallvec::SmallVec;

use crate::backing::{Failure, Lengths, StoredBody};
use crate::body::Body;
use crate::counters;
use crate::draft::Draft;
use crate::engine::Engine;
use crate::record::NewRecord;
use crate::space::write_rest;
use crate::state::{Medium, Piece, State};
use crate::writer::{Target, Writer};

impl Body {
    /// Publishes the complete body as a record that other caches find. The fetch has succeeded, [`Body::trim`] was
    /// called, and [`Body::settle`] was not yet. `nuke` is as in [`Body::space`]. May wait for the store until the
    /// deadline of a call (`timeout`).
    pub fn publish(&self, engine: &Engine, record: &NewRecord<'_>, nuke: &mut dyn FnMut() -> bool) -> Published {
        let mut writer = self.writer();
        write_rest(self, &mut writer, engine);
        let Some((draft, len)) = complete_draft(self, &mut writer) else { return Published::Elsewhere };
        match as_record(engine, draft, len, record, nuke) {
            Ok(stored) => {
                counters::add(&engine.counters.c_published, 1);
                counters::add(&engine.counters.c_records, 1);
                published(self, &mut writer, engine, &stored);
                Published::Done
            }
            Err(outcome) => {
                match outcome {
                    Published::Done | Published::Elsewhere => {}
                    Published::Conflict => counters::add(&engine.counters.c_record_conflict, 1),
                    Published::Outage(_) => counters::add(&engine.counters.c_record_failed, 1),
                }
                // The draft may have moved to another file.
                let last = self.view().enter(State::Draft(draft.reading()));
                drop(last);
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
        let mut writer = self.writer();
        let writer = &mut *writer;
        writer.free_retired(engine);
        if matches!(writer.target, Target::Record(_)) {
            writer.target = Target::Heap;
        }
        let last = {
            let mut view = self.view();
            if !view.state().is_transit() {
                view.following = None;
            }
            match view.state() {
                State::Announced { .. } | State::Heap | State::Refused => Some(view.enter(State::Settled)),
                State::Adopted(stored) => {
                    let stored = stored.clone();
                    Some(view.enter(State::Stored(stored)))
                }
                _ => None,
            }
        };
        if let Some(State::Announced { record, .. }) = last {
            engine.cancel_adoption(record);
        }
        if !keep {
            return true;
        }
        let stored = match self.view().state() {
            State::Transit(_) | State::Orphan { .. } => return false,
            state => state.stored().cloned(),
        };
        match stored {
            Some(stored) => register(self, engine, &stored, owner),
            None => settle_draft(self, writer, engine, owner),
        }
    }
}

/// Ends a body's draft: publishes what is in its file, or, if the store refuses, copies it to heap. What came after the
/// store refused more is in heap already, and stays there. So a settled body has no descriptors beside those in the
/// engine's cache.
fn settle_draft(body: &Body, writer: &mut Writer, engine: &Engine, owner: usize) -> bool {
    write_rest(body, writer, engine);
    let Some(draft) = writer.draft() else {
        body.view().end_in_heap();
        return true;
    };
    if !buffer_to_heap(body, engine, draft) {
        return orphan(body, writer);
    }
    let len = draft.written();
    if len == 0 {
        let last = {
            let mut view = body.view();
            view.pieces.retain(|piece| matches!(piece.medium, Medium::Heap(_)));
            view.enter(State::Settled)
        };
        drop(last);
        writer.discard_draft(engine);
        return true;
    }
    draft.finish(engine, len);
    draft.close();
    let lengths = Lengths { body: len, file: len + draft.tail() };
    match engine.publish(draft.file(), lengths) {
        Some(stored) => {
            counters::add(&engine.counters.c_published, 1);
            if len == body.len() {
                engine.record_success();
            }
            published(body, writer, engine, &stored);
            register(body, engine, &stored, owner)
        }
        None => {
            counters::add(&engine.counters.c_body_failed, 1);
            if !file_to_heap(body, engine, draft, len) {
                return orphan(body, writer);
            }
            counters::add(&engine.counters.c_publish_copied, 1);
            writer.discard_draft(engine);
            true
        }
    }
}

/// Makes the body an orphan: its draft can be neither published nor copied. Readers that have begun go on: the
/// descriptor keeps the file. Returns false, as the object must leave the cache.
fn orphan(body: &Body, writer: &mut Writer) -> bool {
    if let Some(draft) = writer.end_draft() {
        let state = State::Orphan { file: draft.reading(), outstanding: draft.outstanding() };
        let last = body.view().enter(state);
        drop((last, draft));
    }
    false
}

/// Moves the bytes that could not be written to the file from their buffer to heap. Returns false if there is no heap
/// for them.
fn buffer_to_heap(body: &Body, engine: &Engine, draft: &mut Draft) -> bool {
    let buffered = body.view().pieces.iter().find_map(|piece| match &piece.medium {
        Medium::Buffer(buffer) => Some((piece.start, piece.len, buffer.clone())),
        _ => None,
    });
    let Some((start, len, buffer)) = buffered else { return true };
    let Some(chunk) = engine.take_over(len) else { return false };
    // SAFETY: the piece's bytes are body, which the fetch wrote before it said so, and which does not change any more.
    chunk.copy_from(unsafe { buffer.bytes(len as usize) });
    draft.hand_over(engine, len);
    draft.ends_before(start);
    let mut view = body.view();
    if let Some(piece) = view.pieces.iter_mut().find(|piece| piece.start == start) {
        piece.medium = Medium::Heap(chunk);
    }
    if matches!(view.state(), State::Draft(_)) {
        let _ = view.enter(State::Mixed(draft.reading()));
    }
    true
}

/// Copies the first `len` bytes of the body from its draft's file to heap, and ends the body there. Returns false if
/// there is no heap for them, or the file cannot be read.
fn file_to_heap(body: &Body, engine: &Engine, draft: &mut Draft, len: u64) -> bool {
    let Some(chunk) = engine.take_over(len) else { return false };
    if let Err(error) = chunk.fill_from(&draft.reading()) {
        engine.file_error("copying a body that could not be published", &error);
        engine.hand_back(chunk);
        return false;
    }
    draft.hand_over(engine, len);
    let last = {
        let mut view = body.view();
        view.pieces.retain(|piece| !matches!(piece.medium, Medium::File));
        view.pieces.insert(0, Piece { start: 0, len, medium: Medium::Heap(chunk) });
        view.enter(State::Settled)
    };
    drop(last);
    true
}

fn register(body: &Body, engine: &Engine, stored: &StoredBody, owner: usize) -> bool {
    let kept = engine.register(stored, owner);
    if !kept {
        body.view().loss_counted = true;
    }
    kept
}

/// Writes the record's tail behind the body, and publishes both.
fn as_record(
    engine: &Engine,
    draft: &mut Draft,
    len: u64,
    record: &NewRecord<'_>,
    nuke: &mut dyn FnMut() -> bool,
) -> Result<StoredBody, Published> {
    if !draft.finish(engine, len) {
        return Err(Published::Outage(Outage::Io));
    }
    let tail = record.tail.len() as u64;
    while !engine.account.grow(tail) {
        if tail > engine.account.limit() || !nuke() {
            return Err(Published::Outage(Outage::Full));
        }
    }
    let file = len + tail;
    let written = draft.reserve_tail(engine, len, tail).and_then(|()| {
        let result = draft.file().file().and_then(|to| to.write_all_at(record.tail, len));
        result.map_err(|error| {
            engine.file_error("writing a record's tail", &error);
            Failure::from(error)
        })
    });
    if let Err(failure) = written {
        draft.trim(engine, len);
        engine.account.shrink(tail);
        return Err(outcome(engine, &failure));
    }
    // From here on the tail belongs to the file, whether or not the record is published.
    counters::add(&engine.counters.g_body_bytes, tail);
    draft.add_tail(tail);
    draft.close();
    let lengths = Lengths { body: len, file };
    engine.publish_record(draft.file(), record, lengths).map_err(|failure| outcome(engine, &failure))
}

fn outcome(engine: &Engine, failure: &Failure) -> Published {
    match failure {
        Failure::Conflict => Published::Conflict,
        Failure::Outage { kind, .. } => {
            engine.log_error(&format!("a record could not be published: {failure}"));
            Published::Outage(*kind)
        }
    }
}

/// Returns a body's draft, and the body's length, if all of the body is in the draft's file, and it is not closed.
fn complete_draft<'a>(body: &Body, writer: &'a mut Writer) -> Option<(&'a mut Draft, u64)> {
    let draft = writer.draft().filter(|draft| draft.is_whole() && !draft.is_closed())?;
    let view = body.view();
    let in_file = view.len > 0 && view.pieces.iter().all(|piece| matches!(piece.medium, Medium::File));
    in_file.then_some((draft, view.len))
}

/// Replaces the draft by the published body. Readers that still use its buffer or file keep them.
fn published(body: &Body, writer: &mut Writer, engine: &Engine, stored: &StoredBody) {
    let Some(draft) = writer.end_draft() else { return };
    counters::sub(&engine.counters.g_writing, 1);
    engine.cache_descriptor(stored, draft.reading());
    let unneeded: (State, SmallVec<[Piece; 1]>) = {
        let mut view = body.view();
        let pieces = std::mem::take(&mut view.pieces);
        let (in_heap, in_file) = pieces.into_iter().partition(|piece| matches!(piece.medium, Medium::Heap(_)));
        view.pieces = in_heap;
        (view.enter(State::Stored(stored.clone())), in_file)
    };
    drop((unneeded, draft));
}
