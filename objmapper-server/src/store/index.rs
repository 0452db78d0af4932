//! The index: the object of each URI, for both tiers.
//!
//! URIs are divided into shards by their hash. Each shard has two locks: `publish` orders everything that changes the object of
//! a URI (commit, delete, eviction; system calls and the disk index's transaction run under
//! it). `map` guards the table itself and is never held across a system call, so that a look-up waits
//! for memory operations only.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::object::Object;
use super::publication::Private;

const SHARDS: usize = 32;

#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<Shard>,
    hasher: RandomState,
    /// True if every shard's `order` is complete; after a restart it is completed in the background.
    ordered: AtomicBool,
    ordering: Mutex<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) publish: Mutex<()>,
    pub(crate) map: RwLock<ShardMap>,
}

#[derive(Debug, Default)]
pub(crate) struct ShardMap {
    objects: HashMap<Arc<[u8]>, Arc<Object>>,
    /// The same URIs in byte order, for listings.
    order: BTreeSet<Arc<[u8]>>,
    /// Private objects created for a URI: after a delete of the URI they cannot be committed.
    pub(crate) privates: HashMap<Arc<[u8]>, Vec<Weak<Private>>>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Index {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: RandomState::new(),
            ordered: AtomicBool::new(true),
            ordering: Mutex::new(()),
        }
    }

    pub(crate) fn shard(&self, uri: &[u8]) -> &Shard {
        &self.shards[self.hasher.hash_one(uri) as usize % SHARDS]
    }

    pub(crate) fn get(&self, uri: &[u8]) -> Option<Arc<Object>> {
        self.shard(uri).map.read().get(uri).cloned()
    }

    /// Returns all objects whose URIs begin with `prefix`, in no order.
    pub(crate) fn with_prefix(&self, prefix: &[u8]) -> Vec<Arc<Object>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let map = shard.map.read();
            found.extend(map.objects.values().filter(|object| object.uri.starts_with(prefix)).cloned());
        }
        found
    }

    /// Enters the objects that a restart found, in the order of their ids. Of two objects of one URI
    /// the newer is entered and the older is returned. [`Index::complete_order`] makes the order for listings later, because
    /// sorting a million URIs would delay the start.
    pub(crate) fn fill(&self, objects: Vec<Arc<Object>>) -> Vec<Arc<Object>> {
        self.ordered.store(false, Release);
        let each = objects.len() / SHARDS * 9 / 8;
        for shard in &self.shards {
            shard.map.write().objects.reserve(each);
        }
        objects
            .into_iter()
            .filter_map(|object| self.shard(&object.uri).map.write().objects.insert(object.uri.clone(), object))
            .collect()
    }

    /// Completes the order for listings, if it is not complete.
    pub(crate) fn complete_order(&self) {
        let _ordering = self.ordering.lock();
        if self.ordered.load(Acquire) {
            return;
        }
        for shard in &self.shards {
            // Sorted without the lock; the changes of that time are merged below.
            let mut uris: Vec<_> = shard.map.read().objects.keys().cloned().collect();
            uris.sort_unstable();
            let mut map = shard.map.write();
            let mut order: BTreeSet<_> = uris.into_iter().filter(|uri| map.objects.contains_key(uri)).collect();
            order.append(&mut map.order);
            map.order = order;
        }
        self.ordered.store(true, Release);
    }

    /// Returns up to `max` objects whose URI begins with `prefix` and comes after `cursor`, in byte order,
    /// and true if no further ones exist.
    pub(crate) fn page(&self, prefix: &[u8], cursor: &[u8], max: usize) -> (Vec<Arc<Object>>, bool) {
        let start =
            if cursor >= prefix && !cursor.is_empty() { Bound::Excluded(cursor) } else { Bound::Included(prefix) };
        if !self.ordered.load(Acquire) {
            self.complete_order();
        }
        let mut found: Vec<Arc<Object>> = Vec::new();
        for shard in &self.shards {
            let map = shard.map.read();
            found.extend(
                map.order
                    .range::<[u8], _>((start, Bound::Unbounded))
                    .take_while(|uri| uri.starts_with(prefix))
                    .take(max.saturating_add(1))
                    .filter_map(|uri| map.objects.get(uri).cloned()),
            );
        }
        found.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
        let last = found.len() <= max;
        found.truncate(max);
        (found, last)
    }
}

impl ShardMap {
    pub(crate) fn get(&self, uri: &[u8]) -> Option<&Arc<Object>> {
        self.objects.get(uri)
    }

    /// Enters an object and returns the one that it replaces.
    pub(crate) fn insert(&mut self, object: Arc<Object>) -> Option<Arc<Object>> {
        self.order.insert(object.uri.clone());
        self.objects.insert(object.uri.clone(), object)
    }

    pub(crate) fn remove(&mut self, uri: &[u8]) {
        self.order.remove(uri);
        self.objects.remove(uri);
    }

    /// Returns the live private objects of a URI, and drops the dead entries.
    pub(crate) fn privates_of(&mut self, uri: &[u8]) -> Vec<Arc<Private>> {
        let Some(list) = self.privates.get_mut(uri) else { return Vec::new() };
        let live: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        if live.is_empty() {
            self.privates.remove(uri);
        }
        live
    }
}
