//! One line per change of state, where an operator looks: the child's standard error, which varnishd passes to syslog.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// Writes a line, in one piece: another library's copy of the standard library, with a lock of its own, writes there too. A
/// full or closed standard error is no reason to fail.
pub fn line(ident: &str, message: &str) {
    let _ = std::io::stderr().write_all(format!("objmapper storage {ident}: {message}\n").as_bytes());
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
