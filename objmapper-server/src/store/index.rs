//! The index: which URI names which object now, for both tiers.
//!
//! Shards by hash of the URI. Each has two locks: `publish` orders everything that changes what a
//! URI names (commit, delete, eviction; system calls and the disk index's transaction run under
//! it), `map` guards the table itself and is never held across a system call, so a look-up waits
//! for memory operations only.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::object::Object;
use super::private::Private;

const SHARDS: usize = 32;

#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<Shard>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) publish: Mutex<()>,
    pub(crate) map: RwLock<ShardMap>,
}

#[derive(Debug, Default)]
pub(crate) struct ShardMap {
    pub(crate) objects: BTreeMap<Arc<[u8]>, Arc<Object>>,
    /// Private objects created for a URI: a delete of the URI dooms them.
    pub(crate) privates: HashMap<Arc<[u8]>, Vec<Weak<Private>>>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Index { shards: (0..SHARDS).map(|_| Shard::default()).collect(), hasher: RandomState::new() }
    }

    pub(crate) fn shard(&self, uri: &[u8]) -> &Shard {
        &self.shards[self.hasher.hash_one(uri) as usize % SHARDS]
    }

    pub(crate) fn get(&self, uri: &[u8]) -> Option<Arc<Object>> {
        self.shard(uri).map.read().objects.get(uri).cloned()
    }

    /// Puts what a restart found into the index; of two rows for one URI the later wins and the
    /// other is returned.
    pub(crate) fn fill(&self, objects: Vec<Arc<Object>>) -> Vec<Arc<Object>> {
        let mut parts: Vec<Vec<Arc<Object>>> = (0..SHARDS).map(|_| Vec::new()).collect();
        for object in objects {
            parts[self.hasher.hash_one(&*object.uri) as usize % SHARDS].push(object);
        }
        let mut superseded = Vec::new();
        for (shard, mut part) in self.shards.iter().zip(parts) {
            part.sort_unstable_by(|a, b| (&a.uri, a.id).cmp(&(&b.uri, b.id)));
            let mut unique: Vec<Arc<Object>> = Vec::with_capacity(part.len());
            for object in part {
                match unique.last_mut() {
                    Some(last) if last.uri == object.uri => {
                        superseded.push(std::mem::replace(last, object));
                    }
                    _ => unique.push(object),
                }
            }
            // Sorted input builds the tree in linear time.
            shard.map.write().objects = unique.into_iter().map(|object| (object.uri.clone(), object)).collect();
        }
        superseded
    }

    /// Up to `max` objects whose URI begins with `prefix` and comes after `cursor`, in byte order,
    /// and whether that was all.
    pub(crate) fn page(&self, prefix: &[u8], cursor: &[u8], max: usize) -> (Vec<Arc<Object>>, bool) {
        let start =
            if cursor >= prefix && !cursor.is_empty() { Bound::Excluded(cursor) } else { Bound::Included(prefix) };
        let mut found = Vec::new();
        for shard in &self.shards {
            let map = shard.map.read();
            found.extend(
                map.objects
                    .range::<[u8], _>((start, Bound::Unbounded))
                    .take_while(|(uri, _)| uri.starts_with(prefix))
                    .take(max.saturating_add(1))
                    .map(|(_, object)| object.clone()),
            );
        }
        found.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
        let last = found.len() <= max;
        found.truncate(max);
        (found, last)
    }
}

impl ShardMap {
    /// The live private objects of a URI; forgets the dead ones.
    pub(crate) fn privates_of(&mut self, uri: &[u8]) -> Vec<Arc<Private>> {
        let Some(list) = self.privates.get_mut(uri) else { return Vec::new() };
        let live: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        if live.is_empty() {
            self.privates.remove(uri);
        }
        live
    }
}
