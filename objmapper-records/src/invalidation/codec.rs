//! The encoding of an entry of the invalidation log (`RECORD.md`, "The invalidation log").
//!
//! The numbering of fields and operators is this project's own. A reader may be older than the writer: a test that it
//! does not know counts as a match, and an entry that it does not know invalidates everything older. Such an entry is
//! kept as the bytes that were read, so that a rewritten log still says what its writer said.

use objmapper_ban::{Ban, DurationOf, NumberOper, Subject, Test, TextOper};

use crate::invalidation::entry::Invalidation;
use crate::record::bytes::{Malformed, Reader, put_bytes};

const KIND_BAN: u8 = 1;
const KIND_PURGE: u8 = 2;
const KIND_TAG: u8 = 3;

/// An entry as it is in the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogEntry {
    pub(crate) seq: u64,
    /// When it was appended, seconds since 1970.
    pub(crate) at: f64,
    /// The instance that appended it.
    pub(crate) origin: [u8; 16],
    /// What it invalidates; [`Invalidation::All`] if it is not known.
    pub(crate) what: Invalidation,
    /// The bytes that were read, if they are not what [`Self::body`] would make of the other fields.
    raw: Option<Box<[u8]>>,
    /// The bytes that it takes in the log.
    pub(crate) size: usize,
}

impl LogEntry {
    /// Bytes of an entry besides its body: the sequence number and the body's length.
    const HEAD_LEN: usize = 12;
    /// The most bytes of a body. A longer entry is appended as one that invalidates everything.
    pub(crate) const MAX_BODY: usize = 64 << 10;

    pub(crate) fn new(seq: u64, at: f64, origin: [u8; 16], what: Invalidation) -> Self {
        let mut entry = Self { seq, at, origin, what, raw: None, size: 0 };
        let mut len = entry.body().len();
        if len > Self::MAX_BODY {
            entry.what = Invalidation::Ban(Ban::matching_everything(at));
            len = entry.body().len();
        }
        entry.size = len + Self::HEAD_LEN;
        entry
    }

    fn body(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.to_vec();
        }
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&self.at.to_be_bytes());
        out.extend_from_slice(&self.origin);
        match &self.what {
            Invalidation::Ban(ban) => {
                out.push(KIND_BAN);
                put_ban(&mut out, ban);
            }
            Invalidation::Purge { digest, soft } => {
                out.push(KIND_PURGE);
                out.push((*soft).into());
                out.extend_from_slice(digest);
            }
            Invalidation::Tag { tag, soft } => {
                out.push(KIND_TAG);
                out.push((*soft).into());
                put_bytes(&mut out, tag);
            }
            // Not appended by this version: a ban without tests says the same.
            Invalidation::All => {
                out.push(KIND_BAN);
                put_ban(&mut out, &Ban::matching_everything(self.at));
            }
        }
        out
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.seq.to_be_bytes());
        put_bytes(out, &self.body());
    }

    /// Takes an entry. An error means that the log is damaged, and not that the entry is unknown.
    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let seq = r.u64()?;
        let body = r.bytes()?;
        let mut body_reader = Reader::new(body);
        let b = &mut body_reader;
        // Without time and origin it is as old as can be, and of another instance.
        let at = b.f64().unwrap_or_default();
        let origin = b.array().unwrap_or_default();
        let (what, known) = match invalidation(b) {
            Ok((what, known)) if b.is_empty() => (what, known),
            _ => (Invalidation::All, false),
        };
        let raw = (!known).then(|| body.into());
        Ok(Self { seq, at, origin, what, raw, size: body.len() + Self::HEAD_LEN })
    }

    /// Returns true if all of the entry was understood.
    #[cfg(test)]
    pub(crate) fn is_known(&self) -> bool {
        self.raw.is_none()
    }
}

/// Takes what an entry invalidates, and whether all of it was understood.
fn invalidation(r: &mut Reader<'_>) -> Result<(Invalidation, bool), Malformed> {
    Ok(match r.u8()? {
        KIND_BAN => {
            let (ban, known) = ban(r)?;
            (Invalidation::Ban(ban), known)
        }
        KIND_PURGE => (Invalidation::Purge { soft: r.bool()?, digest: r.array()? }, true),
        KIND_TAG => (Invalidation::Tag { soft: r.bool()?, tag: r.bytes()?.into() }, true),
        _ => return Err(Malformed("entry")),
    })
}

fn put_ban(out: &mut Vec<u8>, ban: &Ban) {
    out.extend_from_slice(&ban.time.to_be_bytes());
    out.push(ban.timeless.into());
    put_tests(out, &ban.tests);
}

/// Appends the tests of a ban. Equal tests have equal bytes.
pub(crate) fn put_tests(out: &mut Vec<u8>, tests: &[Test]) {
    // A ban with more tests than u32 can count exceeds the limit of an entry.
    out.extend_from_slice(&u32::try_from(tests.len()).unwrap_or(u32::MAX).to_be_bytes());
    for test in tests {
        let mut bytes = Vec::new();
        match test {
            Test::Text { subject, oper, text } => {
                bytes.push(subject_code(subject));
                if let Subject::RequestHeader(name) | Subject::ObjectHeader(name) = subject {
                    put_bytes(&mut bytes, name);
                }
                bytes.push(text_oper_code(*oper));
                put_bytes(&mut bytes, text);
            }
            Test::Number { subject, oper, number } => {
                bytes.push(duration_code(*subject));
                bytes.push(number_oper_code(*oper));
                bytes.extend_from_slice(&number.to_be_bytes());
            }
        }
        put_bytes(out, &bytes);
    }
}

/// Takes a ban, and whether all of its tests are known. Unknown ones are left out: they count as a match.
fn ban(r: &mut Reader<'_>) -> Result<(Ban, bool), Malformed> {
    let (time, timeless, count) = (r.f64()?, r.bool()?, r.u32()?);
    let mut tests = Vec::new();
    let mut known = true;
    for _ in 0..count {
        let mut bytes = Reader::new(r.bytes()?);
        match test(&mut bytes) {
            Ok(test) if bytes.is_empty() => tests.push(test),
            _ => known = false,
        }
    }
    // What is not known of it may depend on its time.
    Ok((Ban { time, timeless: timeless && known, tests }, known))
}

fn test(r: &mut Reader<'_>) -> Result<Test, Malformed> {
    let subject = match r.u8()? {
        1 => Subject::Url,
        2 => Subject::RequestHeader(r.bytes()?.to_vec()),
        3 => Subject::ObjectHeader(r.bytes()?.to_vec()),
        4 => Subject::Status,
        code @ 16..=19 => {
            let subject =
                [DurationOf::Ttl, DurationOf::Age, DurationOf::Grace, DurationOf::Keep][usize::from(code - 16)];
            return Ok(Test::Number { subject, oper: number_oper(r.u8()?)?, number: r.f64()? });
        }
        _ => return Err(Malformed("field")),
    };
    Ok(Test::Text { subject, oper: text_oper(r.u8()?)?, text: r.bytes()?.to_vec() })
}

fn subject_code(subject: &Subject) -> u8 {
    match subject {
        Subject::Url => 1,
        Subject::RequestHeader(_) => 2,
        Subject::ObjectHeader(_) => 3,
        Subject::Status => 4,
    }
}

fn duration_code(duration: DurationOf) -> u8 {
    match duration {
        DurationOf::Ttl => 16,
        DurationOf::Age => 17,
        DurationOf::Grace => 18,
        DurationOf::Keep => 19,
    }
}

fn text_oper_code(oper: TextOper) -> u8 {
    match oper {
        TextOper::Equal => 1,
        TextOper::NotEqual => 2,
        TextOper::Match => 3,
        TextOper::NoMatch => 4,
    }
}

fn text_oper(code: u8) -> Result<TextOper, Malformed> {
    Ok(match code {
        1 => TextOper::Equal,
        2 => TextOper::NotEqual,
        3 => TextOper::Match,
        4 => TextOper::NoMatch,
        _ => return Err(Malformed("operator")),
    })
}

fn number_oper_code(oper: NumberOper) -> u8 {
    match oper {
        NumberOper::Equal => 1,
        NumberOper::NotEqual => 2,
        NumberOper::Greater => 5,
        NumberOper::GreaterOrEqual => 6,
        NumberOper::Less => 7,
        NumberOper::LessOrEqual => 8,
    }
}

fn number_oper(code: u8) -> Result<NumberOper, Malformed> {
    Ok(match code {
        1 => NumberOper::Equal,
        2 => NumberOper::NotEqual,
        5 => NumberOper::Greater,
        6 => NumberOper::GreaterOrEqual,
        7 => NumberOper::Less,
        8 => NumberOper::LessOrEqual,
        _ => return Err(Malformed("operator")),
    })
}
