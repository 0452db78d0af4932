//! Adoption: a record that somebody has published becomes the body of an object, without a copy.
//!
//! It is pinned when it is announced ([`Engine::adopt`]), taken by the object ([`Body::adopt`]), and becomes its body when
//! room is first asked for ([`Body::space`]): then the room is the record itself, mapped read-only, and its bytes count
//! as they are [extended](Body::extend). If it cannot be had by then, there is ordinary room instead.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::adopt::{Adoption, Announced};
use crate::backing::Stored;
use crate::body::{Body, Inner};
use crate::counters;
use crate::engine::Engine;
use crate::grant::{ChunkLimits, take};
use crate::maps::BodyMap;

impl Body {
    /// Takes a record that was announced: it will be the body. The body must be empty, and nobody may know it yet.
    pub fn adopt(&self, announced: Announced) {
        self.lock().adoption = Some(Adoption::Announced(announced));
    }

    /// If `ptr` is the room that [`Body::space`] gave for the next bytes of an adopted record: how many of `len` bytes
    /// are there already. Else 0: it is room to write to.
    pub fn adopted(&self, ptr: *const u8, len: usize) -> usize {
        let inner = self.lock();
        match &inner.adoption {
            Some(Adoption::Room(map)) => match rest(&inner, map) {
                Some((room, size)) if std::ptr::eq(room.as_ptr(), ptr) => size.min(len),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Gives up an adoption of which no room was asked for yet: from now on there is ordinary room. Only the writer
    /// calls this.
    pub fn give_up_adoption(&self, engine: &Engine) {
        let announced = self.lock().adoption.take_if(|adoption| matches!(adoption, Adoption::Announced(_)));
        if let Some(Adoption::Announced(announced)) = announced {
            counters::add(&engine.counters.c_adopt_fallback, 1);
            engine.forgo(announced);
        }
    }
}

/// What of an adopted record is not body yet.
fn rest(inner: &Inner, map: &BodyMap) -> Option<(NonNull<u8>, usize)> {
    let left = inner.stored.as_ref()?.body_len.checked_sub(inner.len).filter(|left| *left > 0)?;
    Some((NonNull::new(map.at(inner.len))?, usize::try_from(left).unwrap_or(usize::MAX)))
}

/// Room in a body that is a record; at most `want` bytes. `None`: it is none, or ordinary room is needed.
pub(crate) fn room(
    body: &Body,
    engine: &Engine,
    want: usize,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<(NonNull<u8>, usize)> {
    let mut inner = body.lock();
    let announced = match inner.adoption.take()? {
        Adoption::Announced(announced) => announced,
        Adoption::Room(map) => {
            let room = rest(&inner, &map);
            inner.adoption = Some(Adoption::Room(map));
            return room.map(|(ptr, size)| (ptr, size.min(want)));
        }
    };
    drop(inner);
    let Some(map) = take_over(engine, &announced.0, limits, nuke) else {
        engine.close(&announced.0);
        counters::add(&engine.counters.c_adopt_fallback, 1);
        engine.forgo(announced);
        return None;
    };
    let Announced(stored) = announced;
    counters::add(&engine.counters.c_adopted, 1);
    counters::add(&engine.counters.g_bodies, 1);
    counters::add(&engine.counters.g_body_bytes, stored.file_len);
    engine.house.keep_room(&engine.account);
    let mut inner = body.lock();
    inner.stored = Some(stored);
    // Should more come than the record has, it is put behind it.
    inner.heap_only = true;
    let room = rest(&inner, &map);
    inner.adoption = Some(Adoption::Room(map));
    room.map(|(ptr, size)| (ptr, size.min(want)))
}

/// Maps the record, and makes room for all of its file under our limit.
fn take_over(
    engine: &Engine,
    stored: &Stored,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<Arc<BodyMap>> {
    if stored.file_len > engine.account.limit() {
        return None;
    }
    let map = engine.map(stored).ok()?;
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
                return None;
            }
        }
    }
    Some(map)
}
