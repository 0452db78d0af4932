//! Which cached objects have their body in an objmapperd, so that they can leave the cache when it is lost.
//!
//! A body is entered when it is settled and removed before its object is freed. A sweep holds a part's lock while it
//! names owners, so that no owner is freed meanwhile.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::maintenance::LossDomain;
use crate::maintenance::LossScope;

/// The number of parts with a lock each, so that fetches that end at once seldom wait for each other.
const SHARDS: usize = 16;

struct Registered {
    loss_domain: LossDomain,
    owner: usize,
}

/// The owners of bodies, by the body's key.
#[derive(Default)]
pub(crate) struct Registry {
    shards: [Mutex<HashMap<u64, Registered>>; SHARDS],
}

impl Registry {
    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, Registered>> {
        &self.shards[(key % SHARDS as u64) as usize]
    }

    pub(crate) fn enter(&self, key: u64, loss_domain: LossDomain, owner: usize) {
        self.shard(key).lock().insert(key, Registered { loss_domain, owner });
    }

    /// Removes a body: no later [`Registry::sweep`] names its owner. Returns false if it was not there, because a sweep
    /// has named its owner.
    pub(crate) fn remove(&self, key: u64) -> bool {
        self.shard(key).lock().remove(&key).is_some()
    }

    /// Calls `lost` with the owner of every lost body, once, under the lock that keeps the owner from being freed
    /// meanwhile.
    pub(crate) fn sweep(&self, scope: LossScope, mut lost: impl FnMut(usize)) {
        for shard in &self.shards {
            shard.lock().retain(|_, registered| {
                let applies = scope.applies_to(registered.loss_domain);
                if applies {
                    lost(registered.owner);
                }
                !applies
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_names_the_lost_and_only_them_and_once() {
        let registry = Registry::default();
        let at = |session, memory_epoch| LossDomain { session, memory_epoch };
        registry.enter(1, at(1, Some(0)), 11);
        registry.enter(2, at(1, None), 12);
        registry.enter(3, at(2, Some(1)), 13);
        registry.enter(17, at(2, None), 14);
        let named = |scope| {
            let mut owners = Vec::new();
            registry.sweep(scope, |owner| owners.push(owner));
            owners.sort_unstable();
            owners
        };
        registry.enter(5, at(1, Some(0)), 15);
        assert!(registry.remove(5) && !registry.remove(5));
        assert_eq!(named(LossScope::MemoryBefore(1)), [11]);
        assert_eq!(named(LossScope::MemoryBefore(1)), [0; 0]);
        assert_eq!(named(LossScope::SessionsBefore(2)), [12]);
        assert_eq!(named(LossScope::MemoryBefore(2)), [13]);
        assert_eq!(named(LossScope::SessionsBefore(3)), [14]);
    }
}
