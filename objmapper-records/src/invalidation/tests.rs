//! What bans mean, what the log's files hold, and what the log in memory lets be used.

use std::sync::Arc;

use objmapper_ban::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};
use proptest::prelude::*;

use super::ban::CompiledBan;
use super::codec::LogEntry;
use super::entry::Invalidation;
use super::file::{Healed, LogFile, Part, Unusable};
use super::index::{Index, Judged, Verdict};
use crate::lookup::request::RequestView;
use crate::record::bytes::{Malformed, Reader, put_bytes};
use crate::record::head::{Head, Headers};
use crate::record::stored::Mark;
use crate::regex::{Regex, Regexes};

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
    CompiledBan::new(ban, &Engine).matches(&head(), &request())
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
}

fn url_ban(url: &str) -> Invalidation {
    Invalidation::Ban(ban(0.0, vec![text(Subject::Url, TextOper::Equal, url)]))
}

const KEY: [u8; 32] = [7; 32];
const ORIGIN: [u8; 16] = [9; 16];

fn purge(key: [u8; 32], soft: bool) -> Invalidation {
    Invalidation::Purge { digest: key, soft }
}

fn tag(tag: &str, soft: bool) -> Invalidation {
    Invalidation::Tag { tag: tag.as_bytes().into(), soft }
}

/// Appends an entry; its time is its number.
fn append(index: &mut Index, what: Invalidation) {
    let seq = index.last + 1;
    index.insert(Arc::new(LogEntry::new(seq, seq as f64, ORIGIN, what)), &Engine);
}

fn empty() -> Index {
    Index::new(&LogFile::new(b"/p", [1; 16], 0.0))
}

fn judge_tagged(index: &Index, mark: &Mark, tags: &[&str]) -> Verdict {
    let tags: Vec<Box<[u8]>> = tags.iter().map(|tag| tag.as_bytes().into()).collect();
    index.judge(Judged { mark, digest: KEY, tags: &tags }, &head(), &request())
}

fn judge(index: &Index, mark: &Mark) -> Verdict {
    judge_tagged(index, mark, &[])
}

#[test]
fn only_entries_of_since_count() {
    let mut index = empty();
    let before = index.mark();
    assert_eq!(judge(&index, &before), Verdict::Valid);
    append(&mut index, url_ban("/other"));
    append(&mut index, purge([8; 32], false));
    append(&mut index, tag("green", false));
    assert_eq!(judge_tagged(&index, &before, &["blue", "red"]), Verdict::Valid);
    for what in [url_ban("/some/url"), purge(KEY, false), tag("red", false), Invalidation::All] {
        let before = index.mark();
        append(&mut index, what.clone());
        assert_eq!(judge_tagged(&index, &before, &["blue", "red"]), Verdict::Invalid, "{what:?}");
        assert_eq!(judge_tagged(&index, &index.mark(), &["blue", "red"]), Verdict::Valid, "{what:?}");
    }
    // Another log's records cannot be judged, nor those of a log's future.
    assert_eq!(judge(&index, &Mark { nonce: [2; 16], ..index.mark() }), Verdict::Invalid);
    assert_eq!(judge(&index, &Mark { seq: index.last + 1, ..index.mark() }), Verdict::Ahead);
}

#[test]
fn a_soft_purge_makes_stale() {
    let mut index = empty();
    let before = index.mark();
    append(&mut index, tag("red", true));
    append(&mut index, purge(KEY, true));
    // The earlier of the two counts.
    assert_eq!(judge_tagged(&index, &before, &["red"]), Verdict::Stale(1.0));
    assert_eq!(judge(&index, &before), Verdict::Stale(2.0));
    let between = Mark { seq: 1, ..before };
    assert_eq!(judge_tagged(&index, &between, &["red"]), Verdict::Stale(2.0));
    assert_eq!(judge_tagged(&index, &index.mark(), &["red"]), Verdict::Valid);
    append(&mut index, tag("red", false));
    assert_eq!(judge_tagged(&index, &between, &["red"]), Verdict::Invalid);
    // A hard one is not made soft by a later soft one.
    append(&mut index, tag("red", true));
    assert_eq!(judge_tagged(&index, &between, &["red"]), Verdict::Invalid);
    assert_eq!(judge_tagged(&index, &Mark { seq: 3, ..before }, &["red"]), Verdict::Stale(4.0));
}

#[test]
fn an_entry_supersedes_older_ones_of_the_same() {
    let timed = ban(0.0, vec![text(Subject::Url, TextOper::Equal, "/")]);
    let timed = Invalidation::Ban(Ban { timeless: false, ..timed });
    for (what, kept) in [
        (url_ban("/x"), 1),
        (purge(KEY, false), 1),
        (purge(KEY, true), 1),
        (tag("red", false), 1),
        (tag("red", true), 1),
        // What depends on the time at which it was said is kept.
        (timed, 3),
        (Invalidation::All, 3),
    ] {
        let mut index = empty();
        let before = index.mark();
        for _ in 0..3 {
            append(&mut index, what.clone());
        }
        assert_eq!(index.entries_after(0).count(), kept, "{what:?}");
        let bytes: usize = index.entries_after(0).map(|entry| entry.size).sum();
        assert_eq!(index.bytes(), bytes as u64);
        append(&mut index, url_ban("/some/url"));
        assert_eq!(judge(&index, &before), Verdict::Invalid);
        index.raise_floor(3, 3.0);
        assert_eq!((index.entries_after(0).count(), index.floor), (1, 3));
        assert_eq!(judge(&index, &Mark { seq: 2, ..before }), Verdict::Invalid, "below the floor");
        index.raise_floor(4, 4.0);
        assert_eq!((index.bytes(), judge(&index, &index.mark())), (0, Verdict::Valid));
    }
    // A hard purge covers a soft one, but not the other way round.
    let mut index = empty();
    for soft in [true, false, true, true] {
        append(&mut index, purge(KEY, soft));
    }
    assert_eq!(index.entries_after(0).map(|entry| entry.seq).collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn the_floor_is_as_low_as_the_limit_allows() {
    let mut index = empty();
    for i in 0..100 {
        append(&mut index, purge([i; 32], false));
    }
    let each = index.bytes() / 100;
    assert_eq!(index.floor_for(100 * each), None);
    assert_eq!(index.floor_for(99 * each), Some((1, 1.0)));
    assert_eq!(index.floor_for(40 * each + 1), Some((60, 60.0)));
    assert_eq!(index.floor_for(0), Some((100, 100.0)));
    assert_eq!((index.floor_before(0.5), index.floor_before(10.5)), (None, Some((10, 10.0))));
    index.raise_floor(60, 60.0);
    let mark = |seq| Mark { nonce: [1; 16], seq };
    assert_eq!((judge(&index, &mark(59)), judge(&index, &mark(60))), (Verdict::Invalid, Verdict::Valid));
}

fn file(whats: impl IntoIterator<Item = Invalidation>) -> LogFile {
    let mut file = LogFile::new(b"/p", [1; 16], 5.0);
    for what in whats {
        file.last += 1;
        file.entries.push(Arc::new(LogEntry::new(file.last, 6.0, ORIGIN, what)));
    }
    file
}

/// The bytes of a log with one entry, whose body begins with time and origin.
fn log_with(body: &[u8]) -> Vec<u8> {
    let mut file = file([]);
    file.last = 1;
    let mut bytes = file.encode();
    bytes.extend_from_slice(&1u64.to_be_bytes());
    put_bytes(&mut bytes, &[&6f64.to_be_bytes()[..], &ORIGIN, body].concat());
    bytes
}

/// A newer version has appended what this one does not know: it invalidates everything older, nothing else, and stays what
/// it was when the log is rewritten.
#[test]
fn an_unknown_entry_invalidates_everything_older() {
    let empty_ban = [&[1][..], &0f64.to_be_bytes(), &[1]].concat();
    for body in [
        &[77, 1, 2, 3][..],
        &[],
        &[2, 9],
        &[3, 0],
        // One byte more than a purge has.
        &[&[2, 0][..], &KEY, &[0]].concat(),
        &empty_ban,
    ] {
        let bytes = log_with(body);
        let file = LogFile::decode(&bytes, b"/p").unwrap();
        assert!(!file.entries[0].is_known());
        assert_eq!((file.encode(), file.entries[0].at), (bytes, 6.0));
        let index = Index::of(&file, &Engine);
        assert_eq!(judge(&index, &Mark { nonce: [1; 16], seq: 0 }), Verdict::Invalid, "{body:?}");
        assert_eq!(judge(&index, &index.mark()), Verdict::Valid);
    }
    // Not even time and origin.
    let mut bytes = file([]);
    bytes.last = 1;
    let mut bytes = bytes.encode();
    bytes.extend_from_slice(&1u64.to_be_bytes());
    put_bytes(&mut bytes, b"x");
    assert_eq!(LogFile::decode(&bytes, b"/p").unwrap().encode(), bytes);
}

/// A test that is not known matches, the others of its ban still count.
#[test]
fn an_unknown_test_matches() {
    let ban = |url: &str| {
        let mut body = [&[1][..], &0f64.to_be_bytes(), &[1], &2u32.to_be_bytes()].concat();
        put_bytes(&mut body, &[200, 1, 2, 3]);
        let mut test = vec![1, 1];
        put_bytes(&mut test, url.as_bytes());
        put_bytes(&mut body, &test);
        log_with(&body)
    };
    for (url, expected) in [("/some/url", Verdict::Invalid), ("/other", Verdict::Valid)] {
        let bytes = ban(url);
        let file = LogFile::decode(&bytes, b"/p").unwrap();
        assert_eq!(file.encode(), bytes);
        // It is merged with no other one: what is not known of them may differ.
        assert!(matches!(&file.entries[0].what, Invalidation::Ban(ban) if !ban.timeless && ban.tests.len() == 1));
        let index = Index::of(&file, &Engine);
        assert_eq!(judge(&index, &Mark { nonce: [1; 16], seq: 0 }), expected);
    }
}

#[test]
fn a_log_of_a_newer_version_is_not_damaged() {
    let mut bytes = file([url_ban("/x")]).encode();
    bytes[0] = 2;
    assert_eq!(LogFile::decode(&bytes, b"/p"), Err(Unusable::Newer(2)));
    bytes[0] = 0;
    assert!(matches!(LogFile::decode(&bytes, b"/p"), Err(Unusable::Damaged(_))));
}

/// What a peer has written must leave room for the next entry.
#[test]
fn a_log_whose_numbers_are_used_up_is_none() {
    let with_last = |last: u64| {
        let mut file = file([]);
        file.last = last;
        file.encode()
    };
    for last in [u64::MAX, 1 << 63, (1 << 62) + 1] {
        let damaged = Err(Unusable::Damaged(Malformed("sequence")));
        assert_eq!(LogFile::decode(&with_last(last), b"/p"), damaged, "{last}");
    }
    let mut index = Index::of(&LogFile::decode(&with_last(1 << 62), b"/p").unwrap(), &Engine);
    append(&mut index, url_ban("/x"));
    assert_eq!(index.mark().seq, (1 << 62) + 1);
}

#[test]
fn an_entry_that_is_too_long_matches_everything() {
    let long = url_ban(&"x".repeat(LogEntry::MAX_BODY));
    let index = Index::of(&file([long]), &Engine);
    assert!(index.bytes() < 100);
    assert_eq!(judge(&index, &Mark { nonce: [1; 16], seq: 0 }), Verdict::Invalid);
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
    ]
}

fn an_invalidation() -> impl Strategy<Value = Invalidation> {
    prop_oneof![
        (0.0..2e9, any::<bool>(), proptest::collection::vec(a_test(), 0..4))
            .prop_map(|(time, timeless, tests)| Invalidation::Ban(Ban { time, timeless, tests })),
        any::<([u8; 32], bool)>().prop_map(|(digest, soft)| Invalidation::Purge { digest, soft }),
        any::<(Vec<u8>, bool)>().prop_map(|(tag, soft)| Invalidation::Tag { tag: tag.into(), soft }),
    ]
}

proptest! {
    #[test]
    fn logs_are_read_as_they_were_written(
        whats in proptest::collection::vec(an_invalidation(), 0..10),
        healed in proptest::option::of((any::<[u8; 16]>(), any::<u64>())),
        id: [u8; 16],
    ) {
        let mut log = file(whats);
        log.healed = healed.map(|(board, through)| Healed { board, through });
        let bytes = log.encode();
        prop_assert!(LogFile::decode(&bytes, b"/q").is_err());
        prop_assert_eq!(LogFile::decode(&bytes, b"/p"), Ok(log.clone()));
        // The same entries in a part.
        let entries = std::mem::take(&mut log.entries);
        if let Some(newest) = entries.last() {
            let part = Part { id, last: newest.seq, at: newest.at, len: 5 };
            let bytes = part.encode(log.nonce, &entries);
            prop_assert_eq!(part.decode(&bytes, log.nonce), Ok(entries));
            prop_assert!(part.decode(&bytes, [2; 16]).is_err());
            let other = Part { last: part.last + 1, ..part };
            prop_assert!(other.decode(&bytes, log.nonce).is_err());
            log.parts.push(part);
            prop_assert_eq!(LogFile::decode(&log.encode(), b"/p"), Ok(log));
        }
    }

    /// Merging changes no verdict: a log judges as its entries do one by one.
    #[test]
    fn merged_entries_judge_as_all_of_them(
        whats in proptest::collection::vec((0u8..3, 0u8..3, any::<bool>()), 0..30),
        seq in 0u64..30,
    ) {
        let whats: Vec<_> = whats.into_iter().map(|(kind, which, soft)| match kind {
            0 => url_ban(["/some/url", "/x", "/y"][usize::from(which)]),
            1 => purge([5 + which; 32], soft),
            _ => tag(["red", "blue", "green"][usize::from(which)], soft),
        }).collect();
        let seq = seq.min(whats.len() as u64);
        let tags = ["red", "blue"];
        let index = Index::of(&file(whats.clone()), &Engine);
        let newer = &whats[seq as usize..];
        let is_hard = newer.iter().any(|what| match what {
            Invalidation::Ban(_) => *what == url_ban("/some/url"),
            Invalidation::Purge { digest, soft } => *digest == KEY && !soft,
            Invalidation::Tag { tag, soft } => tags.iter().any(|t| t.as_bytes() == &**tag) && !soft,
            Invalidation::All => true,
        });
        let is_soft = newer.iter().any(|what| match what {
            Invalidation::Purge { digest, soft } => *digest == KEY && *soft,
            Invalidation::Tag { tag, soft } => tags.iter().any(|t| t.as_bytes() == &**tag) && *soft,
            _ => false,
        });
        let expected = if is_hard { Verdict::Invalid } else if is_soft { Verdict::Stale(6.0) } else { Verdict::Valid };
        prop_assert_eq!(judge_tagged(&index, &Mark { nonce: [1; 16], seq }, &tags), expected);
    }

    #[test]
    fn nothing_that_is_read_panics(bytes: Vec<u8>, at in 0usize..400, to: u8) {
        let _ = LogEntry::decode(&mut Reader::new(&bytes));
        let _ = LogFile::decode(&bytes, b"");
        let _ = LogFile::decode(&log_with(&bytes), b"/p");
        let mut damaged = file([url_ban("/x"), purge(KEY, true), tag("red", false)]).encode();
        if let Some(byte) = damaged.get_mut(at) {
            *byte = to;
            let _ = LogFile::decode(&damaged, b"/p");
        }
    }
}
