//! The objects by their tags.
//!
//! Each pair of a name and an object is kept twice, in sets that are sorted by name and by object: 32 bytes, and what a B-tree
//! leaves empty. An object without tags takes nothing.
//!
//! Both kinds of sets are divided into shards with a lock each. Who changes an object's pairs holds the lock of the object's shard,
//! and below it those of the names' shards, one at a time: so all changes of one object are one after the other. Who looks a name up
//! holds the lock of its shard only. What the caller does there with an object happens before [`Index::remove`] of that object
//! returns.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use crate::name::Name;

/// Shards of each kind; a power of two.
const SHARDS: usize = 64;

/// Bytes of a pair in both sets: B-tree nodes are two thirds full, and one in eight is an inner one.
const PAIR_BYTES: u64 = 2 * 16 * 3 / 2 * 9 / 8;

/// The index. Methods may be called by several threads at once.
#[derive(Debug)]
pub struct Index {
    by_name: Vec<Mutex<BTreeSet<(Name, usize)>>>,
    by_object: Vec<Mutex<BTreeSet<(usize, Name)>>>,
    pairs: AtomicU64,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            by_name: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            by_object: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            pairs: AtomicU64::new(0),
        }
    }
}

impl Index {
    fn of_name(&self, name: Name) -> &Mutex<BTreeSet<(Name, usize)>> {
        &self.by_name[name.0 as usize % SHARDS]
    }

    fn of_object(&self, object: usize) -> &Mutex<BTreeSet<(usize, Name)>> {
        // An address: its lowest bits are those of its alignment.
        &self.by_object[(object.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % SHARDS]
    }

    /// Adds names to those of an object. `names` is not asked for any with a lock held.
    pub fn insert(&self, object: usize, names: impl IntoIterator<Item = Name>) {
        let names: Vec<Name> = names.into_iter().collect();
        if names.is_empty() {
            return;
        }
        let mut of_object = self.of_object(object).lock();
        for name in names {
            if of_object.insert((object, name)) {
                self.of_name(name).lock().insert((name, object));
                self.pairs.fetch_add(1, Relaxed);
            }
        }
    }

    /// Forgets an object. When it returns, no look-up has the object under its lock, and none finds it.
    pub fn remove(&self, object: usize) {
        let mut of_object = self.of_object(object).lock();
        let names: Vec<Name> =
            of_object.range((object, Name(0))..=(object, Name(u64::MAX))).map(|(_, name)| *name).collect();
        for name in names {
            of_object.remove(&(object, name));
            self.of_name(name).lock().remove(&(name, object));
            self.pairs.fetch_sub(1, Relaxed);
        }
    }

    /// Returns what `hold` makes of each object of a name. The lock of the name's shard is held meanwhile, so that the objects
    /// cannot be removed: `hold` makes sure that they stay valid afterwards, and does no more.
    pub fn hold<T>(&self, name: Name, mut hold: impl FnMut(usize) -> T) -> Vec<T> {
        let of_name = self.of_name(name).lock();
        of_name.range((name, 0)..=(name, usize::MAX)).map(|(_, object)| hold(*object)).collect()
    }

    /// Returns true if the object has a name here.
    #[must_use]
    pub fn contains(&self, object: usize) -> bool {
        let of_object = self.of_object(object).lock();
        of_object.range((object, Name(0))..=(object, Name(u64::MAX))).next().is_some()
    }

    /// Forgets all objects. The caller guarantees that none is inserted meanwhile.
    pub fn clear(&self) {
        for shard in &self.by_object {
            shard.lock().clear();
        }
        for shard in &self.by_name {
            shard.lock().clear();
        }
        self.pairs.store(0, Relaxed);
    }

    /// The number of pairs of an object and a name.
    #[must_use]
    pub fn pairs(&self) -> u64 {
        self.pairs.load(Relaxed)
    }

    /// About the bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pairs() * PAIR_BYTES
    }
}
