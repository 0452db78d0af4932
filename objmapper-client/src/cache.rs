//! A bounded cache of what is opened by key: descriptors, mappings.

use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

/// Most shards: more than threads that would meet in one.
const MAX_SHARDS: usize = 16;

/// Fewest entries of a shard, so that each has a choice of what to evict.
const MIN_SHARD: usize = 64;

type Shard<K, V> = Mutex<LruCache<K, Arc<V>>>;

/// Least-recently-used cache with an exact bound, for many threads.
///
/// Values are handed out as [`Arc`]s: one that is in use survives its eviction and is dropped (closed,
/// unmapped) by its last user. It is divided into shards with a lock and a part of the bound each, so that
/// no lock is shared by all threads; nothing is opened and nothing dropped under a lock.
///
/// ```
/// use objmapper_client::Cache;
///
/// let cache: Cache<u64, String> = Cache::new(2);
/// let value = cache.get_or_open(1, || Ok::<_, std::io::Error>("one".to_owned()))?;
/// cache.get_or_open(2, || Ok::<_, std::io::Error>("two".to_owned()))?;
/// cache.get_or_open(3, || Ok::<_, std::io::Error>("three".to_owned()))?;
/// assert_eq!((cache.len(), cache.evictions(), value.as_str()), (2, 1, "one"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Cache<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: RandomState,
    len: AtomicUsize,
    capacity: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

impl<K, V> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("len", &self.len.load(Ordering::Relaxed))
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone, V> Cache<K, V> {
    /// A cache of at most `capacity` values; with 0 nothing is kept.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let n = (capacity / MIN_SHARD).clamp(1, MAX_SHARDS).min(capacity.max(1));
        let shards = (0..n)
            .map(|i| capacity / n + usize::from(i < capacity % n))
            // With capacity 0 there is one shard, which `keep` never fills.
            .map(|part| Mutex::new(LruCache::new(NonZeroUsize::new(part).unwrap_or(NonZeroUsize::MIN))))
            .collect();
        Self {
            shards,
            hasher: RandomState::new(),
            len: AtomicUsize::new(0),
            capacity,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    fn shard(&self, key: &K) -> &Shard<K, V> {
        &self.shards[self.hasher.hash_one(key) as usize % self.shards.len()]
    }

    /// The value of `key`, if it is there; it counts as used.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let value = self.shard(key).lock().get(key).cloned();
        let counter = if value.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        value
    }

    /// The value of `key`, opened if it is not there. Two threads may open one key at once; then both get
    /// the value that was there first.
    ///
    /// # Errors
    /// What `open` says.
    pub fn get_or_open<E>(&self, key: K, open: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        if let Some(value) = self.get(&key) {
            return Ok(value);
        }
        let value = Arc::new(open()?);
        Ok(self.keep(key, value))
    }

    /// Puts a value in, replacing what is there.
    pub fn insert(&self, key: K, value: Arc<V>) {
        self.invalidate(&key);
        self.keep(key, value);
    }

    fn keep(&self, key: K, value: Arc<V>) -> Arc<V> {
        if self.capacity == 0 {
            return value;
        }
        // Dropped after the lock, so that nothing is closed or unmapped under it.
        let evicted;
        {
            let mut shard = self.shard(&key).lock();
            if let Some(there) = shard.get(&key) {
                return Arc::clone(there);
            }
            evicted = shard.push(key, Arc::clone(&value));
            if evicted.is_none() {
                self.len.fetch_add(1, Ordering::Relaxed);
            }
        }
        if evicted.is_some() {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        value
    }

    /// Takes a value out; whoever uses it goes on.
    pub fn invalidate(&self, key: &K) -> Option<Arc<V>> {
        let value = self.shard(key).lock().pop(key);
        if value.is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        value
    }

    /// Takes all values out.
    pub fn clear(&self) {
        for shard in &self.shards {
            let taken = {
                let mut shard = shard.lock();
                let cap = shard.cap();
                let taken = std::mem::replace(&mut *shard, LruCache::new(cap));
                self.len.fetch_sub(taken.len(), Ordering::Relaxed);
                taken
            };
            drop(taken);
        }
    }

    /// How many values it keeps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether it keeps none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values it keeps at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many values were evicted to keep the bound.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// How often a value was there.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// How often a value was not there.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }
}
