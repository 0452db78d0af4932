//! Whether the store takes bodies (`storage.<name>.happy`), and when that is tested.
//!
//! A body is taken when its draft was created, written and published. A failure of any step sets `failing`; only a
//! complete publication clears it, because on a full disk every draft is created and none is published.
//!
//! VCL may choose another storage while `happy` is false, so that no fetch would find out that the store takes bodies
//! again. So the background thread publishes a body of its own, with doubling pauses ([`Health::is_probe_due`]).

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::log::Repeating;

/// The pause between the failure and the first probe.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two probes.
const MAX_PAUSE: Duration = Duration::from_secs(32);
/// A failure that comes later than this after the last probe begins with the shortest pause again.
const CALM: Duration = Duration::from_secs(60);

pub(crate) struct Health {
    failing: AtomicBool,
    changes: Repeating,
    probes: Mutex<Probes>,
}

struct Probes {
    pause: Duration,
    last: Option<Instant>,
}

impl Health {
    pub(crate) fn new(ident: &str) -> Health {
        let probes = Mutex::new(Probes { pause: FIRST_PAUSE, last: None });
        Health { failing: AtomicBool::new(false), changes: Repeating::new(ident), probes }
    }

    /// Returns true if the last body, or probe, was not taken.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Relaxed)
    }

    /// Notes that a body was not taken. Returns true if the one before was.
    pub(crate) fn record_failure(&self, message: impl FnOnce() -> String) -> bool {
        self.record_failure_at(Instant::now(), message)
    }

    fn record_failure_at(&self, now: Instant, message: impl FnOnce() -> String) -> bool {
        // All workers share this cache line: it is written only if the value changes.
        let changed = !self.is_failing() && !self.failing.swap(true, Relaxed);
        if changed {
            let mut probes = self.probes.lock();
            if probes.last.is_none_or(|last| now.duration_since(last) > CALM) {
                probes.pause = FIRST_PAUSE;
            }
            probes.last = Some(now);
            drop(probes);
            self.changes.line(message);
        }
        changed
    }

    /// Notes that a body was published. Returns true if the one before was not.
    pub(crate) fn record_success(&self) -> bool {
        let changed = self.is_failing() && self.failing.swap(false, Relaxed);
        if changed {
            self.changes.line(|| "objmapper takes bodies again".to_owned());
        }
        changed
    }

    /// Returns true if a probe is due, and doubles the pause to the next one.
    pub(crate) fn is_probe_due(&self, now: Instant) -> bool {
        if !self.is_failing() {
            return false;
        }
        let mut probes = self.probes.lock();
        let due = probes.last.is_none_or(|last| now.duration_since(last) >= probes.pause);
        if due {
            probes.last = Some(now);
            probes.pause = (probes.pause * 2).min(MAX_PAUSE);
        }
        due
    }

    /// Makes a probe due at once, because the store was connected again.
    pub(crate) fn probe_soon(&self) {
        *self.probes.lock() = Probes { pause: FIRST_PAUSE, last: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_come_ever_more_seldom_until_a_body_is_taken() {
        let health = Health::new("s0");
        let start = Instant::now();
        assert!(!health.is_probe_due(start), "nothing has failed");
        assert!(health.record_failure_at(start, String::new) && !health.record_failure_at(start, String::new));
        assert!(health.is_failing());
        let mut now = start + Duration::from_secs(1);
        let mut pauses = Vec::new();
        let mut last = now;
        for _ in 0..200 {
            if health.is_probe_due(now) {
                pauses.push(now.duration_since(last).as_secs());
                last = now;
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses, [0, 2, 4, 8, 16, 32, 32, 32, 32, 32]);
        assert!(health.record_success() && !health.record_success() && !health.is_failing());
        assert!(health.record_failure_at(now, String::new));
        assert!(!health.is_probe_due(now + FIRST_PAUSE), "not at once after a failure that follows soon");
        health.probe_soon();
        assert!(health.is_probe_due(now));
    }
}
