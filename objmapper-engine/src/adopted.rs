//! Adoption: a published record becomes the body of an object, without a copy.
//!
//! The states are announced (pinned by [`Engine::adopt`] and taken by [`Body::adopt`]), room (from the first
//! [`Body::space`] on, which makes the record the body; its bytes count as body as they are [extended](Body::extend)),
//! and settled. If the record cannot be adopted at the first [`Body::space`], the fetch gets ordinary room instead, and
//! copies.

use std::ptr::NonNull;

use crate::adopt::{Adoption, Announced};
use crate::backing::Stored;
use crate::body::{Body, Inner};
use crate::counters;
use crate::engine::Engine;
use crate::grant::{ChunkLimits, take};
use crate::maps::Nowhere;
use crate::span::NoSpan;

/// Bytes of a record that are read at a time for filters that look at them.
const COPY_STEP: usize = 256 << 10;

/// The room that [`Body::space`] returns for bytes that an adopted record has already.
pub(crate) enum Room {
    /// Addresses without memory: no filter of the fetch looks at the bytes.
    Placeholder(&'static Nowhere),
    /// A copy of the record's bytes from `start` on, for filters that look at them (testgunzip, ESI's parser).
    Copy { start: u64, bytes: Vec<u8> },
}

impl Room {
    /// Returns the address that stands for the byte at `offset`, and the number of bytes from there on.
    fn at(&self, offset: u64) -> Option<(NonNull<u8>, usize)> {
        let (ptr, len) = match self {
            Room::Placeholder(nowhere) => (nowhere.start().cast::<u8>(), nowhere.len()),
            Room::Copy { start, bytes } => {
                let skip = usize::try_from(offset.checked_sub(*start)?).ok()?;
                let rest = bytes.get(skip..).filter(|rest| !rest.is_empty())?;
                (rest.as_ptr(), rest.len())
            }
        };
        Some((NonNull::new(ptr.cast_mut())?, len))
    }
}

impl Body {
    /// Takes an announced record, which becomes the body when room is first asked for. The body must be empty, and no
    /// reader may know it yet.
    pub fn adopt(&self, announced: Announced) {
        self.lock().adoption = Some(Adoption::Announced(announced));
    }

    /// Returns how many of `len` bytes at `ptr` the record has already, if `ptr` is the room that [`Body::space`]
    /// returned for the next bytes of an adopted record; else 0: it is room to write to.
    pub fn adopted(&self, ptr: *const u8, len: usize) -> usize {
        let inner = self.lock();
        match &inner.adoption {
            Some(Adoption::Room(room)) => match rest(&inner, room) {
                Some((room, size)) if std::ptr::eq(room.as_ptr(), ptr) => size.min(len),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Makes the room of an adopted record a copy of its bytes, because filters of the fetch look at them. Only the
    /// writer calls this, before the first [`Body::space`].
    pub fn adopt_with_bytes(&self) {
        let mut inner = self.lock();
        if inner.adoption.is_some() {
            inner.adopts_with_bytes = true;
        }
    }

    /// Gives up an adoption for which no room was asked for yet: later room is ordinary room. Counted in
    /// `c_adopt_fallback`. Only the writer calls this.
    pub fn give_up_adoption(&self, engine: &Engine) {
        let announced = self.lock().adoption.take_if(|adoption| matches!(adoption, Adoption::Announced(_)));
        if let Some(Adoption::Announced(announced)) = announced {
            counters::add(&engine.counters.c_adopt_fallback, 1);
            engine.cancel_adoption(announced);
        }
    }
}

/// Returns the part of the room that stands for bytes of the record that are not body yet.
fn rest(inner: &Inner, room: &Room) -> Option<(NonNull<u8>, usize)> {
    let left = inner.stored.as_ref()?.body_len.checked_sub(inner.len).filter(|left| *left > 0)?;
    let (ptr, len) = room.at(inner.len)?;
    Some((ptr, len.min(usize::try_from(left).unwrap_or(usize::MAX))))
}

/// Returns room of at most `want` bytes in a body that is a record. `None`: the body is no record, or it needs ordinary
/// room.
pub(crate) fn room(
    body: &Body,
    engine: &Engine,
    want: usize,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<(NonNull<u8>, usize)> {
    let mut inner = body.lock();
    let with_bytes = inner.adopts_with_bytes;
    let room = match inner.adoption.take()? {
        Adoption::Room(room) => {
            drop(inner);
            room
        }
        Adoption::Announced(announced) => {
            drop(inner);
            let room = if with_bytes {
                Some(Room::Copy { start: 0, bytes: Vec::new() })
            } else {
                Nowhere::get().map(Room::Placeholder)
            };
            let Some(room) = room.filter(|_| take_over(engine, &announced.0, limits, nuke)) else {
                engine.close(&announced.0);
                counters::add(&engine.counters.c_adopt_fallback, 1);
                engine.cancel_adoption(announced);
                return None;
            };
            let Announced(stored) = announced;
            counters::add(&engine.counters.c_adopted, 1);
            counters::add(&engine.counters.g_bodies, 1);
            counters::add(&engine.counters.g_body_bytes, stored.file_len);
            engine.maintenance.keep_room(&engine.account);
            let mut inner = body.lock();
            inner.stored = Some(stored);
            // If the fetch brings more bytes than the record has, they go to heap behind it.
            inner.heap_only = true;
            room
        }
    };
    let room = match room {
        Room::Copy { start, bytes } => copy(body, engine, start, bytes)?,
        Room::Placeholder(_) => room,
    };
    let mut inner = body.lock();
    let found = rest(&inner, &room);
    inner.adoption = Some(Adoption::Room(room));
    found.map(|(ptr, size)| (ptr, size.min(want)))
}

/// Returns a copy of the record's bytes from the body's end on; the present copy, if it has any. `None`: they cannot be
/// read.
fn copy(body: &Body, engine: &Engine, start: u64, mut bytes: Vec<u8>) -> Option<Room> {
    let (len, left) = {
        let inner = body.lock();
        (inner.len, inner.stored.as_ref()?.body_len.saturating_sub(inner.len))
    };
    if left == 0 || start + bytes.len() as u64 > len {
        return Some(Room::Copy { start, bytes });
    }
    bytes.resize(COPY_STEP.min(usize::try_from(left).unwrap_or(COPY_STEP)), 0);
    let read = body.stored_from(engine, len).and_then(|span| span.read(&mut bytes));
    match read {
        Ok(read) => bytes.truncate(read),
        Err(NoSpan::Lost(error)) => {
            body.lose(engine, &error);
            return None;
        }
        Err(NoSpan::NotNow(error)) => {
            engine.not_now(&error);
            return None;
        }
        Err(NoSpan::End) => return None,
    }
    Some(Room::Copy { start: len, bytes })
}

/// Opens the record, and makes room for all of its file under our limit.
fn take_over(engine: &Engine, stored: &Stored, limits: ChunkLimits, nuke: &mut dyn FnMut() -> bool) -> bool {
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
