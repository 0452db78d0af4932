//! What varnishd's bans mean here.

use proptest::prelude::*;

use super::evaluate::{Patterns, matches};
use super::log::{Healed, Log};
use super::spec::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};
use crate::lookup::request::RequestView;
use crate::record::bytes::{Malformed, Reader};
use crate::record::head::{Head, Headers};
use crate::record::stored::Mark;
use crate::regex::{Regex, Regexes};

/// Two bans as varnishd 7.7.0 had them in its memory:
/// `req.url ~ ^/vector-one && obj.http.x-tag == tag && req.http.host != example.com`
const TEXT: &str = include_str!("vectors/text.hex");
/// `obj.age > 3h && obj.ttl <= 90s && obj.grace == 0s && obj.keep < 1d && obj.status !~ "^vector-two"`
const DURATION: &str = include_str!("vectors/duration.hex");

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.trim_ascii().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

struct Engine;

impl Regexes for Engine {
    fn compile(&self, pattern: &[u8]) -> Option<Box<dyn Regex>> {
        let regex = regex::bytes::Regex::new(std::str::from_utf8(pattern).ok()?).ok()?;
        Some(Box::new(Compiled(regex)))
    }
}

struct Compiled(regex::bytes::Regex);

impl Regex for Compiled {
    fn is_match(&self, subject: &[u8]) -> Option<bool> {
        // A stand-in for a limit that is reached.
        if subject == b"too hard" { None } else { Some(self.0.is_match(subject)) }
    }
}

struct Request(Vec<u8>, Vec<(&'static str, &'static str)>);

impl RequestView for Request {
    fn url(&self) -> &[u8] {
        &self.0
    }

    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        self.1.iter().find(|(n, _)| n.as_bytes().eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
    }
}

fn request() -> Request {
    Request(b"/some/url".to_vec(), vec![("Host", "example.com"), ("X-Hard", "too hard")])
}

fn head() -> Head {
    let mut headers = Headers::default();
    assert!(headers.push(b"X-Tag: red blue") && headers.push(b"Content-Type:text/html"));
    Head {
        status: 404,
        reason: Vec::new(),
        headers,
        t_origin: 1000.0,
        ttl: 60.0,
        grace: 10.0,
        keep: 5.0,
        gzip_bits: None,
        flags: 0,
        origin: None,
    }
}

fn text(subject: Subject, oper: TextOper, text: &str) -> Test {
    Test::Text { subject, oper, text: text.into() }
}

fn ban(time: f64, tests: Vec<Test>) -> Ban {
    Ban { time, timeless: true, tests }
}

fn is_match(ban: &Ban) -> bool {
    let patterns = Patterns::of(std::iter::once(ban), &Patterns::default(), &Engine);
    matches(ban, b"key", &head(), &request(), &patterns)
}

#[test]
fn what_varnishd_made() {
    let ban = Ban::from_varnishd(&bytes(TEXT)).unwrap().unwrap();
    assert!(ban.timeless && ban.time > 1.795e9);
    let expected = [
        text(Subject::Url, TextOper::Match, "^/vector-one"),
        text(Subject::ObjectHeader(b"x-tag".to_vec()), TextOper::Equal, "tag"),
        text(Subject::RequestHeader(b"host".to_vec()), TextOper::NotEqual, "example.com"),
    ];
    assert_eq!(ban.tests, expected);

    let ban = Ban::from_varnishd(&bytes(DURATION)).unwrap().unwrap();
    assert!(!ban.timeless);
    let number = |subject, oper, number| Test::Number { subject, oper, number };
    let expected = [
        number(DurationOf::Age, NumberOper::Greater, 10800.0),
        number(DurationOf::Ttl, NumberOper::LessOrEqual, 90.0),
        number(DurationOf::Grace, NumberOper::Equal, 0.0),
        number(DurationOf::Keep, NumberOper::Less, 86400.0),
        text(Subject::Status, TextOper::NoMatch, "^vector-two"),
    ];
    assert_eq!(ban.tests, expected);
}

#[test]
fn what_varnishd_did_not_make() {
    for hex in [TEXT, DURATION] {
        let good = bytes(hex);
        for len in 0..good.len() {
            assert!(Ban::from_varnishd(&good[..len]).is_err(), "{len}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(Ban::from_varnishd(&longer).is_err());
        for at in 0..good.len() {
            let mut other = good.clone();
            other[at] ^= 0x80;
            // Whatever it is, it does not panic.
            let _ = Ban::from_varnishd(&other);
        }
        let mut done = good;
        done[12] |= 4;
        assert_eq!(Ban::from_varnishd(&done), Ok(None));
    }
}

#[test]
fn texts() {
    use Subject::{ObjectHeader, RequestHeader, Status, Url};
    use TextOper::{Equal, Match, NoMatch, NotEqual};
    let obj = |name: &str| ObjectHeader(name.into());
    let req = |name: &str| RequestHeader(name.into());
    for (subject, oper, value, expected) in [
        (Url, Equal, "/some/url", true),
        (Url, Equal, "/some", false),
        (Url, NotEqual, "/some", true),
        (Url, NotEqual, "/some/url", false),
        (Url, Match, "^/some", true),
        (Url, Match, "^some", false),
        (Url, NoMatch, "^some", true),
        (Url, NoMatch, "url$", false),
        (req("host"), Equal, "example.com", true),
        (req("HOST"), Match, "^exam", true),
        (obj("x-tag"), Match, "blue", true),
        (obj("X-Tag"), Equal, "red blue", true),
        (obj("content-type"), Equal, "text/html", true),
        (Status, Equal, "404", true),
        (Status, Match, "^[45]", true),
        (Status, NotEqual, "404", false),
        // Absent: as ban_evaluate() has it for a null pointer.
        (obj("none"), Equal, "", false),
        (obj("none"), NotEqual, "x", true),
        (obj("none"), Match, ".*", false),
        (obj("none"), NoMatch, "x", false),
        (req("none"), NotEqual, "x", true),
        (req("none"), NoMatch, "x", false),
        // What the client sent is not known here.
        (req("Cache-Control"), Equal, "x", true),
        (req("range"), NoMatch, ".*", true),
        (req("Accept-Encoding"), Equal, "x", true),
        // What the object said in varnishd is not known here.
        (obj("content-length"), Equal, "1000", true),
        (obj("Age"), NoMatch, "1", true),
        // Cannot be told: cannot be compiled, or a limit was reached.
        (Url, Match, "(", true),
        (Url, NoMatch, "(", true),
        (req("x-hard"), Match, "nothing like it", true),
        (req("x-hard"), NoMatch, "too", true),
    ] {
        let name = format!("{subject:?} {oper:?} {value}");
        assert_eq!(is_match(&ban(0.0, vec![text(subject, oper, value)])), expected, "{name}");
    }
}

#[test]
fn a_header_that_no_record_holds_matches() {
    for name in crate::record::never_stored::names() {
        for oper in [TextOper::Equal, TextOper::NotEqual, TextOper::Match, TextOper::NoMatch] {
            let subject = Subject::ObjectHeader(name.to_vec());
            assert!(is_match(&ban(0.0, vec![text(subject, oper, "x")])), "{} {oper:?}", name.escape_ascii());
        }
    }
}

#[test]
fn numbers() {
    use DurationOf::{Age, Grace, Keep, Ttl};
    use NumberOper::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    // At the time of the ban the object is 20 s old, and fresh for another 40 s.
    for (subject, oper, number, expected) in [
        (Ttl, Greater, 39.0, true),
        (Ttl, Greater, 40.0, false),
        (Ttl, GreaterOrEqual, 40.0, true),
        (Ttl, Less, 41.0, true),
        (Ttl, Less, 40.0, false),
        (Ttl, LessOrEqual, 40.0, true),
        (Ttl, Equal, 40.0, true),
        (Ttl, NotEqual, 40.0, false),
        (Age, Greater, 19.0, true),
        (Age, Greater, 20.0, false),
        (Age, Less, 21.0, true),
        (Age, Equal, 20.0, true),
        (Grace, Equal, 10.0, true),
        (Grace, Less, 10.0, false),
        (Keep, GreaterOrEqual, 5.0, true),
        (Keep, NotEqual, 5.0, false),
    ] {
        let test = Test::Number { subject, oper, number };
        assert_eq!(is_match(&ban(1020.0, vec![test])), expected, "{subject:?} {oper:?} {number}");
    }
}

#[test]
fn all_tests_must_match() {
    let yes = || text(Subject::Url, TextOper::Match, "url");
    let no = || text(Subject::Url, TextOper::Match, "urn");
    assert!(is_match(&ban(0.0, vec![])));
    assert!(is_match(&ban(0.0, vec![yes(), yes()])));
    assert!(!is_match(&ban(0.0, vec![yes(), no()])) && !is_match(&ban(0.0, vec![no(), yes()])));
    assert!(is_match(&Ban::of_key(b"key")) && !is_match(&Ban::of_key(b"other")));
}

fn url_ban(url: &str) -> Ban {
    ban(0.0, vec![text(Subject::Url, TextOper::Equal, url)])
}

fn allows(log: &Log, mark: Mark) -> bool {
    let patterns = Patterns::of(log.bans(), &Patterns::default(), &Engine);
    log.allows(&mark, b"key", &head(), &request(), &patterns)
}

#[test]
fn only_bans_of_since_count() {
    let mut log = Log::new(b"/p", [1; 16]);
    let before = log.mark();
    assert!(allows(&log, before));
    log.append(url_ban("/other"));
    assert!(allows(&log, before));
    log.append(url_ban("/some/url"));
    assert!(!allows(&log, before));
    let after = log.mark();
    assert!(allows(&log, after));
    // Said again, the older one need not be kept.
    log.append(url_ban("/some/url"));
    assert!(!allows(&log, after) && !allows(&log, before) && log.bans().count() == 2);
    // One that depends on the time it is said must be.
    let timed = Ban { timeless: false, ..url_ban("/") };
    log.append(timed.clone());
    log.append(timed);
    assert_eq!(log.bans().count(), 4);
    // Another log's records, and those of a log's future, cannot be judged.
    assert!(!allows(&log, Mark { nonce: [2; 16], ..log.mark() }));
    assert!(!allows(&log, Mark { seq: log.mark().seq + 1, ..log.mark() }));
}

#[test]
fn a_full_log_forgets_the_oldest_and_what_it_could_judge() {
    let mut log = Log::new(b"/p", [1; 16]);
    let first = log.mark();
    log.append(url_ban("/x"));
    let second = log.mark();
    for i in 0..Log::MAX_ENTRIES - 1 {
        log.append(url_ban(&i.to_string()));
    }
    assert!(allows(&log, first) && log.bans().count() == Log::MAX_ENTRIES);
    log.append(url_ban("one more"));
    assert!(!allows(&log, first) && allows(&log, second) && log.bans().count() == Log::MAX_ENTRIES);
    // By bytes too, and whatever it holds it can be read again.
    let long = "x".repeat(300_000);
    for i in 0..5 {
        log.append(url_ban(&format!("{i}{long}")));
    }
    assert_eq!(log.bans().count(), 3);
    assert_eq!(Log::decode(&log.encode(), b"/p"), Ok(log.clone()));
    // One that is longer than a log invalidates everything older.
    let before = log.mark();
    log.append(url_ban(&"x".repeat(2_000_000)));
    assert!(!allows(&log, before) && allows(&log, log.mark()) && log.bans().count() == 4);
    assert_eq!(Log::decode(&log.encode(), b"/p"), Ok(log));
}

/// What a peer has written must leave room for the next ban.
#[test]
fn a_log_whose_numbers_are_used_up_is_none() {
    let log = Log::new(b"/p", [1; 16]).encode();
    // The last eight bytes of an empty log but for `healed`: the last sequence.
    let with_last = |last: u64| {
        let mut bytes = log.clone();
        let end = bytes.len() - 1;
        bytes[end - 8..end].copy_from_slice(&last.to_be_bytes());
        Log::decode(&bytes, b"/p")
    };
    for last in [u64::MAX, 1 << 63, (1 << 62) + 1] {
        assert_eq!(with_last(last), Err(Malformed("sequence")), "{last}");
    }
    let mut log = with_last(1 << 62).unwrap();
    log.append(url_ban("/x"));
    assert_eq!(log.mark().seq, (1 << 62) + 1);
}

#[test]
fn what_is_healed() {
    let healed = Healed { board: [1; 16], through: 5 };
    for (number, covered) in [(5, true), (4, true), (0, true), (u64::MAX, true), (6, false), (1 << 62, false)] {
        assert_eq!(healed.covers([1; 16], number), covered, "{number}");
        assert!(!healed.covers([2; 16], number));
    }
}

fn a_test() -> impl Strategy<Value = Test> {
    let name = || "[a-z-]{1,20}".prop_map(String::into_bytes);
    let subject = prop_oneof![
        Just(Subject::Url),
        Just(Subject::Status),
        name().prop_map(Subject::RequestHeader),
        name().prop_map(Subject::ObjectHeader),
    ];
    let oper = proptest::sample::select(vec![TextOper::Equal, TextOper::NotEqual, TextOper::Match, TextOper::NoMatch]);
    let duration =
        proptest::sample::select(vec![DurationOf::Ttl, DurationOf::Age, DurationOf::Grace, DurationOf::Keep]);
    let numeric = proptest::sample::select(vec![
        NumberOper::Equal,
        NumberOper::NotEqual,
        NumberOper::Greater,
        NumberOper::GreaterOrEqual,
        NumberOper::Less,
        NumberOper::LessOrEqual,
    ]);
    prop_oneof![
        (subject, oper, any::<Vec<u8>>()).prop_map(|(subject, oper, text)| Test::Text { subject, oper, text }),
        (duration, numeric, -1e9..1e9).prop_map(|(subject, oper, number)| Test::Number { subject, oper, number }),
        any::<Vec<u8>>().prop_map(Test::Key),
    ]
}

proptest! {
    #[test]
    fn logs_are_read_as_they_were_written(
        bans in proptest::collection::vec(
            (0.0..2e9, any::<bool>(), proptest::collection::vec(a_test(), 0..4)), 0..10),
        healed in proptest::option::of((any::<[u8; 16]>(), any::<u64>())),
        nonce: [u8; 16],
    ) {
        let mut log = Log::new(b"/p", nonce);
        if let Some((board, through)) = healed {
            log = log.healing(Healed { board, through });
        }
        for (time, timeless, tests) in bans {
            log.append(Ban { time, timeless, tests });
        }
        let bytes = log.encode();
        prop_assert!(Log::decode(&bytes, b"/q").is_err());
        prop_assert_eq!(Log::decode(&bytes, b"/p"), Ok(log));
    }

    #[test]
    fn nothing_that_is_read_panics(bytes: Vec<u8>) {
        let _ = Ban::from_varnishd(&bytes);
        let _ = Ban::decode(&mut Reader::new(&bytes));
        let _ = Log::decode(&bytes, b"");
        let spec = [&1e9f64.to_be_bytes()[..], &(bytes.len() as u32 + 16).to_be_bytes(), &[0; 4], &bytes].concat();
        let _ = Ban::from_varnishd(&spec);
    }
}
