//! What was invalidated lately.
//!
//! An object that is being fetched is in no index before its head has come. A fetch takes a [`Mark`] before it asks, and when the
//! object is there it is compared with all that was invalidated since. The list is bounded; a mark that is older than all that is kept
//! cannot be decided, and is answered as if the object was invalidated.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use parking_lot::Mutex;

use crate::name::Name;

/// Entries that are kept: at 10,000 a second those of six seconds.
const KEPT: usize = 64 << 10;

/// A point in the sequence of invalidations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// What an invalidation does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It becomes stale; grace and keep stay.
    Soft,
    /// It is not served again.
    Hard,
}

/// The list.
#[derive(Debug, Default)]
pub struct Recent {
    /// The number of the next entry.
    next: AtomicU64,
    /// The newest last. Its last one has the number `next - 1`.
    entries: Mutex<VecDeque<(Name, Effect)>>,
}

impl Recent {
    /// The mark of this moment.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.next.load(Acquire))
    }

    /// Adds an invalidation.
    pub fn add(&self, name: Name, effect: Effect) {
        let mut entries = self.entries.lock();
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back((name, effect));
        self.next.fetch_add(1, Release);
    }

    /// Returns what the invalidations since `mark` do to an object with these names; the strongest of several.
    #[must_use]
    pub fn since(&self, mark: Mark, names: &[Name]) -> Option<Effect> {
        if self.mark() == mark {
            return None;
        }
        let entries = self.entries.lock();
        let next = self.next.load(Acquire);
        let Ok(newer) = usize::try_from(next.saturating_sub(mark.0)) else { return Some(Effect::Hard) };
        if newer > entries.len() {
            return Some(Effect::Hard);
        }
        entries.range(entries.len() - newer..).filter(|(name, _)| names.contains(name)).map(|(_, effect)| *effect).max()
    }
}
