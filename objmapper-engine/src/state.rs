//! The states of a body, and what its readers see of it.
//!
//! ```text
//!         ┌──(the record cannot be taken)──┐
//!         │                                ▼
//!     Announced ◄─────────(adopt)──────── Heap ────────(the store refuses)───────► Refused ──┐
//!         │                                │                                        ▲  ▲     │
//!         │                      (passes the threshold)                             │  │     │
//!         │                                ▼                                        │  │     │
//!  (room is asked for)                  Moving ────────(the store refuses)──────────┘  │     │
//!         │                                │                                           │     │
//!         │                   (its heap is in the file)                                │     │
//!         │                                ▼                                           │     │
//!         │             (another  ┌───── Draft ──(refused; the file is empty)──────────┘     │
//!         │                 tier) └───────►│                                                 │
//!         │                                ├──(refused, or a write fails)──► Mixed ──────────┤
//!         ▼                                │                                   │             │
//!      Adopted ──────────────────────────────────────────────────────────────────────────────┤
//!         │                                │                                   │             │
//!         │                                │                                   │   (fallback_heap is used up)
//!         │                                │                                   │             ▼
//!         │                                │                                   │          Transit
//! ┄┄┄┄┄┄┄┄│┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄│┄┄┄┄┄┄┄┄┄┄ the fetch ends ┄┄┄┄┄┄┄┄┄┄│┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄
//!         ▼                                ▼                                   │
//!      Stored ◄──────────(published)───────┼───────────────────────────────────┤
//!     Settled ◄────(copied to heap)────────┼───────────────────────────────────┤
//!      Orphan ◄──────────(neither)─────────┴───────────────────────────────────┘
//!     Settled ◄── Announced, Heap, Refused
//! ```
//!
//! Above the dotted line the body comes in, below it the fetch has ended. `Draft` becomes `Stored` before that line too,
//! as a record ([`Body::publish`]). A body that is not kept (a pass, a failed fetch) stays `Draft` or `Mixed`; one that is
//! in heap is `Settled`. [`Body::slim`] ends each state: the body is empty, and in the state `Heap`.
//!
//! | state | its bytes | the writer has | descriptors of its own | stays in the cache |
//! |---|---|---|---|---|
//! | `Announced` | none | | none | |
//! | `Heap` | heap | | none | |
//! | `Moving` | heap, of which none is freed | a draft that it begins | none | |
//! | `Refused` | heap, charged to `fallback_heap` from here on (`fallback.rs`) | | none | |
//! | `Draft` | file, then a buffer | a draft | two: one to write, one for readers | |
//! | `Mixed` | file, then a buffer that could not be written, then heap | a draft that has ended | two | |
//! | `Adopted` | the record's file; what came behind it in heap | a range or a copy for the filters | none | |
//! | `Transit` ([`crate::transit`]) | as it was: heap; file, then heap; record, then heap | as it was | as it was | no |
//! | `Settled` | heap | | none | yes |
//! | `Stored` | the published file; what came behind it in heap | | none: those in the engine's cache, under `fds` | yes |
//! | `Orphan` | file, heap | | one, for readers | no |
//!
//! Which calls are legal, and what they do if they are not:
//!
//! | call | by | legal in | else |
//! |---|---|---|---|
//! | [`Body::adopt`] | the creator | `Heap`, empty | returns the record |
//! | [`Body::adopt_with_bytes`], [`Body::give_up_adoption`] | the writer | `Announced` | nothing |
//! | [`Body::space`] | the writer | before `settle`; not `Transit` | [`NoRoom`](crate::space::NoRoom) |
//! | [`Body::begin_transit`] | the writer | `Refused`, `Mixed`, `Adopted` | returns false |
//! | [`Body::transit_space`] | the writer | `Transit` | [`Step::Fail`](crate::transit::Step::Fail) |
//! | [`Body::extend`], [`Body::trim`] | the writer | before `settle` | nothing |
//! | [`Body::publish`] | the writer | `Draft`, complete | [`Published::Elsewhere`](objmapper_client::Published::Elsewhere) |
//! | [`Body::settle`] | the writer | each, once | what the first call said |
//! | [`Body::part`], [`Body::part_for_kernel`] | readers | each | |
//! | [`Body::give_back`] | the only reader | each; of a file while the writer does nothing | later |
//!
//! A body that an earlier process has kept begins as `Settled` or `Stored` (`persist/body.rs`).
//!
//! A transition that is not drawn is a defect of this crate; [`View::enter`] asserts that in debug builds.

use std::fs::File;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::adopt::Announced;
use crate::backing::StoredBody;
#[cfg(doc)]
use crate::body::Body;
use crate::heap::HeapChunk;
use crate::transit::Following;
use crate::write_buffer::WriteBuffer;

/// Where a piece of a body is.
pub(crate) enum Medium {
    /// In heap, at a stable address.
    Heap(HeapChunk),
    /// In a draft's file, at the same offset as in the body.
    File,
    /// In a buffer, to be written to the draft's file. If the write fails the bytes stay here until the fetch ends.
    Buffer(Arc<WriteBuffer>),
    /// Freed during a final iteration, or by the fetch of a body in transit.
    Freed,
}

/// Consecutive bytes of a body.
pub(crate) struct Piece {
    /// Offset in the body.
    pub(crate) start: u64,
    /// The piece's bytes that are body.
    pub(crate) len: u64,
    /// Where the bytes are.
    pub(crate) medium: Medium,
}

/// The first bytes of a body in transit, which is in heap from there on.
pub(crate) enum Front {
    /// None: all of it is in heap.
    Heap,
    /// In a draft's file.
    File(Arc<File>),
    /// In the file of a record.
    Record(StoredBody),
}

/// The state of a body: see above. A file is a draft's, open for readers.
#[derive(Default)]
pub(crate) enum State {
    /// A record is pinned that becomes the body when room is first asked for.
    Announced {
        /// The record.
        record: Announced,
        /// True if filters of the fetch look at the record's bytes.
        with_bytes: bool,
    },
    /// All of the body is in heap; it may leave it.
    #[default]
    Heap,
    /// The writer copies the heap to a draft's file.
    Moving,
    /// The store refused the body: all of it stays in heap.
    Refused,
    /// The body comes in to a draft.
    Draft(Arc<File>),
    /// The store refused the rest of the body: that is in heap.
    Mixed(Arc<File>),
    /// A record is the body, as far as the writer has come.
    Adopted(StoredBody),
    /// The body is delivered and not cached.
    Transit(Front),
    /// The fetch has ended, and all of the body is in heap.
    Settled,
    /// The body is published.
    Stored(StoredBody),
    /// The draft could be neither published nor copied. The account counts `outstanding` bytes for it.
    Orphan {
        /// What readers that have begun go on with.
        file: Arc<File>,
        /// Bytes.
        outstanding: u64,
    },
}

impl State {
    /// Returns the published file that the body begins in.
    #[inline]
    pub(crate) fn stored(&self) -> Option<&StoredBody> {
        match self {
            State::Stored(stored) | State::Adopted(stored) | State::Transit(Front::Record(stored)) => Some(stored),
            _ => None,
        }
    }

    /// Returns the draft's file that the body begins in.
    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        match self {
            State::Draft(file)
            | State::Mixed(file)
            | State::Orphan { file, .. }
            | State::Transit(Front::File(file)) => Some(file),
            _ => None,
        }
    }

    /// Returns true if the body is delivered and not cached.
    pub(crate) fn is_transit(&self) -> bool {
        matches!(self, State::Transit(_))
    }

    /// Returns true if the fetch may bring further bytes, so that the last piece stays. It may have ended, if the body is
    /// not kept and a draft.
    pub(crate) fn is_incoming(&self) -> bool {
        !matches!(self, State::Settled | State::Stored(_) | State::Orphan { .. })
    }

    /// Returns true if the transition is drawn above.
    fn may_become(&self, next: &State) -> bool {
        use State::*;
        match self {
            Announced { .. } => matches!(next, Adopted(_) | Heap | Settled),
            Heap => matches!(next, Announced { .. } | Moving | Refused | Settled),
            Moving => matches!(next, Draft(_) | Refused),
            Refused => matches!(next, Transit(Front::Heap) | Settled),
            Draft(_) => matches!(next, Draft(_) | Mixed(_) | Refused | Stored(_) | Settled | Orphan { .. }),
            Mixed(_) => matches!(next, Transit(Front::File(_)) | Stored(_) | Settled | Orphan { .. }),
            Adopted(_) => matches!(next, Transit(Front::Record(_)) | Stored(_)),
            Transit(_) | Settled | Stored(_) | Orphan { .. } => false,
        }
    }
}

/// What readers see of a body. Its lock is held for a few instructions, or while the kernel frees pages; never during a
/// request to the store, and never during a call into varnishd.
#[derive(Default)]
pub(crate) struct View {
    /// The state; changed by the writer, through [`View::enter`].
    state: State,
    /// The pieces in order, without gaps; none for what is in a published file. Only the last one grows.
    pub(crate) pieces: SmallVec<[Piece; 1]>,
    /// The length in bytes.
    pub(crate) len: u64,
    /// The offset before which a final iteration, or the fetch of a body in transit, has freed the bytes.
    pub(crate) given_back: u64,
    /// Set when the body's loss has been counted.
    pub(crate) loss_counted: bool,
    /// The readers of a body that comes in; absent before the first of them.
    pub(crate) following: Option<Box<Following>>,
}

impl View {
    /// Makes the view of a settled body that an earlier process has kept.
    pub(crate) fn restored(state: State, pieces: SmallVec<[Piece; 1]>, len: u64) -> View {
        View { state, pieces, len, ..View::default() }
    }

    /// Returns the state.
    #[inline]
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Returns the piece that the byte at `offset` is in, or the last one before it. Mostly there is one piece, and mostly
    /// the last one is asked for.
    #[inline]
    pub(crate) fn piece_at(&self, offset: u64) -> Option<&Piece> {
        match self.pieces.last() {
            Some(last) if last.start <= offset => Some(last),
            _ => self.search_piece(offset),
        }
    }

    #[inline(never)]
    fn search_piece(&self, offset: u64) -> Option<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.start <= offset).saturating_sub(1);
        self.pieces.get(index)
    }

    /// Enters a state. Returns the last one: what it held is best dropped without the lock.
    #[must_use = "its file is best closed without the lock"]
    pub(crate) fn enter(&mut self, next: State) -> State {
        debug_assert!(self.state.may_become(&next), "a body's transition that is not drawn");
        std::mem::replace(&mut self.state, next)
    }

    /// Notes that filters of the fetch look at the bytes of the announced record.
    pub(crate) fn look_at_record(&mut self) {
        if let State::Announced { with_bytes, .. } = &mut self.state {
            *with_bytes = true;
        }
    }

    /// Notes that the fetch of a body in heap has ended.
    pub(crate) fn end_in_heap(&mut self) {
        if matches!(self.state, State::Heap | State::Refused) {
            let _ = self.enter(State::Settled);
        }
    }

    /// Releases all: the body is empty.
    pub(crate) fn take(&mut self) -> (State, SmallVec<[Piece; 1]>) {
        let View { state, pieces, .. } = std::mem::take(self);
        (state, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Account, SmaCounters};
    use crate::backing::Backing;
    use crate::body::Body;
    use crate::counters::Counters;
    use crate::engine::Engine;
    use crate::grant::ChunkLimits;
    use crate::options::Options;

    /// An engine whose store is down.
    fn engine() -> Engine {
        let sma: &'static SmaCounters = Box::leak(Box::default());
        let counters: &'static Counters = Box::leak(Box::default());
        let options = Options::default();
        let account = Account::new(options.size, sma);
        let backing = Backing::Absent("not there".to_owned());
        Engine::new("s0", options, account, counters, backing, Arc::default(), "/varnish/s0/1".to_owned())
    }

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").unwrap())
    }

    fn write(engine: &Engine, body: &Body, len: usize) {
        let limits = ChunkLimits { chunk: 4096, max: 4096 };
        let mut done = 0;
        while done < len {
            let (ptr, size) = body.space(engine, 4096, false, limits, &mut || false).unwrap();
            // SAFETY: `size` bytes at `ptr` are ours to write until `extend`.
            unsafe { ptr.as_ptr().write_bytes(7, size) };
            body.extend(size as u64);
            done += size;
        }
    }

    #[test]
    fn a_move_frees_nothing_and_hides_nothing() {
        let engine = engine();
        let body = Body::default();
        write(&engine, &body, 8 * 4096);
        let used = engine.account.used();
        let _ = body.view().enter(State::Moving);
        body.give_back(&engine, 5 * 4096, 1);
        assert_eq!(engine.account.used(), used);
        assert!(body.part(&engine, 0).is_ok_and(|part| part.is_stable()) && body.is_in_heap());
        // The move failed.
        let _ = body.view().enter(State::Refused);
        body.give_back(&engine, 5 * 4096, 1);
        assert_eq!(engine.account.used(), used - 5 * 4096);
        assert!(body.part(&engine, 0).is_err() && body.part(&engine, 5 * 4096).is_ok());
        body.slim(&engine);
        assert_eq!(engine.account.used(), 0);
    }

    #[test]
    fn no_state_follows_the_end_and_none_skips_a_step() {
        let ends = || [State::Transit(Front::Heap), State::Settled, State::Orphan { file: file(), outstanding: 0 }];
        let all = || {
            let mut all = Vec::from(ends());
            all.extend([State::Heap, State::Moving, State::Refused, State::Draft(file()), State::Mixed(file())]);
            all
        };
        for end in ends() {
            assert!(all().iter().all(|next| !end.may_become(next)));
        }
        let next = |state: State| all().iter().map(|next| u32::from(state.may_become(next))).sum::<u32>();
        // Moving, refused, settled.
        assert_eq!(next(State::Heap), 3);
        // Draft, refused.
        assert_eq!(next(State::Moving), 2);
        // In transit, settled.
        assert_eq!(next(State::Refused), 2);
        // Another file, mixed, refused, settled, orphan.
        assert_eq!(next(State::Draft(file())), 5);
        // Settled, orphan; in transit with its file.
        assert_eq!(next(State::Mixed(file())), 2);
        assert!(State::Mixed(file()).may_become(&State::Transit(Front::File(file()))));
        assert!(!State::Draft(file()).may_become(&State::Transit(Front::File(file()))));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "not drawn")]
    fn a_transition_that_is_not_drawn_is_found_in_debug_builds() {
        let _ = View::default().enter(State::Mixed(file()));
    }

    #[test]
    fn a_body_is_no_larger_than_before() {
        assert!(size_of::<Body>() <= MAX_BODY, "{} bytes for each object", size_of::<Body>());
    }

    /// Bytes of each object in varnishd's memory that are not in the storage's limit.
    const MAX_BODY: usize = 216;
}
