//! The head of a response as the origin sent it, beside the head as it was stored.
//!
//! A cache that serves a record runs its own rules for responses over this head, as they were run over the origin's
//! response: what they derive from a header and remove, or append to one, comes out as it did then. A record whose head
//! was stored as the origin sent it has no second one.

use crate::record::bytes::{Malformed, Reader, put_bytes};
use crate::record::head::Headers;
use crate::record::never_stored::is_never_stored;

/// A response's status, reason and header lines as the origin sent them. No line is one of a connection's, or a cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginHead {
    /// The status code.
    pub status: u16,
    /// The reason phrase.
    pub reason: Vec<u8>,
    /// The header lines.
    pub headers: Headers,
}

impl OriginHead {
    /// Makes the head of a response with these lines, without those that no record holds. `None`: it is too long.
    #[must_use]
    pub fn new(status: u16, reason: &[u8], lines: &[&[u8]]) -> Option<Self> {
        let mut all = Headers::default();
        if !lines.iter().all(|line| all.push(line)) {
            return None;
        }
        // What Connection names is of the connection, too (RFC 9110, section 7.6.1).
        let named: Vec<&[u8]> =
            all.values(b"Connection").flat_map(|value| value.split(|b| *b == b',').map(<[u8]>::trim_ascii)).collect();
        let is_named = |line: &[u8]| named.iter().any(|name| name.eq_ignore_ascii_case(name_of(line)));
        let mut headers = Headers::default();
        let mut kept = lines.iter().filter(|line| !is_left_out(line) && !is_named(line));
        kept.all(|line| headers.push(line)).then(|| Self { status, reason: reason.to_vec(), headers })
    }

    /// Returns the same head without the lines that no record holds, such as the cookie of a 304.
    #[must_use]
    pub fn storable(&self) -> Option<Self> {
        Self::new(self.status, &self.reason, &self.headers.iter().collect::<Vec<_>>())
    }

    /// Returns true if a line is one that an origin's head in a record must not have.
    pub(crate) fn has_left_out(&self) -> bool {
        self.headers.iter().any(is_left_out)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&self.status.to_be_bytes());
        put_bytes(&mut out, &self.reason);
        self.headers.encode(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let (status, reason) = (r.u16()?, r.bytes()?.to_vec());
        let headers = Headers::decode(&mut r)?;
        r.end()?;
        Ok(Self { status, reason, headers })
    }
}

/// Returns true if and only if no origin's head in a record has a line of this name: it is of one connection, of each
/// response, or a cookie, which is one client's.
fn is_left_out(line: &[u8]) -> bool {
    is_never_stored(name_of(line)) || name_of(line).eq_ignore_ascii_case(b"Set-Cookie")
}

fn name_of(line: &[u8]) -> &[u8] {
    line.split(|b| *b == b':').next().unwrap_or_default()
}
