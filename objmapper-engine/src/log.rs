//! One line per change of state, where an operator looks: the child's standard error, which varnishd passes to syslog.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// Writes a line. A full or closed standard error is no reason to fail.
pub fn line(ident: &str, message: &str) {
    let _ = writeln!(std::io::stderr(), "objmapper storage {ident}: {message}");
}

/// Says when things begin to fail, and when they work again; the counters say how often.
pub(crate) struct StateLog {
    ident: String,
    failing: AtomicBool,
}

impl StateLog {
    pub(crate) fn new(ident: &str) -> StateLog {
        StateLog { ident: ident.to_owned(), failing: AtomicBool::new(false) }
    }

    pub(crate) fn fails(&self, message: &str) {
        if !self.failing.swap(true, Relaxed) {
            line(&self.ident, message);
        }
    }

    pub(crate) fn works(&self) {
        if self.failing.load(Relaxed) && self.failing.swap(false, Relaxed) {
            line(&self.ident, "objmapper takes bodies again");
        }
    }
}
