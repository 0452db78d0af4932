//! What is kept open or mapped: at most so many, the least recently used goes first.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lru::LruCache;
use parking_lot::Mutex;

use crate::counters;

/// Workers that use different bodies seldom meet in one of these.
const SHARDS: usize = 16;

/// A bounded cache of `T` by a body's key. An entry that is in use lives on when it is evicted.
pub(crate) struct Cache<T> {
    shards: Box<[Mutex<LruCache<u64, Arc<T>>>]>,
    held: &'static AtomicU64,
    opened: &'static AtomicU64,
    evicted: &'static AtomicU64,
}

impl<T> Cache<T> {
    /// At most `limit` entries (at least 1); the counters are: held now, made, evicted.
    pub(crate) fn new(
        limit: usize,
        held: &'static AtomicU64,
        opened: &'static AtomicU64,
        evicted: &'static AtomicU64,
    ) -> Cache<T> {
        let shards = SHARDS.min(limit).max(1);
        let shards = (0..shards)
            .map(|shard| {
                let share = limit / shards + usize::from(shard < limit % shards);
                Mutex::new(LruCache::new(NonZeroUsize::new(share).unwrap_or(NonZeroUsize::MIN)))
            })
            .collect();
        Cache { shards, held, opened, evicted }
    }

    fn shard(&self, key: u64) -> &Mutex<LruCache<u64, Arc<T>>> {
        &self.shards[(key % self.shards.len() as u64) as usize]
    }

    /// The entry, made if it is not there. Two threads may make one at once; both get the same.
    pub(crate) fn get_or_make<E>(&self, key: u64, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        if let Some(found) = self.shard(key).lock().get(&key) {
            return Ok(found.clone());
        }
        let made = Arc::new(make()?);
        counters::add(self.opened, 1);
        Ok(self.enter(key, made))
    }

    /// Enters what somebody has made already.
    pub(crate) fn insert(&self, key: u64, value: T) {
        self.enter(key, Arc::new(value));
    }

    fn enter(&self, key: u64, value: Arc<T>) -> Arc<T> {
        let mut shard = self.shard(key).lock();
        if let Some(found) = shard.get(&key) {
            return found.clone();
        }
        // What falls out is dropped behind the lock: closing and unmapping take their time.
        let out = shard.push(key, value.clone());
        drop(shard);
        match out {
            Some(_) => counters::add(self.evicted, 1),
            None => counters::add(self.held, 1),
        }
        value
    }

    /// Drops an entry.
    pub(crate) fn remove(&self, key: u64) {
        let out = self.shard(key).lock().pop(&key);
        if out.is_some() {
            counters::sub(self.held, 1);
        }
    }

    /// Drops the older half of all entries: descriptors or mappings have run out.
    pub(crate) fn shed(&self) {
        for shard in &self.shards {
            let mut out = Vec::new();
            {
                let mut shard = shard.lock();
                for _ in 0..shard.len().div_ceil(2) {
                    out.extend(shard.pop_lru());
                }
            }
            counters::sub(self.held, out.len() as u64);
            counters::add(self.evicted, out.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    fn cache(limit: usize) -> (Cache<u64>, [&'static AtomicU64; 3]) {
        let counters = [(); 3].map(|()| &*Box::leak(Box::new(AtomicU64::new(0))));
        (Cache::new(limit, counters[0], counters[1], counters[2]), counters)
    }

    fn get(cache: &Cache<u64>, key: u64) -> Arc<u64> {
        cache.get_or_make(key, || Ok::<_, ()>(key * 10)).unwrap()
    }

    #[test]
    fn never_more_than_the_limit_whatever_it_is() {
        for limit in [1, 2, 15, 16, 17, 100] {
            let (cache, [held, made, evicted]) = cache(limit);
            for key in 0..1000 {
                assert_eq!(*get(&cache, key), key * 10);
                assert!(held.load(Relaxed) <= limit as u64);
            }
            assert_eq!(held.load(Relaxed), limit as u64);
            assert_eq!(made.load(Relaxed), 1000);
            assert_eq!(evicted.load(Relaxed), 1000 - limit as u64);
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_lives_on_while_it_is_used() {
        let (cache, [_, made, _]) = cache(2 * SHARDS);
        let (a, b, c) = (0, SHARDS as u64, 2 * SHARDS as u64);
        let in_use = get(&cache, a);
        get(&cache, b);
        get(&cache, a);
        get(&cache, c);
        assert_eq!(made.load(Relaxed), 3);
        get(&cache, a);
        assert_eq!(made.load(Relaxed), 3, "a was used after b, so that b went");
        get(&cache, b);
        get(&cache, c);
        assert_eq!((made.load(Relaxed), *in_use), (5, 0));
    }

    #[test]
    fn removing_and_shedding_keep_the_count() {
        let (cache, [held, _, _]) = cache(64);
        for key in 0..64 {
            get(&cache, key);
        }
        cache.remove(3);
        cache.remove(3);
        assert_eq!(held.load(Relaxed), 63);
        cache.shed();
        assert!(held.load(Relaxed) <= 32);
        assert!(cache.get_or_make(1000, || Err::<u64, _>("no")).is_err());
    }
}
