//! A body: where its bytes are, while they come in and afterwards.
//!
//! ```text
//!   heap pieces ──(passes the threshold)──► windows of a draft ──(complete)──► stored
//!        │                                        │
//!        └─ stays there: small, or refused ◄──────┘ objmapper fails half-way: the rest is in heap ("mixed")
//! ```
//!
//! One thread writes (the fetch), any number read. What was handed out by address stays at that address until the
//! writer is done *and* no reader follows it any more ([`Body::settle`]); from then on a stored body has no address
//! at all until somebody asks for a [`Span`], which holds the mapping that it points into.

use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapRaw;
use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

use crate::backing::Stored;
use crate::counters;
use crate::draft::Writing;
use crate::engine::Engine;
use crate::heap::HeapChunk;

/// Where consecutive bytes of a body are.
pub(crate) enum Place {
    /// In heap.
    Heap(HeapChunk),
    /// In a draft's file, seen through a mapping; the piece begins `offset` bytes into it.
    Window {
        /// Shared with the spans that readers hold.
        map: Arc<MmapRaw>,
        /// Where in the mapping the piece begins.
        offset: usize,
    },
    /// Given back during a final iteration.
    Gone,
}

/// Consecutive bytes of a body.
pub(crate) struct Piece {
    /// Offset in the body.
    pub(crate) start: u64,
    /// Bytes of it that are body.
    pub(crate) len: u64,
    /// Where they are.
    pub(crate) place: Place,
}

impl Piece {
    /// The address of the piece's first byte.
    fn base(&self) -> Option<*mut u8> {
        match &self.place {
            Place::Heap(chunk) => Some(chunk.ptr().as_ptr()),
            Place::Window { map, offset } => Some(map.as_mut_ptr().wrapping_add(*offset)),
            Place::Gone => None,
        }
    }
}

/// What the lock protects. Held for a few instructions, or while the kernel frees pages; never while objmapper is asked
/// for something, and never while varnishd runs.
#[derive(Default)]
pub(crate) struct Inner {
    /// In order, without gaps. Only the last one grows.
    pub(crate) pieces: SmallVec<[Piece; 1]>,
    /// Bytes of body.
    pub(crate) len: u64,
    /// The draft, while there is one; the writer takes it out while it works on it.
    pub(crate) writing: Option<Box<Writing>>,
    /// The published body.
    pub(crate) stored: Option<Stored>,
    /// Heap that was replaced, but may still be read by who follows the fetch.
    pub(crate) retired: Vec<HeapChunk>,
    /// objmapper refused: the body stays in heap.
    pub(crate) heap_only: bool,
    /// The fetch is over and nobody follows it.
    pub(crate) settled: bool,
    /// Others will look the object up.
    pub(crate) keep: bool,
    /// A draft is being published: readers wait for the outcome, which comes within a deadline.
    pub(crate) publishing: bool,
    /// It could not be published, and could not be kept.
    pub(crate) lost: bool,
    /// Its loss is counted.
    pub(crate) loss_counted: bool,
    /// A final iteration gave back the draft's bytes before this.
    given_back: u64,
}

/// A body.
#[derive(Default)]
pub struct Body {
    inner: Mutex<Inner>,
    published: Condvar,
}

/// Bytes of a body that can be read for as long as this lives (and, for bytes in heap, the object).
pub struct Span {
    /// The first one.
    pub ptr: NonNull<u8>,
    /// How many there are; not 0.
    pub len: usize,
    /// The body's length now.
    pub total: u64,
    hold: Hold,
}

/// What keeps a span readable.
enum Hold {
    /// varnishd's reference to the object.
    Object,
    /// The mapping of a draft.
    Window(#[expect(dead_code, reason = "held for its Drop")] Arc<MmapRaw>),
    /// The mapping of a published body.
    Stored(#[expect(dead_code, reason = "held for its Drop")] Arc<crate::maps::BodyMap>),
}

impl Span {
    /// Do the bytes stay where they are until the object is dereferenced? Only those of a settled body in heap do.
    pub fn is_stable(&self) -> bool {
        matches!(self.hold, Hold::Object)
    }

    /// Do the bytes belong to a draft, whose publication waits for its readers ([`Body::reader_done`])?
    pub fn is_draft(&self) -> bool {
        matches!(self.hold, Hold::Window(_))
    }
}

/// Why there is no span.
#[derive(Debug)]
pub enum NoSpan {
    /// The offset is at or behind the end of what is there now.
    End,
    /// The body cannot be had any more.
    Lost(std::io::Error),
    /// The process has no descriptors or memory left; the body itself is well.
    NotNow(std::io::Error),
    /// The body is there but cannot be mapped: read it with [`Body::read_at`].
    Unmapped,
}

impl Body {
    pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Bytes of body.
    pub fn len(&self) -> u64 {
        self.inner.lock().len
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for the next bytes: an address and how many may be written there before [`Body::extend`].
    ///
    /// `want` is how many are expected (never 0); `estimated` says that this is the origin's Content-Length and not a
    /// default. `nuke` evicts something and says whether it could. Only the writer calls this. `None`: there is no
    /// room, and nothing more to evict.
    pub fn space(
        &self,
        engine: &Engine,
        want: usize,
        estimated: bool,
        limits: ChunkLimits,
        nuke: &mut dyn FnMut() -> bool,
    ) -> Option<(NonNull<u8>, usize)> {
        crate::space::space(self, engine, want, estimated, limits, nuke)
    }

    /// `n` bytes of the room that [`Body::space`] returned last are body now.
    pub fn extend(&self, n: u64) {
        let mut inner = self.inner.lock();
        if let Some(piece) = inner.pieces.last_mut() {
            piece.len += n;
            inner.len += n;
        }
    }

    /// The bytes from `offset` on.
    pub fn span(&self, engine: &Engine, offset: u64) -> Result<Span, NoSpan> {
        let mut inner = self.inner.lock();
        while inner.publishing {
            self.published.wait(&mut inner);
        }
        if offset >= inner.len {
            return Err(NoSpan::End);
        }
        if inner.lost {
            return Err(NoSpan::Lost(std::io::ErrorKind::NotFound.into()));
        }
        if let Some(stored) = &inner.stored {
            let (stored, len) = (stored.clone(), inner.len);
            drop(inner);
            let map = engine.map(&stored, len)?;
            let ptr = NonNull::new(map.at(offset)).ok_or(NoSpan::Unmapped)?;
            return Ok(Span { ptr, len: (len - offset) as usize, total: len, hold: Hold::Stored(map) });
        }
        let index = inner.pieces.partition_point(|piece| piece.start <= offset).saturating_sub(1);
        let piece = inner.pieces.get(index).ok_or(NoSpan::End)?;
        let skip = offset - piece.start;
        let base = piece.base().ok_or(NoSpan::End)?;
        let ptr = NonNull::new(base.wrapping_add(skip as usize)).ok_or(NoSpan::End)?;
        let len = piece.len.checked_sub(skip).filter(|len| *len > 0).ok_or(NoSpan::End)? as usize;
        let hold = match &piece.place {
            Place::Window { map, .. } => Hold::Window(map.clone()),
            _ => Hold::Object,
        };
        Ok(Span { ptr, len, total: inner.len, hold })
    }

    /// Reads a published body without mapping it. 0 is its end.
    pub fn read_at(&self, engine: &Engine, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let (stored, len) = {
            let inner = self.inner.lock();
            match &inner.stored {
                Some(stored) if offset < inner.len => (stored.clone(), inner.len),
                _ => return Ok(0),
            }
        };
        let want = buffer.len().min((len - offset) as usize);
        engine.read_at(&stored, &mut buffer[..want], offset)
    }

    /// A final iteration is done with the bytes before `offset`: gives them back. Nobody else may be reading.
    pub fn give_back(&self, engine: &Engine, offset: u64) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let mut freed: SmallVec<[Place; 4]> = SmallVec::new();
        let last = inner.pieces.len().saturating_sub(1);
        let open_ended = inner.writing.is_some() || inner.stored.is_none();
        for (index, piece) in inner.pieces.iter_mut().enumerate() {
            // The last piece may still grow.
            if piece.start + piece.len > offset || (index == last && open_ended) {
                break;
            }
            if !matches!(piece.place, Place::Gone) {
                freed.push(std::mem::replace(&mut piece.place, Place::Gone));
            }
        }
        for place in freed {
            if let Place::Heap(chunk) = place {
                engine.free_piece(chunk);
            }
        }
        // While the writer has the draft in its hands this is put off: the next call begins where the last one ended.
        if let Some(writing) = &mut inner.writing {
            let from = inner.given_back;
            let to = offset.min(writing.in_file());
            if to > from {
                engine.account.shrink(to - from);
                counters::sub(&engine.counters.g_body_bytes, to - from);
                writing.punch(engine, from, to);
                writing.gave_back(to - from);
                inner.given_back = to;
            }
        }
    }

    /// A reader found the body lost, and will have its object leave the cache: counts it, once.
    pub fn count_loss(&self, engine: &Engine) {
        let stored = {
            let mut inner = self.inner.lock();
            if std::mem::replace(&mut inner.loss_counted, true) {
                return;
            }
            inner.stored.clone()
        };
        engine.count_loss(stored.as_ref());
    }

    /// Nothing more will be written: gives back the surplus. Only the writer calls this, once.
    pub fn trim(&self, engine: &Engine) {
        crate::space::trim(self, engine);
    }

    /// The fetch is over and nobody follows it: frees what was replaced, and publishes a draft if `keep`, others will
    /// look the object up. `false`: it could not be published, the object must leave the cache. `owner` names the
    /// object to [`Engine::sweep`], should objmapper lose the body.
    #[must_use]
    pub fn settle(&self, engine: &Engine, keep: bool, owner: usize) -> bool {
        let retired = {
            let mut inner = self.inner.lock();
            inner.settled = true;
            inner.keep = keep;
            std::mem::take(&mut inner.retired)
        };
        for chunk in retired {
            engine.free_piece(chunk);
        }
        crate::draft::settle(self, engine, owner)
    }

    /// A reader is done: publishes a draft that could not be published because it was read. As [`Body::settle`].
    #[must_use]
    pub fn reader_done(&self, engine: &Engine, owner: usize) -> bool {
        let waits = {
            let inner = self.inner.lock();
            inner.settled && inner.keep && inner.writing.is_some()
        };
        !waits || crate::draft::settle(self, engine, owner)
    }

    pub(crate) fn notify_published(&self) {
        self.published.notify_all();
    }

    /// Gives everything back. Nobody may be reading.
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
        if let Some(writing) = taken.writing {
            writing.discard(engine);
        }
        if let Some(stored) = taken.stored {
            engine.forget(&stored, taken.len);
        }
    }

    /// For a panic message: where the body lives.
    pub fn describe(&self) -> Description {
        // A panicking thread may hold the lock itself.
        let Some(inner) = self.inner.try_lock() else { return Description { len: None, ..Description::default() } };
        let mut description = Description { len: Some(inner.len), ..Description::default() };
        for piece in &inner.pieces {
            match &piece.place {
                Place::Heap(_) => description.heap_pieces += 1,
                Place::Window { .. } => description.windows += 1,
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
    /// Bytes; unknown while another thread works on the body.
    pub len: Option<u64>,
    /// Pieces in heap.
    pub heap_pieces: usize,
    /// Mapped windows of a draft.
    pub windows: usize,
    /// The published body's number in objmapper.
    pub object: Option<u64>,
}

/// varnishd's parameters for storage: `fetch_chunksize` and `fetch_maxchunksize`, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLimits {
    /// The default and the smallest unit.
    pub chunk: usize,
    /// The largest piece.
    pub max: usize,
}
