//! Whether a ban matches a response: the rules of `ban_evaluate()` (Varnish: `cache/cache_ban.c`).
//!
//! A test that cannot be evaluated matches: on a header that the record or the request to the origin lacks because of
//! this cache, or with a pattern that cannot be compiled.

use objmapper_ban::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};

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

/// The tests of a ban with their patterns compiled.
pub(crate) struct CompiledBan {
    time: f64,
    tests: Vec<CompiledTest>,
}

struct CompiledTest {
    test: Test,
    /// `None`: the test has no pattern, or one that cannot be compiled.
    regex: Option<Box<dyn Regex>>,
}

impl std::fmt::Debug for CompiledBan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.tests.iter().map(|compiled| &compiled.test)).finish()
    }
}

impl CompiledBan {
    pub(crate) fn new(ban: &Ban, regexes: &dyn Regexes) -> Self {
        let compile = |test: &Test| {
            let regex = match test {
                Test::Text { oper: TextOper::Match | TextOper::NoMatch, text, .. } => regexes.compile(text),
                _ => None,
            };
            CompiledTest { test: test.clone(), regex }
        };
        Self { time: ban.time, tests: ban.tests.iter().map(compile).collect() }
    }

    /// Returns true if it matches a response and the request that it would answer. A test that cannot be evaluated
    /// matches.
    pub(crate) fn matches(&self, head: &Head, request: &dyn RequestView) -> bool {
        self.tests.iter().all(|CompiledTest { test, regex }| match test {
            Test::Text { subject, oper, text } => text_matches(subject, *oper, text, regex.as_deref(), head, request),
            Test::Number { subject, oper, number } => number_matches(*subject, *oper, *number, self.time, head),
        })
    }
}

fn text_matches(
    subject: &Subject,
    oper: TextOper,
    text: &[u8],
    regex: Option<&dyn Regex>,
    head: &Head,
    request: &dyn RequestView,
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
    };
    let is_match = |found: &[u8]| regex.and_then(|regex| regex.is_match(found));
    match (oper, found) {
        // An absent header is not equal to anything, and neither matches nor does not match.
        (TextOper::Equal | TextOper::Match | TextOper::NoMatch, None) => false,
        (TextOper::NotEqual, None) => true,
        (TextOper::Equal, Some(found)) => found == text,
        (TextOper::NotEqual, Some(found)) => found != text,
        (TextOper::Match, Some(found)) => is_match(found).unwrap_or(true),
        (TextOper::NoMatch, Some(found)) => !is_match(found).unwrap_or(false),
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
