//! Adoption: a published record becomes the body of an object, without a copy.
//!
//! The states are `Announced` (pinned by [`Engine::adopt`] and taken by [`Body::adopt`]), `Adopted` (from the first
//! [`Body::space`] on, which makes the record the body; its bytes count as body as they are [extended](Body::extend)),
//! and `Stored`. If the record cannot be adopted at the first [`Body::space`], the fetch gets ordinary room instead, and
//! copies.

use std::ptr::NonNull;

use crate::adopt::Announced;
use crate::backing::StoredBody;
use crate::body::Body;
use crate::counters;
use crate::engine::Engine;
use crate::grant::{ChunkLimits, take};
use crate::maps::PlaceholderRange;
use crate::span::NoSpan;
use crate::state::{State, View};
use crate::writer::{Target, Writer};

/// Bytes of a record that are read at a time for filters that look at them.
const COPY_STEP: usize = 256 << 10;

/// What [`Body::space`] returns for bytes that an adopted record has already.
pub(crate) enum RecordSpace {
    /// Addresses without memory: no filter of the fetch looks at the bytes.
    Placeholder(&'static PlaceholderRange),
    /// A copy of the record's bytes from `start` on, for filters that look at them (testgunzip, ESI's parser).
    Copy { start: u64, bytes: Vec<u8> },
}

impl RecordSpace {
    /// Returns the address that stands for the byte at `offset`, and the number of bytes from there on.
    fn at(&self, offset: u64) -> Option<(NonNull<u8>, usize)> {
        let (ptr, len) = match self {
            RecordSpace::Placeholder(range) => (range.start().cast::<u8>(), range.len()),
            RecordSpace::Copy { start, bytes } => {
                let skip = usize::try_from(offset.checked_sub(*start)?).ok()?;
                let rest = bytes.get(skip..).filter(|rest| !rest.is_empty())?;
                (rest.as_ptr(), rest.len())
            }
        };
        Some((NonNull::new(ptr.cast_mut())?, len))
    }

    /// Returns the part that stands for bytes of the record that are not body yet.
    fn rest(&self, view: &View) -> Option<(NonNull<u8>, usize)> {
        let left = view.state().stored()?.body_len.checked_sub(view.len).filter(|left| *left > 0)?;
        let (ptr, len) = self.at(view.len)?;
        Some((ptr, len.min(usize::try_from(left).unwrap_or(usize::MAX))))
    }

    /// Makes a copy begin at the body's end, if it has no byte from there on. Returns false if the record cannot be read;
    /// this is counted.
    fn advance(&mut self, body: &Body, engine: &Engine) -> bool {
        let RecordSpace::Copy { start, bytes } = self else { return true };
        let (len, left) = {
            let view = body.view();
            let Some(stored) = view.state().stored() else { return false };
            (view.len, stored.body_len.saturating_sub(view.len))
        };
        if left == 0 || *start + bytes.len() as u64 > len {
            return true;
        }
        bytes.resize(COPY_STEP.min(usize::try_from(left).unwrap_or(COPY_STEP)), 0);
        match body.stored_from(engine, len).and_then(|span| span.read(bytes)) {
            Ok(read) => {
                bytes.truncate(read);
                *start = len;
                return true;
            }
            Err(NoSpan::Lost(error)) => body.lose(engine, &error),
            Err(NoSpan::NotNow(error)) => engine.not_now(&error),
            Err(NoSpan::End) => {}
        }
        false
    }
}

impl Body {
    /// Takes an announced record, which becomes the body when room is first asked for. `Err`: the body has begun already,
    /// or has another record; the caller must release this one ([`Engine::cancel_adoption`]).
    pub fn adopt(&self, announced: Announced) -> Result<(), Announced> {
        let mut view = self.view();
        if !matches!(view.state(), State::Heap) || !view.pieces.is_empty() {
            return Err(announced);
        }
        let _ = view.enter(State::Announced { record: announced, with_bytes: false });
        Ok(())
    }

    /// Returns how many of `len` bytes at `ptr` the record has already, if `ptr` is the room that [`Body::space`]
    /// returned for the next bytes of an adopted record; else 0: it is room to write to. Only the writer calls this.
    pub fn adopted(&self, ptr: *const u8, len: usize) -> usize {
        let writer = self.writer();
        let Target::Record(space) = &writer.target else { return 0 };
        match space.rest(&self.view()) {
            Some((start, size)) if std::ptr::eq(start.as_ptr(), ptr) => size.min(len),
            _ => 0,
        }
    }

    /// Makes the room of an adopted record a copy of its bytes, because filters of the fetch look at them. Only the
    /// writer calls this, before the first [`Body::space`].
    pub fn adopt_with_bytes(&self) {
        self.view().look_at_record();
    }

    /// Gives up an adoption for which no room was asked for yet: later room is ordinary room. Counted in
    /// `c_adopt_fallback`. Only the writer calls this.
    pub fn give_up_adoption(&self, engine: &Engine) {
        let last = {
            let mut view = self.view();
            if !matches!(view.state(), State::Announced { .. }) {
                return;
            }
            view.enter(State::Heap)
        };
        if let State::Announced { record, .. } = last {
            counters::add(&engine.counters.c_adopt_fallback, 1);
            engine.cancel_adoption(record);
        }
    }
}

/// Returns room of at most `want` bytes in a body that is a record. `None`: the body is no record, or it needs ordinary
/// room.
pub(crate) fn room(
    body: &Body,
    writer: &mut Writer,
    engine: &Engine,
    want: usize,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<(NonNull<u8>, usize)> {
    let announced = match body.view().state() {
        State::Announced { record, with_bytes } => Some((record.0.clone(), *with_bytes)),
        _ => None,
    };
    if let Some((stored, with_bytes)) = announced {
        writer.target = begin(body, engine, stored, with_bytes, limits, nuke);
    }
    let Target::Record(space) = &mut writer.target else { return None };
    if !space.advance(body, engine) {
        writer.target = Target::Heap;
        return None;
    }
    space.rest(&body.view()).map(|(ptr, size)| (ptr, size.min(want)))
}

/// Makes an announced record the body. If that fails, the body is in heap, which is counted.
fn begin(
    body: &Body,
    engine: &Engine,
    stored: StoredBody,
    with_bytes: bool,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Target {
    let space = if with_bytes {
        Some(RecordSpace::Copy { start: 0, bytes: Vec::new() })
    } else {
        PlaceholderRange::get().map(RecordSpace::Placeholder)
    };
    let Some(space) = space.filter(|_| take_over(engine, &stored, limits, nuke)) else {
        engine.close(&stored);
        body.give_up_adoption(engine);
        return Target::Heap;
    };
    counters::add(&engine.counters.c_adopted, 1);
    counters::add(&engine.counters.g_bodies, 1);
    counters::add(&engine.counters.g_body_bytes, stored.file_len);
    engine.maintenance.keep_room(&engine.account);
    let _announced = body.view().enter(State::Adopted(stored));
    Target::Record(Box::new(space))
}

/// Opens the record, and makes room for all of its file under our limit.
fn take_over(engine: &Engine, stored: &StoredBody, limits: ChunkLimits, nuke: &mut dyn FnMut() -> bool) -> bool {
    if stored.file_len > engine.account.limit() {
        return false;
    }
    match engine.open(stored) {
        Ok(_) => {}
        Err(NoSpan::NotNow(error)) => {
            engine.not_now(&error);
            return false;
        }
        Err(NoSpan::Lost(error)) => {
            engine.read_failed(Some(stored), &error);
            return false;
        }
        Err(NoSpan::End) => return false,
    }
    let mut granted = 0;
    while granted < stored.file_len {
        let want = usize::try_from(stored.file_len - granted).unwrap_or(usize::MAX);
        let account = &engine.account;
        let alloc = |size| if granted == 0 { account.alloc(size as u64) } else { account.grow(size as u64) };
        match take(want, limits, alloc, nuke) {
            Some(size) => granted += size as u64,
            None => {
                if granted > 0 {
                    account.dealloc(granted);
                }
                return false;
            }
        }
    }
    true
}
