//! Whether a ban matches a record: the rules of `ban_evaluate()` (Varnish: `cache/cache_ban.c`).
//!
//! A test that cannot be evaluated matches: on a header that the record or the request to the origin lacks because of
//! this cache, or with a pattern that cannot be compiled.

use std::collections::HashMap;
use std::sync::Arc;

use crate::invalidation::bans::spec::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};
use crate::lookup::request::RequestView;
use crate::record::head::Head;
use crate::record::never_stored::is_never_stored;
use crate::regex::{Regex, Regexes};

/// Headers that varnishd leaves out of the request to the origin (http_FilterReq() with HTTPH_R_FETCH,
/// tbl/http_headers.h), or sets itself, so that what the client sent in them is not known.
const FILTERED: &[&str] = &[
    "Accept-Ranges",
    "Cache-Control",
    "Connection",
    "Content-Range",
    "HTTP2-Settings",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Range",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    // Set by varnishd if it handles gzip.
    "Accept-Encoding",
];

/// Compiled patterns, by their text. The value is `None` for one that cannot be compiled.
#[derive(Default, Clone)]
pub(crate) struct Patterns(HashMap<Vec<u8>, Option<Arc<dyn Regex>>>);

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Patterns({})", self.0.len())
    }
}

impl Patterns {
    /// Compiles the patterns of `bans`; reuses those that `former` has.
    pub(crate) fn of<'a>(bans: impl Iterator<Item = &'a Ban>, former: &Self, regexes: &dyn Regexes) -> Self {
        let mut patterns = HashMap::new();
        for test in bans.flat_map(|ban| &ban.tests) {
            if let Test::Text { oper: TextOper::Match | TextOper::NoMatch, text, .. } = test {
                let regex = || match former.0.get(text) {
                    Some(regex) => regex.clone(),
                    None => regexes.compile(text).map(Arc::from),
                };
                patterns.entry(text.clone()).or_insert_with(regex);
            }
        }
        Self(patterns)
    }

    /// Returns true if the pattern matches; `None` if it cannot be compiled, or gave up.
    fn is_match(&self, pattern: &[u8], subject: &[u8]) -> Option<bool> {
        self.0.get(pattern)?.as_ref()?.is_match(subject)
    }
}

/// Returns true if a ban matches a response and the request that it would answer. A test that cannot be evaluated
/// matches.
pub(crate) fn matches(ban: &Ban, key: &[u8], head: &Head, request: &dyn RequestView, patterns: &Patterns) -> bool {
    ban.tests.iter().all(|test| match test {
        Test::Text { subject, oper, text } => text_matches(subject, *oper, text, head, request, patterns),
        Test::Key(text) => text == key,
        Test::Number { subject, oper, number } => number_matches(*subject, *oper, *number, ban.time, head),
    })
}

fn text_matches(
    subject: &Subject,
    oper: TextOper,
    text: &[u8],
    head: &Head,
    request: &dyn RequestView,
    patterns: &Patterns,
) -> bool {
    let status;
    let found = match subject {
        Subject::Url => Some(request.url()),
        Subject::RequestHeader(name) => {
            if FILTERED.iter().any(|filtered| name.eq_ignore_ascii_case(filtered.as_bytes())) {
                return true;
            }
            request.header(name)
        }
        Subject::ObjectHeader(name) => {
            if is_never_stored(name) {
                return true;
            }
            head.headers.get(name)
        }
        Subject::Status => {
            status = format!("{:03}", head.status % 1000);
            Some(status.as_bytes())
        }
        // A duration is compared with a number only.
        Subject::Duration(_) => return true,
    };
    match (oper, found) {
        // An absent header is not equal to anything, and neither matches nor does not match.
        (TextOper::Equal | TextOper::Match | TextOper::NoMatch, None) => false,
        (TextOper::NotEqual, None) => true,
        (TextOper::Equal, Some(found)) => found == text,
        (TextOper::NotEqual, Some(found)) => found != text,
        (TextOper::Match, Some(found)) => patterns.is_match(text, found).unwrap_or(true),
        (TextOper::NoMatch, Some(found)) => !patterns.is_match(text, found).unwrap_or(false),
    }
}

fn number_matches(subject: DurationOf, oper: NumberOper, number: f64, ban_time: f64, head: &Head) -> bool {
    let (found, number) = match subject {
        DurationOf::Ttl => (f64::from(head.ttl) + head.t_origin, number + ban_time),
        DurationOf::Age => (-head.t_origin, -(ban_time - number)),
        DurationOf::Grace => (f64::from(head.grace), number),
        DurationOf::Keep => (f64::from(head.keep), number),
    };
    match oper {
        NumberOper::Equal => found == number,
        NumberOper::NotEqual => found != number,
        NumberOper::Greater => found > number,
        NumberOper::GreaterOrEqual => found >= number,
        NumberOper::Less => found < number,
        NumberOper::LessOrEqual => found <= number,
    }
}
