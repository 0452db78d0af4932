//! varnishd's encoding of a ban (Varnish: `cache/cache_ban.h`), decoded.
//!
//! It contains compiled regular expressions, which only the same build of PCRE2 can use: they are skipped, and compiled
//! again from their text. The codes of fields and operators are varnishd's, and stay in this file.

use objmapper_ban::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};

/// The bytes are no ban of varnishd's. Names the invalid part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Bytes before the tests: the time, the length, the flags, three bytes of padding.
const HEAD_LEN: usize = 16;
/// Offset and length of the length.
const LENGTH: std::ops::Range<usize> = 8..12;
/// Offset of the flags.
const FLAGS: usize = 12;
/// All older objects were tested, or a newer ban covers this one.
const FLAG_COMPLETED: u8 = 1 << 2;
/// The ban has a test on obj.ttl or obj.age, whose meaning depends on when it was made.
const FLAG_NODEDUP: u8 = 1 << 5;
/// A length, padded to varnishd's pointers.
const LUMP_LEN: usize = 8;
const LUMP_PADDING: u8 = 0xff;

/// Decodes a ban. `None`: the ban is completed, and invalidates nothing.
///
/// # Errors
/// The bytes are no ban that varnishd makes.
pub fn decode(spec: &[u8]) -> Result<Option<Ban>, Malformed> {
    let mut r = Cursor { spec, at: 0 };
    let time = r.number("time")?;
    let len = r.take(LENGTH.len())?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed("length"))?;
    let flags = *spec.get(FLAGS).ok_or(Malformed("flags"))?;
    if flags & FLAG_COMPLETED != 0 {
        return Ok(None);
    }
    if usize::try_from(len) != Ok(spec.len()) {
        return Err(Malformed("length"));
    }
    let mut tests = Vec::new();
    r.at = HEAD_LEN;
    while r.at < spec.len() {
        tests.push(r.test()?);
    }
    Ok(Some(Ban { time, timeless: flags & FLAG_NODEDUP == 0, tests }))
}

struct Cursor<'a> {
    spec: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).ok_or(Malformed("length"))?;
        let taken = self.spec.get(self.at..end).ok_or(Malformed("length"))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// Takes a finite number.
    fn number(&mut self, what: &'static str) -> Result<f64, Malformed> {
        finite(self.take(8)?, what)
    }

    /// Takes one test, as `ban_iter()` does.
    fn test(&mut self) -> Result<Test, Malformed> {
        let subject = match self.byte()? {
            0x18 => Subject::Url,
            0x19 => Subject::RequestHeader(self.header_name()?),
            0x1a => Subject::ObjectHeader(self.header_name()?),
            0x1b => Subject::Status,
            0x1c => return self.number_test(DurationOf::Ttl),
            0x1d => return self.number_test(DurationOf::Age),
            0x1e => return self.number_test(DurationOf::Grace),
            0x1f => return self.number_test(DurationOf::Keep),
            _ => return Err(Malformed("field")),
        };
        let text = self.lump()?;
        let oper = match self.byte()? {
            0x10 => TextOper::Equal,
            0x11 => TextOper::NotEqual,
            0x12 => TextOper::Match,
            0x13 => TextOper::NoMatch,
            _ => return Err(Malformed("operator")),
        };
        if matches!(oper, TextOper::Match | TextOper::NoMatch) {
            self.lump()?;
        }
        // C's strings end at the first NUL.
        let end = text.iter().position(|b| *b == 0).ok_or(Malformed("text"))?;
        Ok(Test::Text { subject, oper, text: text[..end].to_vec() })
    }

    fn number_test(&mut self, subject: DurationOf) -> Result<Test, Malformed> {
        let number = finite(self.lump()?, "duration")?;
        let oper = match self.byte()? {
            0x10 => NumberOper::Equal,
            0x11 => NumberOper::NotEqual,
            0x14 => NumberOper::Greater,
            0x15 => NumberOper::GreaterOrEqual,
            0x16 => NumberOper::Less,
            0x17 => NumberOper::LessOrEqual,
            _ => return Err(Malformed("operator")),
        };
        Ok(Test::Number { subject, oper, number })
    }

    /// Takes a header's name: its length with the colon, the name, the colon, a NUL.
    fn header_name(&mut self) -> Result<Vec<u8>, Malformed> {
        let len = usize::from(self.byte()?);
        match self.take(len + 1)? {
            [name @ .., b':', 0] if !name.is_empty() => Ok(name.to_vec()),
            _ => Err(Malformed("header name")),
        }
    }

    /// Takes a lump, as `ban_get_lump()` does.
    fn lump(&mut self) -> Result<&'a [u8], Malformed> {
        while self.spec.get(self.at) == Some(&LUMP_PADDING) {
            self.at += 1;
        }
        let head = self.take(LUMP_LEN)?;
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        self.take(usize::try_from(len).map_err(|_| Malformed("length"))?)
    }
}

fn finite(bytes: &[u8], what: &'static str) -> Result<f64, Malformed> {
    let number = bytes.try_into().map(f64::from_be_bytes).map_err(|_| Malformed(what))?;
    if number.is_finite() { Ok(number) } else { Err(Malformed(what)) }
}
