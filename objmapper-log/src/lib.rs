//! Log lines for an operator, and a bound on those that can repeat.
//!
//! A line that a peer, a client or a disk can cause repeatedly goes through a [`RateLimited`], which counts
//! the lines that it leaves out. The next line that it admits ends with their number:
//!
//! ```
//! use objmapper_log::RateLimited;
//! use std::time::Duration;
//!
//! static REFUSALS: RateLimited = RateLimited::new(5, Duration::from_secs(60));
//!
//! if let Some(left_out) = REFUSALS.admit() {
//!     eprintln!("a connection is refused: uid 33 is on no allow-list{left_out}");
//! }
//! ```

use std::fmt;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Writes `objmapper <part> <ident>: <message>` to standard error, which varnishd passes from its child to syslog. In one
/// piece: the storage engine and the VMOD have a copy of the standard library each, with a lock of its own. A full or closed
/// standard error is no reason to fail.
pub fn stderr_line(part: &str, ident: &str, message: &str) {
    let _ = std::io::stderr().write_all(format!("objmapper {part} {ident}: {message}\n").as_bytes());
}

/// Admits a limited number of lines in each interval. May be a `static`; callable from any thread.
#[derive(Debug)]
pub struct RateLimited {
    lines: u32,
    interval: Duration,
    window: Mutex<Window>,
}

/// The current interval.
#[derive(Debug)]
struct Window {
    /// `None` before the first line.
    began: Option<Instant>,
    admitted: u32,
    left_out: u64,
}

/// The number of lines that were left out since the last admitted one. Its `Display` is the end of a line: empty for
/// zero, otherwise ` (N similar lines left out)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(pub u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 similar line left out)"),
            n => write!(f, " ({n} similar lines left out)"),
        }
    }
}

impl RateLimited {
    /// Admits at most `lines` lines per `interval`. An interval begins with the first line after the previous one has ended.
    #[must_use]
    pub const fn new(lines: u32, interval: Duration) -> Self {
        Self { lines, interval, window: Mutex::new(Window { began: None, admitted: 0, left_out: 0 }) }
    }

    /// Admits one line, or counts it as left out and returns `None`.
    pub fn admit(&self) -> Option<LeftOut> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<LeftOut> {
        // The window is consistent after every statement below, so a poisoned lock is as good as any.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.saturating_duration_since(began) >= self.interval) {
            window.began = Some(now);
            window.admitted = 0;
        }
        if window.admitted >= self.lines {
            window.left_out += 1;
            return None;
        }
        window.admitted += 1;
        Some(LeftOut(std::mem::take(&mut window.left_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_rate_are_counted_and_told_with_the_next() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let log = RateLimited::new(2, second);
        assert_eq!(log.admit_at(start), Some(LeftOut(0)));
        assert_eq!(log.admit_at(start), Some(LeftOut(0)));
        for _ in 0..7 {
            assert_eq!(log.admit_at(start + second / 2), None);
        }
        assert_eq!(log.admit_at(start + second), Some(LeftOut(7)), "a new interval");
        assert_eq!(log.admit_at(start + second), Some(LeftOut(0)));
        assert_eq!(log.admit_at(start + second), None);
        // An interval begins with a line, not with the end of the one before.
        let late = start + 10 * second;
        assert_eq!(log.admit_at(late), Some(LeftOut(1)));
        assert_eq!(log.admit_at(late + second / 2), Some(LeftOut(0)));
        assert_eq!(log.admit_at(late + second / 2), None);
    }

    #[test]
    fn the_end_of_a_line() {
        let texts = [0, 1, 2].map(|n| format!("refused{}", LeftOut(n)));
        assert_eq!(texts, ["refused", "refused (1 similar line left out)", "refused (2 similar lines left out)"]);
    }
}
