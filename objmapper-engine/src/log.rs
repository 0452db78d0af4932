//! Lines for an operator, on the child's standard error, which varnishd passes to syslog.

use std::io::Write;
use std::time::Duration;

use objmapper_log::RateLimited;

/// Writes a line, in one piece: another library's copy of the standard library, with a lock of its own, writes there too. A
/// full or closed standard error is no reason to fail.
pub fn line(ident: &str, message: &str) {
    let _ = std::io::stderr().write_all(format!("objmapper storage {ident}: {message}\n").as_bytes());
}

/// One kind of line that can repeat, bounded in rate.
pub struct Repeating {
    ident: String,
    rate: RateLimited,
}

impl Repeating {
    /// So many lines of this kind a minute; what is left out is counted, and said with the next one.
    const LINES: u32 = 4;

    /// For the storage `ident`.
    pub fn new(ident: &str) -> Repeating {
        Repeating { ident: ident.to_owned(), rate: RateLimited::new(Self::LINES, Duration::from_secs(60)) }
    }

    /// Writes the line, unless there were too many.
    pub fn line(&self, message: impl FnOnce() -> String) {
        if let Some(left_out) = self.rate.admit() {
            line(&self.ident, &format!("{}{left_out}", message()));
        }
    }
}
