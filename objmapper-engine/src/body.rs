//! A body: where its bytes are, during the fetch and afterwards.
//!
//! ```text
//!   heap pieces ──(passes the threshold)──► a draft: its file, then a buffer ──(complete)──► stored
//!        │                                     │                                              ▲
//!        │ objmapper refuses                   │ objmapper fails half-way: the rest is        │
//!        │                                     │ in fallback heap ("mixed")                   │
//!        ▼                                     ▼                                              │
//!   fallback heap ◄──(not published)── file, then heap ───────(complete)───► stored, then heap
//!        │                                     │
//!        └────────────┬────────────────────────┘ fallback heap is used up
//!                     ▼
//!                in transit: leaves the cache, freed as it is read
//! ```
//!
//! What a body can hold, by its state:
//!
//! | state | pieces | descriptors | stays in the cache |
//! |---|---|---|---|
//! | comes in | heap; file and buffer; both, in this order | a draft's two | |
//! | settled in heap | heap, charged to `fallback_heap` if objmapper refused it (`fallback.rs`) | none | yes |
//! | stored, stored then heap | none; heap | none: those in the engine's cache, under `fds` | yes |
//! | orphan: not published, and not copied for want of heap | file, heap | one, for readers | no |
//! | in transit ([`crate::transit`]) | heap; file, then heap | of a draft: two, until it is freed | no |
//! | not kept (a pass, a failed fetch) | as it came in | as it came in | no |
//!
//! A record of another cache that is [adopted](crate::adopt) is stored from the beginning.
//!
//! One thread writes (the fetch), any number read. Bytes in heap that a reader was given by address stay there until
//! the writer is done *and* no reader follows it any more ([`Body::settle`]). A buffer stays while a [`Span`] holds it.
//! Bytes in a file have no address: they are read, or sent, from the file.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::adopt::Adoption;
use crate::backing::Stored;
use crate::counters;
use crate::draft::Writing;
use crate::engine::Engine;
use crate::heap::HeapChunk;
use crate::span::{FileSpan, Hold, MappedSpan, NoSpan, Part, Span};
use crate::transit::Following;
use crate::write_buffer::WriteBuffer;

/// Where a piece of a body is.
pub(crate) enum Place {
    /// In heap, at a stable address.
    Heap(HeapChunk),
    /// In a draft's file, at the same offset as in the body.
    File,
    /// In a buffer, to be written to the draft's file. If the write fails the bytes stay here until the fetch ends.
    Buffer(Arc<WriteBuffer>),
    /// Freed during a final iteration, or by the fetch of a body in transit.
    Gone,
}

/// Consecutive bytes of a body.
pub(crate) struct Piece {
    /// Offset in the body.
    pub(crate) start: u64,
    /// The piece's bytes that are body.
    pub(crate) len: u64,
    /// Where the bytes are.
    pub(crate) place: Place,
}

/// The state that the lock protects. The lock is held for a few instructions, or while the kernel frees pages; never
/// during a request to the store, and never during a call into varnishd.
#[derive(Default)]
pub(crate) struct Inner {
    /// The pieces in order, without gaps. Only the last one grows.
    pub(crate) pieces: SmallVec<[Piece; 1]>,
    /// The length in bytes.
    pub(crate) len: u64,
    /// The draft, if there is one. The writer takes it out while it works on it.
    pub(crate) writing: Option<Box<Writing>>,
    /// The draft's file for its readers: a read-only descriptor. Also of a draft that could not be published.
    pub(crate) reading: Option<Arc<File>>,
    /// Bytes that the account counts for a draft that was taken out to be published, or could not be published.
    pub(crate) orphan: Option<u64>,
    /// The published body; more that came behind an adopted one is in `pieces`.
    pub(crate) stored: Option<Stored>,
    /// The record that is to become the body, or is the body.
    pub(crate) adoption: Option<Adoption>,
    /// Set if filters of the fetch look at the bytes of the record.
    pub(crate) adopts_with_bytes: bool,
    /// Heap that was replaced, and that readers which follow the fetch may still use.
    pub(crate) retired: Vec<HeapChunk>,
    /// Set when the store refused the body, or more of it: the rest goes to heap.
    pub(crate) heap_only: bool,
    /// Set when the body's loss has been counted.
    pub(crate) loss_counted: bool,
    /// Set while the writer copies the heap pieces to a draft's file: none of them may be freed.
    pub(crate) moving: bool,
    /// The offset before which a final iteration, or the fetch of a body in transit, has freed the bytes.
    pub(crate) given_back: u64,
    /// The readers of a body that comes in; absent before the first of them.
    pub(crate) following: Option<Box<Following>>,
}

/// A body: see the table of states above.
#[derive(Default)]
pub struct Body {
    inner: Mutex<Inner>,
}

/// Where bytes of a body are.
enum At {
    /// In memory.
    Address(Span),
    /// In the file of the published body `key`, up to `end`; `total` is the body's length now.
    Stored { key: u64, end: u64, total: u64 },
    /// In a draft's file, up to `end`; `total` is the body's length now.
    Draft { file: Arc<File>, end: u64, total: u64 },
}

impl Body {
    pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Returns the number of bytes that are body.
    pub fn len(&self) -> u64 {
        self.inner.lock().len
    }

    /// Returns true if the body has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the first `n` bytes of the room that [`Body::space`] returned last body. The writer has written them.
    pub fn extend(&self, n: u64) {
        let mut inner = self.inner.lock();
        let Inner { pieces, stored, len, .. } = &mut *inner;
        match (pieces.last_mut(), stored) {
            (Some(piece), _) => piece.len += n,
            // An adopted record, whose bytes are there already.
            (None, Some(_)) => {}
            (None, None) => return,
        }
        *len += n;
    }

    /// Returns the bytes from `offset` on, as many as are in one place: in memory or in a file.
    pub fn part(&self, engine: &Engine, offset: u64) -> Result<Part, NoSpan> {
        let (file, end, total) = match self.find(offset)? {
            At::Address(span) => return Ok(Part::There(span)),
            At::Stored { key, end, total } => {
                (engine.opened(key).map_or_else(|| engine.open(&self.stored()?), Ok)?, end, total)
            }
            At::Draft { file, end, total } => (file, end, total),
        };
        Ok(Part::InFile(FileSpan { file, offset, len: end - offset, total }))
    }

    /// As [`Body::part`], for a consumer that passes addresses to the kernel and never reads there: a published body is
    /// mapped, if mmap(2) succeeds.
    pub fn part_for_kernel(&self, engine: &Engine, offset: u64) -> Result<Part, NoSpan> {
        if let At::Stored { key, end, total } = self.find(offset)? {
            let map = match engine.mapped(key) {
                Some(map) => Some(map),
                None => engine.map(&self.stored()?)?,
            };
            if let Some(map) = map {
                return Ok(Part::Mapped(MappedSpan { map, offset, len: end - offset, total }));
            }
        }
        self.part(engine, offset)
    }

    /// Returns the bytes of the published body from `offset` on, including those that [`Body::extend`] has not made
    /// body yet.
    pub(crate) fn stored_from(&self, engine: &Engine, offset: u64) -> Result<FileSpan, NoSpan> {
        let stored = self.stored()?;
        let len = stored.body_len.checked_sub(offset).filter(|len| *len > 0).ok_or(NoSpan::End)?;
        Ok(FileSpan { file: engine.open(&stored)?, offset, len, total: stored.body_len })
    }

    /// Returns true if all of the body is in heap. A body that still comes in may leave it.
    pub fn is_in_heap(&self) -> bool {
        let inner = self.inner.lock();
        inner.stored.is_none() && inner.reading.is_none()
    }

    /// Returns the published body. A clone changes the reference count of the tier's directory, a cache line that all
    /// workers share, so that a reader calls this only if the caches do not have the body.
    fn stored(&self) -> Result<Stored, NoSpan> {
        self.inner.lock().stored.clone().ok_or(NoSpan::End)
    }

    /// Returns where the bytes from `offset` on are.
    fn find(&self, offset: u64) -> Result<At, NoSpan> {
        let inner = self.inner.lock();
        if offset >= inner.len || offset < inner.given_back {
            return Err(NoSpan::End);
        }
        let total = inner.len;
        if let Some(stored) = inner.stored.as_ref().filter(|stored| offset < stored.body_len) {
            return Ok(At::Stored { key: stored.key, end: total.min(stored.body_len), total });
        }
        let index = inner.pieces.partition_point(|piece| piece.start <= offset).saturating_sub(1);
        let piece = inner.pieces.get(index).ok_or(NoSpan::End)?;
        let skip = offset.checked_sub(piece.start).ok_or(NoSpan::End)?;
        let len = piece.len.checked_sub(skip).filter(|len| *len > 0).ok_or(NoSpan::End)? as usize;
        let (ptr, hold) = match &piece.place {
            Place::Heap(chunk) => (chunk.ptr().as_ptr().wrapping_add(skip as usize), Hold::Object),
            Place::Buffer(buffer) => {
                let ptr = buffer.at(skip as usize).ok_or(NoSpan::End)?;
                (ptr.as_ptr(), Hold::Buffer(buffer.clone()))
            }
            Place::File => {
                let file = inner.reading.clone().ok_or(NoSpan::End)?;
                return Ok(At::Draft { file, end: piece.start + piece.len, total });
            }
            Place::Gone => return Err(NoSpan::End),
        };
        let ptr = NonNull::new(ptr).ok_or(NoSpan::End)?;
        Ok(At::Address(Span { ptr, len, total, hold }))
    }

    /// Frees the bytes before `offset`, which a final iteration has read; of a file's pages multiples of `unit` bytes
    /// (at least a page). The caller guarantees that there is no other reader.
    pub fn give_back(&self, engine: &Engine, offset: u64, unit: u64) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        // The next call begins where the last one ended.
        if inner.moving {
            return;
        }
        let mut freed: SmallVec<[Place; 4]> = SmallVec::new();
        let last = inner.pieces.len().saturating_sub(1);
        let open_ended = inner.writing.is_some() || inner.stored.is_none();
        for (index, piece) in inner.pieces.iter_mut().enumerate() {
            // The last piece may still grow.
            if piece.start + piece.len > offset || (index == last && open_ended) {
                break;
            }
            if matches!(piece.place, Place::Heap(_) | Place::Buffer(_)) {
                freed.push(std::mem::replace(&mut piece.place, Place::Gone));
            }
        }
        for place in freed {
            if let Place::Heap(chunk) = place {
                engine.free_piece(chunk);
            }
        }
        // Skipped while the writer has taken the draft out: the next call begins where the last one ended.
        if let Some(writing) = &mut inner.writing {
            let from = inner.given_back;
            let to = offset.min(writing.accounted());
            if to > from {
                engine.account.shrink(to - from);
                counters::sub(&engine.counters.g_body_bytes, to - from);
                writing.give_back(engine, to, unit);
                inner.given_back = to;
            }
        }
    }

    /// Counts and logs the loss of a body that a reader could not read because of `error`. A body is counted once. The
    /// caller removes its object from the cache.
    pub fn lose(&self, engine: &Engine, error: &io::Error) {
        let (stored, counted) = {
            let mut inner = self.inner.lock();
            (inner.stored.clone(), std::mem::replace(&mut inner.loss_counted, true))
        };
        engine.read_failed(stored.as_ref(), error);
        if !counted {
            engine.count_loss(stored.as_ref());
        }
    }

    /// Releases all storage. The caller guarantees that there are no readers.
    pub fn slim(&self, engine: &Engine) {
        let taken = std::mem::take(&mut *self.inner.lock());
        for chunk in taken.retired {
            engine.free_piece(chunk);
        }
        for piece in taken.pieces {
            if let Place::Heap(chunk) = piece.place {
                engine.free_piece(chunk);
            }
        }
        if let Some(Adoption::Announced(announced)) = taken.adoption {
            engine.cancel_adoption(announced);
        }
        if let Some(writing) = taken.writing {
            writing.discard(engine);
        }
        if let Some(outstanding) = taken.orphan {
            engine.end_draft_accounting(outstanding);
        }
        if let Some(stored) = taken.stored {
            engine.forget(&stored);
        }
    }

    /// Returns where the body is, for varnishd's panic message.
    pub fn describe(&self) -> Description {
        // A panicking thread may hold the lock itself.
        let Some(inner) = self.inner.try_lock() else { return Description { len: None, ..Description::default() } };
        let mut description = Description { len: Some(inner.len), ..Description::default() };
        for piece in &inner.pieces {
            match &piece.place {
                Place::Heap(_) => description.heap_pieces += 1,
                Place::File | Place::Buffer(_) => description.in_draft = true,
                Place::Gone => {}
            }
        }
        description.object = inner.stored.as_ref().map(Stored::object);
        description
    }
}

/// See [`Body::describe`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Description {
    /// The length in bytes; `None` while another thread holds the body's lock.
    pub len: Option<u64>,
    /// The number of pieces in heap.
    pub heap_pieces: usize,
    /// True if any part is in a draft.
    pub in_draft: bool,
    /// The published body's number in objmapper.
    pub object: Option<u64>,
}
