//! A settled body, as a record has it, and as it comes back.

use objmapper_journal::StoredBody as Kept;
use smallvec::SmallVec;

use crate::backing::Lengths;
use crate::body::Body;
use crate::counters;
use crate::engine::Engine;
use crate::heap::HeapChunk;
use crate::state::{Medium, Piece, State, View};

/// Why an object does not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRestored {
    /// The storage has no room for it.
    Size,
    /// Its body is not in the store any more.
    Lost,
    /// Its record makes no sense.
    Damaged,
}

/// Where a settled body is.
pub(super) enum Form<'a> {
    /// All of it in heap.
    Heap(SmallVec<[&'a [u8]; 4]>),
    /// All of it in the store.
    Stored(crate::backing::StoredBody),
    /// In several places, or nowhere.
    Mixed,
}

impl Body {
    /// Returns where the body is.
    ///
    /// # Safety
    /// The body must be settled, and not be slimmed during `'a`: what is in heap stays there as long.
    pub(super) unsafe fn form<'a>(&self) -> Form<'a> {
        let view = self.view();
        match view.state() {
            State::Stored(stored) if view.pieces.is_empty() && stored.body_len == view.len => {
                Form::Stored(stored.clone())
            }
            State::Settled if view.given_back == 0 => {
                let mut pieces = SmallVec::new();
                for piece in &view.pieces {
                    let Medium::Heap(chunk) = &piece.medium else { return Form::Mixed };
                    let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(chunk.size());
                    // SAFETY: the piece's first `len` bytes are body, which its fetch has written, and which does not change
                    // any more; they stay by contract.
                    pieces.push(unsafe { std::slice::from_raw_parts(chunk.ptr().as_ptr(), len) });
                }
                Form::Heap(pieces)
            }
            _ => Form::Mixed,
        }
    }

    /// Makes a settled body in heap of these bytes.
    pub(super) fn restored_in_heap(engine: &Engine, bytes: &[u8]) -> Result<Body, NotRestored> {
        let mut pieces = SmallVec::new();
        if !bytes.is_empty() {
            let chunk = HeapChunk::alloc(&engine.account, bytes.len()).ok_or(NotRestored::Size)?;
            chunk.copy_from(bytes);
            engine.count_piece(&chunk);
            pieces.push(Piece { start: 0, len: bytes.len() as u64, medium: Medium::Heap(chunk) });
        }
        Ok(Body::of(View::restored(State::Settled, pieces, bytes.len() as u64)))
    }

    /// Makes a settled body of one in the store, which is pinned.
    pub(super) fn restored_in_store(engine: &Engine, uri: &[u8], kept: &Kept) -> Result<Body, NotRestored> {
        if kept.body_len == 0 || kept.file_len < kept.body_len {
            return Err(NotRestored::Damaged);
        }
        if !engine.account.alloc(kept.file_len) {
            return Err(NotRestored::Size);
        }
        let lengths = Lengths { body: kept.body_len, file: kept.file_len };
        let own = uri.starts_with(super::URI_PREFIX.as_bytes());
        match engine.backing().restore(uri, kept.object, lengths, engine.new_key(), own) {
            Ok(Some(stored)) => {
                counters::add(&engine.counters.g_bodies, 1);
                counters::add(&engine.counters.g_body_bytes, kept.file_len);
                Ok(Body::of(View::restored(State::Stored(stored), SmallVec::new(), kept.body_len)))
            }
            Ok(None) => {
                engine.account.dealloc(kept.file_len);
                Err(NotRestored::Lost)
            }
            Err(failure) => {
                engine.account.dealloc(kept.file_len);
                engine.count_failure(&failure);
                engine.log_error(&format!("the body of a kept object could not be pinned: {failure}"));
                Err(NotRestored::Lost)
            }
        }
    }
}
