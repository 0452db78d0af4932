//! Records: what is written is read, and nothing else.

use proptest::prelude::*;

use crate::lookup::request::RequestView;
use crate::record::bytes::Malformed;
use crate::record::head::{Head, Headers, Summer};
use crate::record::origin::OriginHead;
use crate::record::stored::{Mark, Stored, Target};
use crate::record::tail::{Kind, MAX_TAIL, TRAILER_LEN, Trailer, parse_whole, tail};
use crate::record::vary::{Index, Spec, VaryKey};

struct Request(Vec<(Vec<u8>, Vec<u8>)>);

impl RequestView for Request {
    fn url(&self) -> &[u8] {
        b"/"
    }

    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| &v[..])
    }
}

fn headers(lines: &[&[u8]]) -> Headers {
    let mut headers = Headers::default();
    for line in lines {
        assert!(headers.push(line));
    }
    headers
}

fn vary_key(names: &str, request: &[(&str, &str)]) -> VaryKey {
    let spec = Spec::of_response(&headers(&[format!("Vary: {names}").as_bytes()])).unwrap();
    spec.key(&Request(request.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect())).unwrap()
}

fn a_head() -> impl Strategy<Value = Head> {
    let line = "[A-Za-z-]{1,10}: ?[ -~\t]{0,40}".prop_filter("no rule applies to it", |line| {
        let name = line.split(':').next().unwrap_or_default();
        !["vary", "set-cookie", "cache-control"].iter().any(|special| name.eq_ignore_ascii_case(special))
    });
    (
        (prop_oneof![200u16..206, 207u16..304, 305u16..1000], "[ -~]{0,30}", any::<u8>()),
        proptest::collection::vec(line, 0..8),
        (0.0..4e9, 0f32..1e8, 0f32..1e8, 0f32..1e8),
        proptest::option::of(any::<[u8; 32]>()),
    )
        .prop_map(|((status, reason, flags), lines, (t_origin, ttl, grace, keep), gzip_bits)| {
            let mut headers = Headers::default();
            for line in lines {
                assert!(headers.push(line.as_bytes()));
            }
            let (reason, flags) = (reason.into_bytes(), flags & 0x7f);
            // Another status, and a line more.
            let mut lines: Vec<&[u8]> = headers.iter().collect();
            lines.push(b"X-Origin: only");
            let origin = gzip_bits.and_then(|_| OriginHead::new(404, b"gone", &lines));
            Head { status, reason, headers, t_origin, ttl, grace, keep, gzip_bits, flags, origin }
        })
}

fn a_stored() -> impl Strategy<Value = Stored> {
    let vary = prop_oneof![
        Just(None),
        Just(Some(vary_key("", &[]))),
        "[a-z]{0,20}".prop_map(|v| Some(vary_key("X, accept-language", &[("x", &v)]))),
    ];
    let target = proptest::option::of(any::<(u64, u64)>());
    (
        target,
        any::<Vec<u8>>(),
        vary,
        any::<([u8; 16], u64, bool)>(),
        a_head(),
        proptest::collection::btree_set(any::<Vec<u8>>(), 0..3),
    )
        .prop_map(|(target, text, vary, (nonce, seq, flags_known), mut head, tags)| {
            if let Some(vary) = &vary
                && !vary.spec().is_empty()
            {
                assert!(head.headers.push(&[b"Vary: ", vary.spec()].concat()));
            }
            let target = target.map(|(object, version)| Target { object, version });
            Stored {
                target,
                text,
                vary,
                mark: Mark { nonce, seq },
                head,
                flags_known,
                tags: tags.into_iter().map(Box::from).collect(),
            }
        })
}

fn file(stored: &Stored, body: &[u8]) -> Vec<u8> {
    let mut sum = Summer::new();
    // In pieces it is the same sum.
    body.chunks(7).for_each(|piece| sum.update(piece));
    [body, &stored.tail(body.len() as u64, Some(sum.sum())).unwrap()].concat()
}

fn read(file: &[u8]) -> Result<(Stored, &[u8]), Malformed> {
    let (trailer, head, body) = parse_whole(file)?;
    Ok((Stored::decode(head, trailer.kind == Kind::Renewal)?, body))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(stored in a_stored(), body: Vec<u8>) {
        let file = file(&stored, &body);
        prop_assert_eq!(read(&file), Ok((stored, &body[..])));
    }

    /// One byte changed in any way, anywhere; cut off or longer by whatever: refused.
    #[test]
    fn nothing_else_is_read(stored in a_stored(), body: Vec<u8>, change in 1u8.., more in proptest::collection::vec(any::<u8>(), 1..100)) {
        let good = file(&stored, &body);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= change;
            prop_assert!(read(&bad).is_err(), "byte {}", at);
            prop_assert!(read(&good[..at]).is_err(), "{} bytes", at);
        }
        prop_assert!(read(&[&good[..], &more].concat()).is_err());
        prop_assert!(read(&[&more[..], &good].concat()).is_err());
    }

    #[test]
    fn nothing_that_is_read_panics(bytes: Vec<u8>, last: [u8; TRAILER_LEN], len: u64) {
        let _ = parse_whole(&bytes);
        let _ = Trailer::parse(&last, len);
        let _ = Stored::decode(&bytes, false);
        let _ = Stored::decode(&bytes, true);
        let _ = Index::decode(&bytes);
        // With a valid frame around it.
        let framed = tail(Kind::Record, bytes, 0, None).unwrap();
        let (_, head, _) = parse_whole(&framed).unwrap();
        let _ = Stored::decode(head, false);
        let _ = Index::decode(head);
    }
}

#[test]
fn limits() {
    assert!(tail(Kind::Record, vec![0; MAX_TAIL - TRAILER_LEN], 0, None).is_some());
    assert!(tail(Kind::Record, vec![0; MAX_TAIL - TRAILER_LEN + 1], 0, None).is_none());
    let mut headers = Headers::default();
    for _ in 0..Headers::MAX_LINES {
        assert!(headers.push(b"x"));
    }
    assert!(!headers.push(b"x"));
    let mut headers = Headers::default();
    assert!(headers.push(&vec![b'x'; Headers::MAX_BYTES]) && headers.push(b"") && !headers.push(b"x"));
    let stored = Stored {
        target: None,
        text: Vec::new(),
        vary: None,
        mark: Mark { nonce: [0; 16], seq: 0 },
        head: Head {
            status: 200,
            reason: Vec::new(),
            headers,
            t_origin: f64::NAN,
            ttl: 0.0,
            grace: 0.0,
            keep: 0.0,
            gzip_bits: None,
            flags: 0,
            origin: None,
        },
        flags_known: true,
        tags: Vec::new(),
    };
    assert_eq!(read(&file(&stored, b"")), Err(Malformed("number")), "a time that is none");
    // The sum of a body whose publisher made none.
    let unsummed = [b"body".to_vec(), stored.tail(4, None).unwrap()].concat();
    assert_eq!(parse_whole(&unsummed).unwrap().2, b"body");
}

#[test]
fn headers_are_found_by_name() {
    let headers = headers(&[b"A: 1", b"AB: 2", b"a:  3 ", b"", b"no colon", b"B :4", b": 5"]);
    assert_eq!((headers.get(b"a"), headers.get(b"AB"), headers.get(b"b")), (Some(&b"1"[..]), Some(&b"2"[..]), None));
    assert_eq!(headers.values(b"A").collect::<Vec<_>>(), [b"1", b"3"]);
    assert_eq!(headers.iter().count(), 7);
}

#[test]
fn specs() {
    let spec = |lines: &[&str]| {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        Spec::of_response(&headers(&lines))
    };
    assert_eq!(spec(&["Vary: B, a"]), spec(&["vary:A,, b ", "Vary: a,"]));
    assert_ne!(spec(&["Vary: a"]), spec(&["Vary: a, b"]));
    assert!(spec(&["X: y"]).unwrap().is_empty() && spec(&["Vary: ,"]).unwrap().is_empty());
    let long = format!("Vary: {}", "x".repeat(128));
    for refused in ["Vary: *", "Vary: a, *", "Vary: a b", "Vary: a\0", "Vary: \"a\"", &long] {
        assert!(spec(&[refused]).is_err(), "{refused}");
    }
    let many: Vec<String> = (0..65).map(|i| format!("x{i}")).collect();
    assert!(spec(&[&format!("Vary: {}", many.join(","))]).is_err());
    assert!(spec(&[&format!("Vary: {}", many[..64].join(","))]).is_ok());
}

/// Whatever two requests say, they have the same variant only if they say the same in the headers of the spec.
#[test]
fn variants_are_told_apart() {
    let index = Index::new(b"key", [1; 16]);
    let keys = [
        vary_key("a, b", &[]),
        vary_key("a, b", &[("a", "")]),
        vary_key("a, b", &[("b", "")]),
        vary_key("a, b", &[("a", "x"), ("b", "y")]),
        vary_key("a, b", &[("a", "xy"), ("b", "")]),
        vary_key("a, b", &[("a", ""), ("b", "xy")]),
        vary_key("a", &[("a", "x"), ("b", "y")]),
        vary_key("b", &[("a", "x"), ("b", "y")]),
        vary_key("", &[]),
    ];
    let mut names: Vec<_> = keys.iter().map(|key| index.variant(key)).collect();
    names.extend(keys.iter().map(|key| Index::new(b"other", [1; 16]).variant(key)));
    names.extend(keys.iter().map(|key| Index::new(b"key", [2; 16]).variant(key)));
    let distinct: std::collections::HashSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    assert_eq!(index.variant(&keys[3]), index.variant(&vary_key("B,A", &[("B", "y"), ("c", "z"), ("A", "x")])));
}

#[test]
fn an_index_keeps_the_newest() {
    let mut index = Index::new(b"key", [1; 16]);
    assert!(Index::decode(&index.encode()).is_err(), "one without specs has no use");
    for i in 0..20 {
        assert!(index.add_spec_of(&vary_key(&format!("x{i}"), &[])));
    }
    assert!(!index.add_spec_of(&vary_key("x19", &[])) && index.add_spec_of(&vary_key("x15", &[])));
    assert_eq!(index.specs().len(), Index::MAX_SPECS);
    assert_eq!(Index::decode(&index.encode()), Ok(index.clone()));
    let mut other = Index::new(b"key", [1; 16]);
    other.add_spec_of(&vary_key("x15", &[]));
    assert!(!index.merge(&other));
    other.add_spec_of(&vary_key("y", &[]));
    assert!(index.merge(&other) && index.specs()[0] == other.specs()[0]);
}

#[test]
fn times() {
    let mut head = Head {
        status: 200,
        reason: Vec::new(),
        headers: Headers::default(),
        t_origin: 1000.0,
        ttl: 10.0,
        grace: 5.0,
        keep: 2.5,
        gzip_bits: None,
        flags: 0,
        origin: None,
    };
    let at = |head: &Head, now: f64| (head.is_fresh(now), head.in_grace(now), head.is_renewable(now));
    assert_eq!(at(&head, 1009.9), (true, true, false));
    assert_eq!(at(&head, 1010.0), (false, true, false));
    assert_eq!(at(&head, 1015.0), (false, false, false));
    assert_eq!((head.age(1003.5), head.age(990.0), head.end()), (3.5, 0.0, 1017.5));
    assert_eq!((head.expires_ms(), head.end_ms()), (1_017_500, 1_017_500));
    assert!(head.headers.push(b"ETag: \"then\""));
    assert_eq!(at(&head, 1017.4), (false, false, true));
    assert_eq!(at(&head, 1017.5), (false, false, false));
    // It may be renewed again and again.
    assert_eq!(head.expires_ms(), 0);
    (head.grace, head.keep) = (0.0, 0.0);
    assert_eq!(head.expires_ms(), 1_010_000);
}

#[test]
fn validators() {
    let with = |status: u16, lines: &[&str]| {
        let mut headers = Headers::default();
        for line in lines {
            assert!(headers.push(line.as_bytes()));
        }
        let (t_origin, ttl, grace, keep) = (0.0, 0.0, 0.0, 0.0);
        Head {
            status,
            reason: Vec::new(),
            headers,
            t_origin,
            ttl,
            grace,
            keep,
            gzip_bits: None,
            flags: 0,
            origin: None,
        }
    };
    let (etag, date) = ("ETag: W/\"1\"", "Date: Sun, 06 Nov 1994 08:49:37 GMT");
    let (strong, same) =
        ("Last-Modified: Sun, 06 Nov 1994 08:49:36 GMT", "Last-Modified: Sunday, 06-Nov-94 08:49:37 GMT");
    assert!(with(200, &[etag]).has_validator());
    assert_eq!(with(200, &[strong, date]).last_modified(), Some(&b"Sun, 06 Nov 1994 08:49:36 GMT"[..]));
    assert!(with(200, &[strong, date]).has_validator());
    // It may have changed again within the same second; or the date of the response is unknown.
    for weak in
        [&[same, date][..], &[strong], &[date], &["Last-Modified: then", date], &["Last-Modified: \u{fc}", date]]
    {
        assert_eq!(with(200, weak).last_modified(), None, "{weak:?}");
        assert!(!with(200, weak).has_validator(), "{weak:?}");
    }
    // A 304 to what was absent does not say that it is absent still.
    assert!(!with(404, &[etag, strong, date]).has_validator());
}

#[test]
fn the_head_of_the_origin() {
    let lines: [&[u8]; 6] =
        [b"Surrogate-Control: x", b"Set-Cookie: a=b", b"Age: 1", b"Connection: x-hop", b"X-Hop: y", b"Vary: *"];
    let origin = OriginHead::new(200, b"OK", &lines).unwrap();
    assert_eq!(
        origin.headers,
        headers(&[b"Surrogate-Control: x", b"Vary: *"]),
        "neither cookies nor what is a connection's"
    );

    let head = |origin: Option<OriginHead>| Head {
        status: 203,
        reason: b"Stored".to_vec(),
        headers: headers(&[b"X: y"]),
        t_origin: 1000.0,
        ttl: 10.0,
        grace: 0.0,
        keep: 0.0,
        gzip_bits: None,
        flags: 0,
        origin,
    };
    let stored = |origin| {
        let (text, mark) = (b"t".to_vec(), Mark { nonce: [0; 16], seq: 0 });
        Stored { target: None, text, vary: None, mark, head: head(origin), flags_known: true, tags: Vec::new() }
    };
    let good = stored(Some(origin.clone()));
    assert_eq!(Stored::decode(&good.encode(), false), Ok(good.clone()));
    assert_eq!(good.head.as_sent(), (200, &b"OK"[..], &origin.headers));
    assert_eq!(stored(None).head.as_sent().0, 203);
    // A field that a newer version has added says nothing to this one; it is there or cut off.
    let newer = [good.encode(), vec![0xff, 0, 0, 0, 1, b'x']].concat();
    assert_eq!(Stored::decode(&newer, false), Ok(good));
    assert_eq!(Stored::decode(&newer[..newer.len() - 1], false), Err(Malformed("length")));
    for line in [&b"Set-Cookie: a=b"[..], b"Connection: close", b"no colon", b"A: b\r\nC: d"] {
        let bad = OriginHead { headers: headers(&[line]), ..origin.clone() };
        assert!(Stored::decode(&stored(Some(bad)).encode(), false).is_err(), "{}", line.escape_ascii());
    }
    for status in [99, 206, 304] {
        let bad = OriginHead { status, ..origin.clone() };
        assert_eq!(Stored::decode(&stored(Some(bad)).encode(), false), Err(Malformed("status")));
    }
}
