//! Regular expressions, which the caller provides: bans are written for varnishd's own (PCRE2).

/// Compiles the regular expressions of bans.
pub trait Regexes: Send + Sync {
    /// Compiles a pattern. `None`: it cannot be compiled. A test with such a pattern counts as a match.
    fn compile(&self, pattern: &[u8]) -> Option<Box<dyn Regex>>;
}

/// A compiled regular expression.
pub trait Regex: Send + Sync {
    /// Returns true if it matches anywhere in `subject`. `None`: a limit of the matcher was reached, and the test
    /// counts as one that invalidates the record.
    fn is_match(&self, subject: &[u8]) -> Option<bool>;
}
