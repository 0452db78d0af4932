//! The regular expressions of bans, which are varnishd's: PCRE2 with the options that varnishd compiles bans with.

use objmapper_records::{Regex, Regexes};

/// PCRE2.
#[derive(Debug)]
pub(crate) struct Pcre2;

struct Compiled(pcre2::bytes::Regex);

impl Regexes for Pcre2 {
    fn compile(&self, pattern: &[u8]) -> Option<Box<dyn Regex>> {
        let regex = pcre2::bytes::Regex::new(std::str::from_utf8(pattern).ok()?).ok()?;
        Some(Box::new(Compiled(regex)))
    }
}

impl Regex for Compiled {
    fn is_match(&self, subject: &[u8]) -> Option<bool> {
        self.0.is_match(subject).ok()
    }
}
