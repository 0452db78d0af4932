//! The holders of pins of records. More than one body may need a record's pin, but the store pins an object once per
//! session, however often it is asked to, and one release undoes all.
//!
//! A pin is held (`held`), then released (`released`, until the release is known to have reached the store). A look-up
//! that needs a pin again waits until a release under way has arrived, which would undo it. While a commit is under
//! way, releases are postponed: the commit may pin an object that another fetch has adopted already.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

/// A record in one session of ours: the session's number (0 for the store in this process) and the object's.
pub(super) type Pinned = (u64, u64);

#[derive(Debug, Default)]
struct State {
    /// The number of bodies, and of look-ups under way, that need each pin; never 0.
    held: HashMap<Pinned, u32>,
    /// Releases that may not have reached the store yet.
    released: HashSet<Pinned>,
    /// Commits under way. Each may pin an object that another fetch adopts and releases before the committing thread
    /// has entered it in `held`.
    committing: u32,
    /// Pins whose last holder went while a commit was under way.
    postponed: Vec<Pinned>,
}

/// The holders of each pin.
#[derive(Debug)]
pub(super) struct Pins {
    state: Mutex<State>,
    /// True if releases reach the store later than they are called for.
    deferred: bool,
}

impl Pins {
    /// Pins in a store that carries releases out at once, or, if `deferred`, one that receives them later.
    pub(super) fn new(deferred: bool) -> Pins {
        Pins { state: Mutex::default(), deferred }
    }

    /// Adds a holder of this pin, before the caller asks the store for it. Returns true if a release of it may still be
    /// under way: that must have reached the store before the caller asks.
    #[must_use]
    pub(super) fn acquire(&self, pinned: Pinned) -> bool {
        let mut state = self.state.lock();
        *state.held.entry(pinned).or_default() += 1;
        state.released.contains(&pinned)
    }

    /// Removes a holder. If it was the last one, calls `release`, under the lock: it must not wait.
    pub(super) fn release(&self, pinned: Pinned, release: impl FnOnce(Pinned)) {
        let mut state = self.state.lock();
        let Some(count) = state.held.get_mut(&pinned) else { return };
        *count -= 1;
        if *count == 0 {
            state.held.remove(&pinned);
            if state.committing > 0 {
                state.postponed.push(pinned);
            } else {
                if self.deferred {
                    state.released.insert(pinned);
                }
                release(pinned);
            }
        }
    }

    /// Returns true if the pin has a holder.
    pub(super) fn is_held(&self, pinned: Pinned) -> bool {
        self.state.lock().held.contains_key(&pinned)
    }

    /// Calls `commit`, which returns the pin that it made, and makes the caller its holder. Releases are postponed
    /// until then.
    pub(super) fn committing<T>(
        &self,
        commit: impl FnOnce() -> Result<(T, Pinned), super::Failure>,
        mut release: impl FnMut(Pinned),
    ) -> Result<T, super::Failure> {
        self.state.lock().committing += 1;
        let outcome = commit();
        let mut state = self.state.lock();
        state.committing -= 1;
        if let Ok((_, pinned)) = &outcome {
            *state.held.entry(*pinned).or_default() += 1;
        }
        if state.committing == 0 {
            for pinned in std::mem::take(&mut state.postponed) {
                if !state.held.contains_key(&pinned) {
                    if self.deferred {
                        state.released.insert(pinned);
                    }
                    release(pinned);
                }
            }
        }
        outcome.map(|(value, _)| value)
    }

    /// Returns the releases of which it is not known that they have reached the store. The caller passes them to
    /// [`Pins::arrived`] when it is.
    pub(super) fn under_way(&self) -> Vec<Pinned> {
        self.state.lock().released.iter().copied().collect()
    }

    /// Notes that these releases have reached the store.
    pub(super) fn arrived(&self, releases: &[Pinned]) {
        let mut state = self.state.lock();
        for pinned in releases {
            state.released.remove(pinned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_releases_and_a_release_under_way_is_known() {
        let pins = Pins::new(true);
        let mut released = Vec::new();
        assert!(!pins.acquire((1, 7)) && !pins.acquire((1, 7)));
        pins.release((1, 7), |pinned| released.push(pinned));
        assert!(released.is_empty() && pins.is_held((1, 7)));
        pins.release((1, 7), |pinned| released.push(pinned));
        assert_eq!((released.as_slice(), pins.is_held((1, 7))), ([(1, 7)].as_slice(), false));
        assert!(pins.acquire((1, 7)), "the release may overtake what is asked for now");
        pins.arrived(&pins.under_way());
        assert!(!pins.acquire((1, 7)));
    }

    #[test]
    fn what_an_adopter_releases_before_its_publisher_has_taken_note_stays_pinned() {
        let pins = Pins::new(false);
        let mut released = Vec::new();
        let outcome = pins.committing(
            || {
                assert!(!pins.acquire((0, 3)) && !pins.acquire((0, 4)));
                pins.release((0, 3), |_| unreachable!("a commit is under way"));
                pins.release((0, 4), |_| unreachable!("a commit is under way"));
                Ok(((), (0, 3)))
            },
            |pinned| released.push(pinned),
        );
        assert!(outcome.is_ok());
        assert_eq!((released.as_slice(), pins.is_held((0, 3))), ([(0, 4)].as_slice(), true));
        assert!(pins.under_way().is_empty());
    }
}
