//! Bans as varnishd encodes them (cache_ban.h), and as the ban log does.
//!
//! varnishd's form contains compiled regular expressions, which only the same build of PCRE2 can use: they are skipped,
//! and compiled again from their text.

use crate::record::bytes::{Malformed, Reader, put_bytes};

/// Bytes before the tests.
const HEAD_LEN: usize = 16;
const FLAG_COMPLETED: u8 = 1 << 2;
/// BANS_FLAG_NODEDUP: the ban has a test on obj.ttl or obj.age, whose meaning depends on when it was made.
const FLAG_NODEDUP: u8 = 1 << 5;
/// A length, padded to varnishd's pointers.
const LUMP_LEN: usize = 8;
const LUMP_PADDING: u8 = 0xff;

/// The left side of a test. The codes are varnishd's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// req.url
    Url,
    /// req.http.NAME
    RequestHeader(Vec<u8>),
    /// obj.http.NAME
    ObjectHeader(Vec<u8>),
    /// obj.status
    Status,
    /// obj.ttl, obj.age, obj.grace, obj.keep
    Duration(DurationOf),
}

/// A duration of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DurationOf {
    Ttl,
    Age,
    Grace,
    Keep,
}

/// A comparison with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextOper {
    Equal,
    NotEqual,
    Match,
    NoMatch,
}

/// A comparison with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberOper {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// One test of a ban. A ban matches if all its tests do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    Text {
        subject: Subject,
        oper: TextOper,
        text: Vec<u8>,
    },
    Number {
        subject: DurationOf,
        oper: NumberOper,
        number: f64,
    },
    /// Matches records of the key with this text: a purge in a v0.1 store. varnishd makes no such test.
    Key(Vec<u8>),
}

/// The code of [`Test::Key`].
const KEY: u8 = 0x01;

/// A ban.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ban {
    /// When it was made, seconds since 1970.
    pub(crate) time: f64,
    /// True if its meaning does not depend on `time`, so that it covers older bans with the same tests.
    pub(crate) timeless: bool,
    /// The tests. A ban without tests matches everything.
    pub(crate) tests: Vec<Test>,
}

impl Ban {
    /// Makes a ban that matches everything. It stands for a ban that cannot be decoded.
    pub(crate) fn matching_everything(time: f64) -> Self {
        Self { time, timeless: true, tests: Vec::new() }
    }

    /// Makes a ban that matches the records of a key, all variants included.
    pub(crate) fn of_key(text: &[u8]) -> Self {
        Self { time: 0.0, timeless: true, tests: vec![Test::Key(text.to_vec())] }
    }

    /// Decodes varnishd's form. `None`: the ban is completed (BANS_FLAG_COMPLETED), and invalidates nothing.
    pub(crate) fn from_varnishd(spec: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut r = Reader::new(spec);
        let time = r.f64()?;
        let len = usize::try_from(r.u32()?).map_err(|_| Malformed("ban"))?;
        let flags = r.u8()?;
        if flags & FLAG_COMPLETED != 0 {
            return Ok(None);
        }
        if len != spec.len() {
            return Err(Malformed("ban"));
        }
        let mut tests = Vec::new();
        let mut at = HEAD_LEN;
        while at < spec.len() {
            tests.push(test_from_varnishd(spec, &mut at)?);
        }
        Ok(Some(Self { time, timeless: flags & FLAG_NODEDUP == 0, tests }))
    }

    /// Returns true if the newer of the two covers both.
    pub(crate) fn is_duplicate_of(&self, other: &Self) -> bool {
        self.timeless && other.timeless && self.tests == other.tests
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time.to_be_bytes());
        out.push(self.timeless.into());
        // A ban with more tests than u32 can count exceeds the limit of a log.
        out.extend_from_slice(&u32::try_from(self.tests.len()).unwrap_or(u32::MAX).to_be_bytes());
        for test in &self.tests {
            match test {
                Test::Text { subject, oper, text } => {
                    out.push(subject.code());
                    if let Subject::RequestHeader(name) | Subject::ObjectHeader(name) = subject {
                        put_bytes(out, name);
                    }
                    out.push(oper.code());
                    put_bytes(out, text);
                }
                Test::Key(text) => {
                    out.push(KEY);
                    put_bytes(out, text);
                }
                Test::Number { subject, oper, number } => {
                    out.push(Subject::Duration(*subject).code());
                    out.push(oper.code());
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (time, timeless, count) = (r.f64()?, r.bool()?, r.u32()?);
        let mut tests = Vec::new();
        for _ in 0..count {
            let code = r.u8()?;
            if code == KEY {
                tests.push(Test::Key(r.bytes()?.to_vec()));
                continue;
            }
            let name = if has_name(code) { r.bytes()?.to_vec() } else { Vec::new() };
            let test = match Subject::new(code, name)? {
                Subject::Duration(subject) => {
                    Test::Number { subject, oper: NumberOper::new(r.u8()?)?, number: r.f64()? }
                }
                subject => Test::Text { subject, oper: TextOper::new(r.u8()?)?, text: r.bytes()?.to_vec() },
            };
            tests.push(test);
        }
        Ok(Self { time, timeless, tests })
    }
}

fn has_name(code: u8) -> bool {
    matches!(code, 0x19 | 0x1a)
}

impl Subject {
    fn code(&self) -> u8 {
        match self {
            Self::Url => 0x18,
            Self::RequestHeader(_) => 0x19,
            Self::ObjectHeader(_) => 0x1a,
            Self::Status => 0x1b,
            Self::Duration(DurationOf::Ttl) => 0x1c,
            Self::Duration(DurationOf::Age) => 0x1d,
            Self::Duration(DurationOf::Grace) => 0x1e,
            Self::Duration(DurationOf::Keep) => 0x1f,
        }
    }

    fn new(code: u8, name: Vec<u8>) -> Result<Self, Malformed> {
        Ok(match code {
            0x18 => Self::Url,
            0x19 => Self::RequestHeader(name),
            0x1a => Self::ObjectHeader(name),
            0x1b => Self::Status,
            0x1c => Self::Duration(DurationOf::Ttl),
            0x1d => Self::Duration(DurationOf::Age),
            0x1e => Self::Duration(DurationOf::Grace),
            0x1f => Self::Duration(DurationOf::Keep),
            _ => return Err(Malformed("ban")),
        })
    }
}

impl TextOper {
    fn code(self) -> u8 {
        match self {
            Self::Equal => 0x10,
            Self::NotEqual => 0x11,
            Self::Match => 0x12,
            Self::NoMatch => 0x13,
        }
    }

    fn new(code: u8) -> Result<Self, Malformed> {
        Ok(match code {
            0x10 => Self::Equal,
            0x11 => Self::NotEqual,
            0x12 => Self::Match,
            0x13 => Self::NoMatch,
            _ => return Err(Malformed("ban")),
        })
    }
}

impl NumberOper {
    fn code(self) -> u8 {
        match self {
            Self::Equal => 0x10,
            Self::NotEqual => 0x11,
            Self::Greater => 0x14,
            Self::GreaterOrEqual => 0x15,
            Self::Less => 0x16,
            Self::LessOrEqual => 0x17,
        }
    }

    fn new(code: u8) -> Result<Self, Malformed> {
        Ok(match code {
            0x10 => Self::Equal,
            0x11 => Self::NotEqual,
            0x14 => Self::Greater,
            0x15 => Self::GreaterOrEqual,
            0x16 => Self::Less,
            0x17 => Self::LessOrEqual,
            _ => return Err(Malformed("ban")),
        })
    }
}

/// ban_iter()
fn test_from_varnishd(spec: &[u8], at: &mut usize) -> Result<Test, Malformed> {
    let code = byte(spec, at)?;
    let name = if has_name(code) { header_name(spec, at)? } else { Vec::new() };
    let subject = Subject::new(code, name)?;
    let lump = lump(spec, at)?;
    let oper = byte(spec, at)?;
    if let Subject::Duration(subject) = subject {
        let mut r = Reader::new(lump);
        let number = r.f64()?;
        r.end()?;
        return Ok(Test::Number { subject, oper: NumberOper::new(oper)?, number });
    }
    let oper = TextOper::new(oper)?;
    if matches!(oper, TextOper::Match | TextOper::NoMatch) {
        self::lump(spec, at)?;
    }
    // C's strings end at the first NUL.
    let end = lump.iter().position(|b| *b == 0).ok_or(Malformed("ban"))?;
    Ok(Test::Text { subject, oper, text: lump[..end].to_vec() })
}

fn byte(spec: &[u8], at: &mut usize) -> Result<u8, Malformed> {
    let byte = *spec.get(*at).ok_or(Malformed("ban"))?;
    *at += 1;
    Ok(byte)
}

fn take<'a>(spec: &'a [u8], at: &mut usize, len: usize) -> Result<&'a [u8], Malformed> {
    let end = at.checked_add(len).ok_or(Malformed("ban"))?;
    let taken = spec.get(*at..end).ok_or(Malformed("ban"))?;
    *at = end;
    Ok(taken)
}

/// Its length with the colon, the name, the colon, a NUL.
fn header_name(spec: &[u8], at: &mut usize) -> Result<Vec<u8>, Malformed> {
    let len = usize::from(byte(spec, at)?);
    match take(spec, at, len + 1)? {
        [name @ .., b':', 0] if !name.is_empty() => Ok(name.to_vec()),
        _ => Err(Malformed("ban")),
    }
}

/// ban_get_lump()
fn lump<'a>(spec: &'a [u8], at: &mut usize) -> Result<&'a [u8], Malformed> {
    while spec.get(*at) == Some(&LUMP_PADDING) {
        *at += 1;
    }
    let len = Reader::new(take(spec, at, LUMP_LEN)?).u32()?;
    take(spec, at, usize::try_from(len).map_err(|_| Malformed("ban"))?)
}
