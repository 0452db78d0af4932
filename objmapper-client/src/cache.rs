//! A bounded LRU cache of values that are opened by a key, such as descriptors.
//!
//! Each shard has a lock and a part of the bound. The shared length is counted under the shard's lock, so that the sum of the
//! shards never passes the bound. Values are opened and dropped without a lock.

use std::hash::{BuildHasher, Hash};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lru::{DefaultHasher, LruCache};
use parking_lot::Mutex;

/// Maximum number of shards.
const MAX_SHARDS: usize = 16;

/// Minimum number of entries of a shard, so that its order of eviction approximates that of the whole.
const MIN_SHARD: usize = 64;

struct Shard<K, V> {
    values: LruCache<K, Arc<V>>,
    // Counted under the shard's lock, which is held anyway: a shared counter would be contended by all threads.
    hits: u64,
    misses: u64,
}

/// Least-recently-used cache with an exact bound, for many threads.
///
/// Values are returned as [`Arc`]s: one that is in use survives its eviction and is dropped (closed,
/// unmapped) by its last user. The cache is divided into shards with a lock and a part of the bound each, so that
/// no lock is shared by all threads. No value is opened or dropped under a lock.
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
    shards: Box<[Mutex<Shard<K, V>>]>,
    /// The hash that chooses the shard; seeded at random.
    hasher: DefaultHasher,
    len: AtomicUsize,
    capacity: usize,
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
    /// Makes a cache of at most `capacity` values. With 0 it keeps none.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let n = (capacity / MIN_SHARD).clamp(1, MAX_SHARDS).min(capacity.max(1));
        let shards = (0..n)
            .map(|i| capacity / n + usize::from(i < capacity % n))
            // With capacity 0 there is one shard, which `keep` never fills.
            .map(|part| NonZeroUsize::new(part).unwrap_or(NonZeroUsize::MIN))
            .map(|part| Mutex::new(Shard { values: LruCache::new(part), hits: 0, misses: 0 }))
            .collect();
        Self {
            shards,
            hasher: DefaultHasher::default(),
            len: AtomicUsize::new(0),
            capacity,
            evictions: AtomicU64::new(0),
        }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K, V>> {
        &self.shards[self.hasher.hash_one(key) as usize % self.shards.len()]
    }

    /// Returns the value of `key`, if it is cached, and marks it as used.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut shard = self.shard(key).lock();
        let value = shard.values.get(key).cloned();
        *(if value.is_some() { &mut shard.hits } else { &mut shard.misses }) += 1;
        value
    }

    /// Returns the value of `key`, and opens it if it is not cached. If two threads open one key at once, both get
    /// the value that was entered first.
    ///
    /// # Errors
    /// The error of `open`.
    pub fn get_or_open<E>(&self, key: K, open: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        if let Some(value) = self.get(&key) {
            return Ok(value);
        }
        let value = Arc::new(open()?);
        Ok(self.keep(key, value))
    }

    /// Enters a value; it replaces the former value of `key`.
    pub fn insert(&self, key: K, value: Arc<V>) {
        self.invalidate(&key);
        self.keep(key, value);
    }

    fn keep(&self, key: K, value: Arc<V>) -> Arc<V> {
        if self.capacity == 0 {
            return value;
        }
        // Dropped after the lock, so that no value is closed or unmapped under it.
        let evicted;
        {
            let mut shard = self.shard(&key).lock();
            if let Some(there) = shard.values.get(&key) {
                return Arc::clone(there);
            }
            evicted = shard.values.push(key, Arc::clone(&value));
            if evicted.is_none() {
                self.len.fetch_add(1, Ordering::Relaxed);
            }
        }
        if evicted.is_some() {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        value
    }

    /// Removes a value. Its users keep it until they drop it.
    pub fn invalidate(&self, key: &K) -> Option<Arc<V>> {
        let mut shard = self.shard(key).lock();
        let value = shard.values.pop(key);
        if value.is_some() {
            // Under the lock: a value that takes the place is counted after this, so that the sum never passes the bound.
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        value
    }

    /// Removes all values.
    pub fn clear(&self) {
        for shard in &self.shards {
            let taken = {
                let mut shard = shard.lock();
                let cap = shard.values.cap();
                let taken = std::mem::replace(&mut shard.values, LruCache::new(cap));
                self.len.fetch_sub(taken.len(), Ordering::Relaxed);
                taken
            };
            drop(taken);
        }
    }

    /// Returns the number of cached values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Returns true if no value is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of values evicted to keep the bound.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Returns the number of look-ups that found their value.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().hits).sum()
    }

    /// Returns the number of look-ups that did not find their value.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().misses).sum()
    }
}
