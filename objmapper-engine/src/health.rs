//! Whether objmapper takes bodies.
//!
//! A body is taken when it was created, written and published; the first of these steps that fails is the failure of the
//! whole. A step that succeeds says nothing: on a full disk every draft is created, and none is published.
//!
//! VCL may send bodies elsewhere while objmapper does not take them (`storage.<name>.happy`), so that none would show that
//! it does again. Therefore the background thread tries with a body of its own ([`Health::is_probe_due`]).

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::log::Repeating;

/// Between the failure and the first probe.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Between two probes at most.
const MAX_PAUSE: Duration = Duration::from_secs(32);
/// After a failure that comes later than this after the last probe, pauses begin anew.
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

    /// A body could not be taken. Returns true if the last one was.
    pub(crate) fn record_failure(&self, message: impl FnOnce() -> String) -> bool {
        self.record_failure_at(Instant::now(), message)
    }

    fn record_failure_at(&self, now: Instant, message: impl FnOnce() -> String) -> bool {
        // All workers share it: it is written to only if it changes.
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

    /// A body was published. Returns true if the last one was not.
    pub(crate) fn record_success(&self) -> bool {
        let changed = self.is_failing() && self.failing.swap(false, Relaxed);
        if changed {
            self.changes.line(|| "objmapper takes bodies again".to_owned());
        }
        changed
    }

    /// Returns true if it should be tried now whether objmapper takes bodies again; the next time is later then.
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

    /// objmapper was connected again: it is tried at once.
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
