//! varnishd's regular expressions, for the bans of a second level.

use objmapper_records::{Regex, Regexes};

/// Compiles expressions as varnishd does.
pub(crate) struct Compiler;

struct Compiled(varnishd::regex::Regex);

impl Regexes for Compiler {
    fn compile(&self, pattern: &[u8]) -> Option<Box<dyn Regex>> {
        Some(Box::new(Compiled(varnishd::regex::Regex::compile(pattern)?)))
    }
}

impl Regex for Compiled {
    fn is_match(&self, subject: &[u8]) -> Option<bool> {
        self.0.is_match(subject)
    }
}
