//! Regular expressions are the caller's: bans are written for varnishd's.

/// Compiles the regular expressions of bans.
pub trait Regexes: Send + Sync {
    /// Compiles a pattern. `None`: it cannot be compiled here. A ban whose pattern cannot be compiled is taken to match,
    /// as far as that test goes.
    fn compile(&self, pattern: &[u8]) -> Option<Box<dyn Regex>>;
}

/// A compiled regular expression.
pub trait Regex: Send + Sync {
    /// Whether it matches somewhere in `subject`. `None`: it gave up (a limit was reached), which is taken for what
    /// invalidates the record.
    fn is_match(&self, subject: &[u8]) -> Option<bool>;
}
