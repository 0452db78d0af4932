//! Lines for an operator, on the child's standard error, which varnishd passes to syslog. A line that can repeat is
//! bounded in rate ([`Repeating`]).

use std::time::Duration;

use objmapper_log::RateLimited;

/// Writes a line of the storage `ident`.
pub fn line(ident: &str, message: &str) {
    objmapper_log::stderr_line("storage", ident, message);
}

/// One kind of line that can repeat, bounded in rate.
pub struct Repeating {
    ident: String,
    rate: RateLimited,
}

impl Repeating {
    /// Lines of this kind in a minute. Further ones are counted, and the next line says how many.
    const LINES: u32 = 4;

    /// Makes a bound for lines about the storage `ident`.
    pub fn new(ident: &str) -> Repeating {
        Repeating { ident: ident.to_owned(), rate: RateLimited::new(Self::LINES, Duration::from_secs(60)) }
    }

    /// Writes the line, if the rate allows it.
    pub fn line(&self, message: impl FnOnce() -> String) {
        if let Some(left_out) = self.rate.admit() {
            line(&self.ident, &format!("{}{left_out}", message()));
        }
    }
}
