//! Bodies that are delivered and not cached, because the store cannot take them and `fallback_heap` is used up
//! (`fallback.rs`).
//!
//! Such a body is *in transit* until it is freed. Its object is made unavailable to look-ups, so that no new reader comes,
//! and leaves the cache with its last reader.
//!
//! While a response is streamed, what all readers have passed is given back, and the fetch waits for the slowest of them
//! when the body has [`WINDOW`] bytes more than it had when it began to be in transit: what varnishd does for a pass with
//! `transit_buffer`. Nothing is given back before every holder of a reference to the object is known to be a reader
//! ([`Body::follow`]): a request that has found the object, but not begun to read, needs the body from its first byte.
//!
//! A response that is not streamed (ESI, `beresp.do_stream`) has no readers before it is complete. It is charged to a
//! limit that all such bodies share: as much as `fallback_heap` again. The same holds for a response of which a reader
//! does not begin within `PATIENCE`. Beyond that limit the fetch fails, as it does in a storage that is full.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Condvar;
use smallvec::SmallVec;

use crate::body::Body;
use crate::engine::Engine;
use crate::fallback::Charge;
use crate::grant::{ChunkLimits, take};
use crate::heap::HeapChunk;
use crate::space::heap_room;
use crate::state::{Front, Medium, Piece, State, View};

/// Bytes of a body in heap from which on the fetch waits for its readers.
pub const WINDOW: u64 = 1 << 20;
/// The size of the pieces of room: of four in the window, one is written to, and three are read.
const PIECE: usize = 256 << 10;
/// A holder of a reference that does not begin to read within this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The readers of a body that comes in.
#[derive(Default)]
pub(crate) struct Following {
    /// Each reader's number, and the offset before which it needs no byte any more.
    readers: SmallVec<[(u64, u64); 2]>,
    next: u64,
    /// Since when there are references of which it is not known whether they read.
    unknown_since: Option<Instant>,
    moved: Arc<Condvar>,
}

/// A reader of a body that comes in; it begins at the first byte.
pub struct Follower<'a> {
    body: &'a Body,
    number: u64,
}

impl Follower<'_> {
    /// Notes that the reader needs no byte before `offset` any more.
    pub fn reached(&self, offset: u64) {
        let mut view = self.body.view();
        if let Some(following) = &mut view.following
            && let Some(reader) = following.readers.iter_mut().find(|reader| reader.0 == self.number)
        {
            reader.1 = offset;
            following.moved.notify_one();
        }
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        let mut view = self.body.view();
        if let Some(following) = &mut view.following {
            following.readers.retain(|reader| reader.0 != self.number);
            following.moved.notify_one();
        }
    }
}

/// The readers of a body in transit, as the caller knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// All readers come when the body is complete.
    Later,
    /// The number of references to the object beside the fetch's own. Readers that have begun hold one each.
    Holders(u32),
    /// There were readers, and all have gone.
    Gone,
}

/// The next step of the fetch of a body in transit.
#[derive(Debug)]
pub enum Step {
    /// Write so many bytes to this address.
    Space(NonNull<u8>, usize),
    /// Wait for the readers ([`Body::await_readers`]).
    Wait,
    /// Fail: there is no room, or nothing waits for the body. This is counted.
    Fail,
}

impl Body {
    /// Registers a reader, which begins at the first byte.
    pub fn follow(&self) -> Follower<'_> {
        let mut view = self.view();
        let following = view.following.get_or_insert_default();
        let number = following.next;
        following.next += 1;
        following.readers.push((number, 0));
        following.moved.notify_one();
        Follower { body: self, number }
    }

    /// Puts a body in transit of which the store takes no more. Returns true if it was not before. Only the writer calls
    /// this.
    pub fn begin_transit(&self, engine: &Engine) -> bool {
        {
            let mut view = self.view();
            let front = match view.state() {
                State::Refused => Front::Heap,
                State::Mixed(file) => Front::File(file.clone()),
                State::Adopted(stored) => Front::Record(stored.clone()),
                _ => return false,
            };
            let _ = view.enter(State::Transit(front));
            view.following.get_or_insert_default();
        }
        engine.count_transit();
        true
    }

    /// Returns true if the body is delivered and not cached.
    pub fn is_in_transit(&self) -> bool {
        self.view().state().is_transit()
    }

    /// Returns room for the next bytes of a body in transit. `unit` is as in [`Body::give_back`], `nuke` as in
    /// [`Body::space`]. Only the writer calls this.
    pub fn transit_space(
        &self,
        engine: &Engine,
        readers: Readers,
        unit: u64,
        limits: ChunkLimits,
        nuke: &mut dyn FnMut() -> bool,
    ) -> Step {
        if !self.is_in_transit() {
            engine.count_transit_failure();
            return Step::Fail;
        }
        if let Some((ptr, size)) = heap_room(&self.view()) {
            return Step::Space(ptr, size);
        }
        let in_window = match self.passed(readers) {
            Passed::To(offset) => {
                self.free_before(engine, Some(&mut *self.writer()), offset, unit);
                forget_passed(&mut self.view());
                true
            }
            Passed::Unknown => true,
            Passed::Overdue => false,
            Passed::Abandoned => {
                engine.count_transit_failure();
                return Step::Fail;
            }
        };
        if in_window && self.view().transit_bytes() + PIECE as u64 > WINDOW {
            return Step::Wait;
        }
        match transit_piece(engine, in_window, limits, nuke) {
            Some(chunk) => {
                let mut view = self.view();
                let start = view.len;
                view.pieces.push(Piece { start, len: 0, medium: Medium::Heap(chunk) });
                match heap_room(&view) {
                    Some((ptr, size)) => Step::Space(ptr, size),
                    None => Step::Fail,
                }
            }
            None => {
                engine.count_transit_failure();
                Step::Fail
            }
        }
    }

    /// Returns the offset that all readers have passed.
    fn passed(&self, readers: Readers) -> Passed {
        let mut view = self.view();
        let len = view.len;
        let Some(following) = &mut view.following else { return Passed::Overdue };
        let holders = match readers {
            Readers::Later => return Passed::Overdue,
            Readers::Gone => return Passed::To(len),
            Readers::Holders(holders) => holders as usize,
        };
        if holders > following.readers.len() {
            let since = *following.unknown_since.get_or_insert_with(Instant::now);
            return if since.elapsed() >= PATIENCE { Passed::Overdue } else { Passed::Unknown };
        }
        following.unknown_since = None;
        match following.readers.iter().map(|reader| reader.1).min() {
            Some(offset) => Passed::To(offset),
            None => Passed::Abandoned,
        }
    }

    /// Waits until a reader has moved, begun or ended, but not longer than `patience`. Only the writer calls this.
    pub fn await_readers(&self, patience: Duration) {
        let mut view = self.view();
        let moved = view.following.as_ref().map(|following| following.moved.clone());
        if let Some(moved) = moved {
            moved.wait_for(&mut view, patience);
        }
    }
}

enum Passed {
    /// All readers are known, and need no byte before this.
    To(u64),
    /// A reader may come that needs all bytes.
    Unknown,
    /// Such a reader has been expected for too long, or comes when the body is complete.
    Overdue,
    /// Nothing reads the body, and nothing will.
    Abandoned,
}

impl View {
    fn transit_bytes(&self) -> u64 {
        let size = |piece: &Piece| match &piece.medium {
            Medium::Heap(chunk) if chunk.charge() == Charge::Transit => chunk.size() as u64,
            _ => 0,
        };
        self.pieces.iter().map(size).sum()
    }
}

/// Removes the pieces at the beginning that were given back: a long body would have many.
fn forget_passed(view: &mut View) {
    let passed = |piece: &&Piece| matches!(piece.medium, Medium::Freed) || piece.start + piece.len <= view.given_back;
    let gone = view.pieces.iter().take_while(passed).count();
    if let Some(last) = gone.checked_sub(1).and_then(|last| view.pieces.get(last)) {
        view.given_back = view.given_back.max(last.start + last.len);
        view.pieces.drain(..gone);
    }
}

/// Allocates a piece of heap below the storage's limit, charged to the body's own window, or to what all bodies in
/// transit have together.
fn transit_piece(
    engine: &Engine,
    in_window: bool,
    limits: ChunkLimits,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<HeapChunk> {
    let want = PIECE.min(limits.max).max(1);
    if in_window {
        engine.fallback.take_anyway(Charge::Transit, want as u64);
    } else if !engine.fallback.take(Charge::Transit, want as u64) {
        return None;
    }
    let mut chunk = None;
    let alloc = |size| {
        chunk = HeapChunk::alloc(&engine.account, size);
        chunk.is_some()
    };
    let granted = take(want, limits, alloc, nuke).unwrap_or(0);
    engine.fallback.give_back(Charge::Transit, (want - granted) as u64);
    let chunk = chunk?.charged(Charge::Transit);
    engine.count_piece(&chunk);
    Some(chunk)
}
