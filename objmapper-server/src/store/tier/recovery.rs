//! The objects that a restart found in a tier, until all of them are in their places.
//!
//! A start enters them into the index, because a look-up needs them at once. The rest is made later, so that a million objects do
//! not delay the first answer: the eviction order before the first eviction, and the sweep for files without a row and rows
//! without a file in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

use super::eviction::EvictionOrder;
use crate::store::object::{Object, ObjectId};

/// What is left to do for the objects that a restart found.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// The objects, in the order of their ids, until the sweep.
    found: Mutex<Vec<Arc<Object>>>,
    /// Objects among them that are of no more use, for the sweep to remove. Until then they are evictable.
    unwanted: Mutex<Vec<Arc<Object>>>,
    /// True while they are not in the eviction order.
    unordered: AtomicBool,
}

impl Recovery {
    pub(crate) fn begin(&self, found: Vec<Arc<Object>>) {
        *self.found.lock() = found;
        self.unordered.store(true, Relaxed);
    }

    pub(crate) fn set_unwanted(&self, objects: Vec<Arc<Object>>) {
        *self.unwanted.lock() = objects;
    }

    /// Returns the ids of the objects that were found, in order, with the objects. The sweep takes them.
    pub(crate) fn take_found(&self) -> Vec<Arc<Object>> {
        std::mem::take(&mut *self.found.lock())
    }

    pub(crate) fn take_unwanted(&self) -> Vec<Arc<Object>> {
        std::mem::take(&mut *self.unwanted.lock())
    }

    pub(crate) fn clear(&self) {
        self.take_found();
        self.take_unwanted();
    }

    /// Enters the objects into the eviction order, once. The caller holds the tier's `evicting`.
    pub(crate) fn complete_order(&self, order: &EvictionOrder) {
        if !self.unordered.load(Relaxed) {
            return;
        }
        // The newest first, each as the least recently used: objects used since the start stay ahead of them.
        for object in self.found.lock().iter().rev() {
            let state = object.state.lock();
            if state.listed && state.pins == 0 {
                order.insert_oldest(object.clone());
            }
        }
        self.unordered.store(false, Relaxed);
    }
}

/// Returns the position of the object with this id among objects in the order of their ids.
pub(crate) fn position(found: &[Arc<Object>], id: ObjectId) -> Option<usize> {
    found.binary_search_by_key(&id, |object| object.id).ok()
}
