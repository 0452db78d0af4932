//! A bounded cache of what is opened by key: descriptors, mappings.

use std::hash::{BuildHasher, Hash};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lru::{DefaultHasher, LruCache};
use parking_lot::Mutex;

/// Most shards: more than threads that would meet in one.
const MAX_SHARDS: usize = 16;

/// Fewest entries of a shard, so that each has a choice of what to evict.
const MIN_SHARD: usize = 64;

struct Shard<K, V> {
    values: LruCache<K, Arc<V>>,
    // Counted here, under a lock that is held anyway, and not where all threads would meet.
    hits: u64,
    misses: u64,
}

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
    shards: Box<[Mutex<Shard<K, V>>]>,
    /// Chooses the shard; seeded at random, and as cheap as the one that looks for the key in it.
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
    /// A cache of at most `capacity` values; with 0 nothing is kept.
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

    /// The value of `key`, if it is there; it counts as used.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut shard = self.shard(key).lock();
        let value = shard.values.get(key).cloned();
        *(if value.is_some() { &mut shard.hits } else { &mut shard.misses }) += 1;
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

    /// Takes a value out; whoever uses it goes on.
    pub fn invalidate(&self, key: &K) -> Option<Arc<V>> {
        let mut shard = self.shard(key).lock();
        let value = shard.values.pop(key);
        if value.is_some() {
            // Under the lock: who takes the place counts after this, so that the sum never passes the bound.
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        value
    }

    /// Takes all values out.
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
        self.shards.iter().map(|shard| shard.lock().hits).sum()
    }

    /// How often a value was not there.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().misses).sum()
    }
}
