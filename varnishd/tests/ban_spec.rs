//! varnishd's encoding of bans is decoded as varnishd means it, and nothing that is not one panics.
//!
//! The module is compiled here by itself: the crate's other symbols are varnishd's, and no test binary may link them.

#[path = "../src/ban_spec.rs"]
#[expect(unreachable_pub, reason = "a module of a library")]
mod ban_spec;

use ban_spec::decode;
use objmapper_ban::{DurationOf, NumberOper, Subject, Test, TextOper};
use proptest::prelude::*;

/// Two bans as varnishd 7.7.0 had them in its memory:
/// `req.url ~ ^/vector-one && obj.http.x-tag == tag && req.http.host != example.com`
const TEXT: &str = include_str!("vectors/text.hex");
/// `obj.age > 3h && obj.ttl <= 90s && obj.grace == 0s && obj.keep < 1d && obj.status !~ "^vector-two"`
const DURATION: &str = include_str!("vectors/duration.hex");

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.trim_ascii().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn text(subject: Subject, oper: TextOper, text: &str) -> Test {
    Test::Text { subject, oper, text: text.into() }
}

#[test]
fn what_varnishd_made() {
    let ban = decode(&bytes(TEXT)).unwrap().unwrap();
    assert!(ban.timeless && ban.time > 1.795e9);
    let expected = [
        text(Subject::Url, TextOper::Match, "^/vector-one"),
        text(Subject::ObjectHeader(b"x-tag".to_vec()), TextOper::Equal, "tag"),
        text(Subject::RequestHeader(b"host".to_vec()), TextOper::NotEqual, "example.com"),
    ];
    assert_eq!(ban.tests, expected);

    let ban = decode(&bytes(DURATION)).unwrap().unwrap();
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
            assert!(decode(&good[..len]).is_err(), "{len}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
        for at in 0..good.len() {
            let mut other = good.clone();
            other[at] ^= 0x80;
            // Whatever it is, it does not panic.
            let _ = decode(&other);
        }
        let mut done = good;
        done[12] |= 4;
        assert_eq!(decode(&done), Ok(None));
    }
}

proptest! {
    #[test]
    fn nothing_that_is_decoded_panics(bytes: Vec<u8>) {
        let _ = decode(&bytes);
        let spec = [&1e9f64.to_be_bytes()[..], &(bytes.len() as u32 + 16).to_be_bytes(), &[0; 4], &bytes].concat();
        let _ = decode(&spec);
    }
}
