//! The writer of a body: what only the fetch uses, which is one thread.
//!
//! Its lock is the writer's for as long as one of its calls lasts: while it waits for the store, writes to a file, or
//! evicts. So no reader may wait for it. A final iteration, which frees what it has read of a draft's file, only tries it
//! ([`Body::give_back`](crate::body::Body::give_back)). [`Body::slim`](crate::body::Body::slim) waits for it, for a
//! fetch whose body is not wanted any more and that is at its end.
//!
//! The order of locks is the writer's, then the view's. The writer never waits for a thread that waits for its lock: it
//! evicts other objects' bodies, as its own is in no list of those that may be evicted until it is settled.

use crate::adopted::RecordSpace;
use crate::draft::Draft;
use crate::engine::Engine;
use crate::heap::HeapChunk;

/// What the writer has beside the pieces in heap. It follows from the body's [`State`](crate::state::State).
#[derive(Default)]
pub(crate) enum Target {
    /// Nothing.
    #[default]
    Heap,
    /// A draft: `Draft`, `Mixed`, and `Transit` after the latter.
    Draft(Box<Draft>),
    /// What stands for the bytes of a record: `Adopted`, and `Transit` after it.
    Record(Box<RecordSpace>),
}

/// The writer of a body.
#[derive(Default)]
pub(crate) struct Writer {
    /// Where the bytes go.
    pub(crate) target: Target,
    /// Heap that was replaced, and that readers which follow the fetch may still use.
    pub(crate) retired: Vec<HeapChunk>,
}

impl Writer {
    /// Returns the draft.
    pub(crate) fn draft(&mut self) -> Option<&mut Draft> {
        match &mut self.target {
            Target::Draft(draft) => Some(draft),
            _ => None,
        }
    }

    /// Ends writing to the draft, and returns it.
    pub(crate) fn end_draft(&mut self) -> Option<Box<Draft>> {
        match std::mem::take(&mut self.target) {
            Target::Draft(draft) => Some(draft),
            target => {
                self.target = target;
                None
            }
        }
    }

    /// Aborts the draft.
    pub(crate) fn discard_draft(&mut self, engine: &Engine) {
        if let Some(draft) = self.end_draft() {
            draft.discard(engine);
        }
    }

    /// Frees the heap that was replaced. The caller guarantees that no reader uses it any more.
    pub(crate) fn free_retired(&mut self, engine: &Engine) {
        for chunk in std::mem::take(&mut self.retired) {
            engine.free_piece(chunk);
        }
    }
}
