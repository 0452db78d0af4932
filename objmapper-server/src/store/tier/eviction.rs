//! The order in which a tier's objects are evicted when it needs bytes.
//!
//! The order is least-recently-used (the `lru` crate), as in Varnish itself. Only objects that may
//! be evicted are in it: a pin takes an object out, its last release puts it back in front. So
//! finding a victim never walks over pinned ones.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::store::object::{Object, ObjectId};

/// A tier's eviction order.
pub(crate) struct EvictionOrder(Mutex<LruCache<ObjectId, Arc<Object>>>);

impl Default for EvictionOrder {
    fn default() -> Self {
        EvictionOrder(Mutex::new(LruCache::unbounded()))
    }
}

impl std::fmt::Debug for EvictionOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EvictionOrder({} evictable)", self.0.lock().len())
    }
}

impl EvictionOrder {
    /// Makes an object evictable as the most recently used.
    pub(crate) fn insert(&self, object: Arc<Object>) {
        self.0.lock().push(object.id, object);
    }

    /// Makes an object evictable as the least recently used, unless it is in the order already.
    pub(crate) fn insert_oldest(&self, object: Arc<Object>) {
        let mut order = self.0.lock();
        let id = object.id;
        if !order.contains(&id) {
            order.push(id, object);
            order.demote(&id);
        }
    }

    /// Notes a use. Does nothing while another thread holds the order's lock: a look-up never waits for it.
    pub(crate) fn touch(&self, object: ObjectId) {
        if let Some(mut order) = self.0.try_lock() {
            order.promote(&object);
        }
    }

    /// Drops all references to objects.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    /// Makes an object unevictable, because it is pinned or removed.
    pub(crate) fn remove(&self, object: ObjectId) {
        self.0.lock().pop(&object);
    }

    /// Takes least recently used objects out until they have `bytes` bytes and number `count`, or none is left.
    pub(crate) fn victims(&self, bytes: u64, count: usize) -> Vec<Arc<Object>> {
        // Bounded, so that one large reservation does not hold the lock for a million objects.
        const BATCH: usize = 256;
        let mut order = self.0.lock();
        let mut victims = Vec::new();
        let mut weight = 0u64;
        while (weight < bytes || victims.len() < count) && victims.len() < BATCH {
            let Some((_, object)) = order.pop_lru() else { break };
            weight = weight.saturating_add(object.charge());
            victims.push(object);
        }
        victims
    }
}
