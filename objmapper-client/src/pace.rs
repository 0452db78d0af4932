//! The pace of attempts to connect: exponential back-off with jitter and a cap.
//!
//! A connection alone is no success: a peer may accept and close every one. So only an
//! answered call resets the back-off; a connection that is lost before one counts as a failed attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// The pause after the first failure; it doubles up to the configured one.
const FIRST: Duration = Duration::from_millis(10);

/// The time of the next attempt.
#[derive(Debug)]
pub(crate) struct Pace {
    max: Duration,
    pause: Duration,
    next: Instant,
}

impl Pace {
    /// Makes a pace whose first attempt is due at once, and whose pauses are at most `max`.
    pub(crate) fn new(max: Duration, now: Instant) -> Self {
        Self { max, pause: FIRST.min(max), next: now }
    }

    /// Returns the time until the next attempt; zero if it is due.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Notes a failed attempt, or a connection that was lost before it had answered a call.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.failed_with(now, RandomState::new().hash_one(now));
    }

    /// Sets the next attempt between half of the pause and all of it, so that clients of one store do not reconnect in step.
    fn failed_with(&mut self, now: Instant, random: u64) {
        let half = self.pause / 2;
        let share = f64::from(random as u32) / f64::from(u32::MAX);
        self.next = now + half + half.mul_f64(share);
        self.pause = (self.pause * 2).min(self.max);
    }

    /// Notes an answered call.
    pub(crate) fn answered(&mut self, now: Instant) {
        self.pause = FIRST.min(self.max);
        self.next = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_until_a_call_is_answered() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut pace = Pace::new(ms(35), now);
        assert_eq!(pace.left(now), Duration::ZERO);
        for max in [10, 20, 35, 35] {
            let mut low = Pace { next: now, ..pace };
            low.failed_with(now, 0);
            assert_eq!(low.left(now), ms(max) / 2);
            pace.failed_with(now, u64::MAX);
            assert_eq!(pace.left(now), ms(max));
        }
        assert_eq!(pace.left(now + ms(34)), ms(1));
        pace.answered(now);
        assert_eq!(pace.left(now), Duration::ZERO);
        pace.failed_with(now, u64::MAX);
        assert_eq!(pace.left(now), ms(10));
    }
}
