//! The rules that a head satisfies before it is published, and before it is passed to varnishd.
//!
//! A record comes from a store to which other programs write. varnishd asserts what it takes for granted of a response
//! that its own parser has accepted; a record has not passed that parser. So everything that varnishd asserts, and
//! everything that its parser refuses, is checked here:
//!
//! | field | rule | in Varnish 7.7 |
//! |---|---|---|
//! | status | `status % 1000` is 200 to 999, not 206 and not 304 | `cache/cache_http.c`, `cache/cache_fetch.c` |
//! | reason, header values | no control characters but HTAB (RFC 9110, section 5.5) | `http1/cache_http1_proto.c` |
//! | header names | a token and a colon (RFC 9110, section 5.6.2) | `http1/cache_http1_proto.c` |
//! | times | `t_origin` from 1970 to 2200, durations clamped to 0 … 100 years | `cache/cache_lck.c` |
//! | Vary | names what the record's Vary key names | `cache/cache_vary.c` |
//! | gzip bits | inside the body, in order, the start on a byte's boundary | `cache/cache_esi_deliver.c` |
//! | Cache-Control, Set-Cookie | nothing that is never shared | [`Head::unshareable`] |

use crate::record::bytes::Malformed;
use crate::record::head::{Head, Headers};
use crate::record::vary::{Spec, VaryKey, is_token};

/// The longest ttl, grace or keep of a record, in seconds: 100 years. Longer ones are cut to it.
pub(crate) const MAX_DURATION: f32 = 100.0 * 365.25 * 86_400.0;

/// The latest time at which an origin can have made a response: the year 2200, in seconds since 1970.
const MAX_T_ORIGIN: f64 = 7_258_118_400.0;

/// The number of seconds by which another machine's clock may be ahead: varnishd's default for its parameter
/// `clock_skew`.
const MAX_CLOCK_SKEW: f64 = 10.0;

impl Head {
    /// Returns the same head with its durations cut to their limits.
    pub(crate) fn clamped(self) -> Self {
        let clamp = |seconds: f32| seconds.clamp(0.0, MAX_DURATION);
        Self { ttl: clamp(self.ttl), grace: clamp(self.grace), keep: clamp(self.keep), ..self }
    }

    /// Checks all rules of this file that do not depend on the body. `vary` is the record's Vary key.
    pub(crate) fn validate(&self, vary: Option<&VaryKey>) -> Result<(), Malformed> {
        validate_lines(self.status, &self.reason, &self.headers)?;
        if let Some(origin) = &self.origin {
            validate_lines(origin.status, &origin.reason, &origin.headers)?;
            if origin.has_left_out() {
                return Err(Malformed("header line of the origin"));
            }
        }
        if !(0.0..=MAX_T_ORIGIN).contains(&self.t_origin) {
            return Err(Malformed("t_origin"));
        }
        let spec = Spec::of_response(&self.headers).map_err(|_| Malformed("Vary"))?;
        if !vary.map_or_else(|| spec.is_empty(), |vary| spec.is(vary.spec())) {
            return Err(Malformed("Vary"));
        }
        self.unshareable().map_or(Ok(()), |rule| Err(Malformed(rule)))
    }

    /// Checks the gzip bits, of which varnishd asserts that they lie in a body of `body_len` bytes. `last_bytes` are the
    /// body's last four: the uncompressed length modulo 2^32 in a gzip file (RFC 1952, section 2.3.1), which varnishd takes
    /// from the bits for Content-Length.
    pub(crate) fn validate_gzip(&self, body_len: u64, last_bytes: Option<[u8; 4]>) -> Result<(), Malformed> {
        let Some(bits) = &self.gzip_bits else { return Ok(()) };
        let [start, last, stop, uncompressed] = fields(bits);
        let in_body = |bit: u64| bit > 0 && bit / 8 < body_len;
        let placed = [start, last, stop].into_iter().all(in_body) && start <= last && last < stop && start % 8 == 0;
        let length = last_bytes.map(u32::from_le_bytes);
        // 0 is an unknown length.
        if placed && (uncompressed == 0 || length == Some(uncompressed as u32)) {
            Ok(())
        } else {
            Err(Malformed("gzip bits"))
        }
    }

    /// Returns [`unshareable`] of this head.
    #[must_use]
    pub fn unshareable(&self) -> Option<&'static str> {
        unshareable(self.status, &self.headers)
    }

    /// Returns true if the response was made later than any clock of this cache's machines can say: the clock was set
    /// back, or the record is wrong. Its age is unknown, so that it is not used.
    pub(crate) fn is_from_the_future(&self, now: f64) -> bool {
        self.t_origin > now + MAX_CLOCK_SKEW
    }
}

/// Checks a head's status, reason and header lines.
fn validate_lines(status: u16, reason: &[u8], headers: &Headers) -> Result<(), Malformed> {
    if !matches!(status % 1000, 200..=205 | 207..=303 | 305..=999) {
        return Err(Malformed("status"));
    }
    if !is_field_value(reason) {
        return Err(Malformed("reason"));
    }
    if !headers.iter().all(is_header_line) {
        return Err(Malformed("header line"));
    }
    Ok(())
}

/// Returns why a response must not be shared, whatever VCL decides; `None` if it may be.
#[must_use]
pub fn unshareable(status: u16, headers: &Headers) -> Option<&'static str> {
    let lists = |name: &[u8], token: &[u8]| {
        headers.values(name).any(|value| {
            value.split(|b| *b == b',').any(|part| {
                let part = part.split(|b| *b == b'=').next().unwrap_or_default();
                part.trim_ascii().eq_ignore_ascii_case(token)
            })
        })
    };
    match () {
        () if status == 206 || status < 200 => Some("status"),
        () if headers.get(b"Set-Cookie").is_some() => Some("Set-Cookie"),
        () if lists(b"Cache-Control", b"private") => Some("private"),
        () if lists(b"Cache-Control", b"no-store") => Some("no-store"),
        () if lists(b"Vary", b"*") => Some("Vary: *"),
        () => None,
    }
}

/// The four big-endian u64 of varnishd's gzip attribute: the first bit of deflate, the last block's, the one behind it; the
/// uncompressed length.
fn fields(bits: &[u8; 32]) -> [u64; 4] {
    let mut fields = [0; 4];
    for (field, bytes) in fields.iter_mut().zip(bits.chunks_exact(8)) {
        *field = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    fields
}

/// Returns true if the bytes can be a field's value or a reason: no control characters but HTAB.
fn is_field_value(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == b'\t' || !b.is_ascii_control())
}

/// Returns true if the line is `Name: value`.
fn is_header_line(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|b| *b == b':') else { return false };
    let (name, value) = line.split_at(colon);
    !name.is_empty() && name.iter().copied().all(is_token) && is_field_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &[&[u8]]) -> Head {
        let mut headers = Headers::default();
        for line in lines {
            assert!(headers.push(line));
        }
        Head {
            status: 200,
            reason: b"OK".to_vec(),
            headers,
            t_origin: 1.8e9,
            ttl: 10.0,
            grace: 0.0,
            keep: 0.0,
            gzip_bits: None,
            flags: 0,
            origin: None,
        }
    }

    #[test]
    fn what_varnishd_would_assert_or_refuse() {
        assert_eq!(head(&[b"A: b", b"X-1:", b"Tab: a\tb", b"High: \xe4"]).validate(None), Ok(()));
        for status in [0, 99, 100, 199, 206, 304, 1000, 1099, 1206, 65_099] {
            assert_eq!(Head { status, ..head(&[]) }.validate(None), Err(Malformed("status")), "{status}");
        }
        for status in [200, 404, 599, 999, 1200, 65_404] {
            assert_eq!(Head { status, ..head(&[]) }.validate(None), Ok(()), "{status}");
        }
        assert!(Head { reason: b"OK\r\nX: y".to_vec(), ..head(&[]) }.validate(None).is_err());
        for line in [
            &b"no colon"[..],
            b": no name",
            b"",
            b"a b: c",
            b"A: b\r\nC: d",
            b"A: b\nC: d",
            b"A: \0",
            b"A\0: b",
            b"A: \x7f",
        ] {
            assert_eq!(head(&[line]).validate(None), Err(Malformed("header line")), "{}", line.escape_ascii());
        }
        for t_origin in [-1.0, 1e300] {
            assert_eq!(Head { t_origin, ..head(&[]) }.validate(None), Err(Malformed("t_origin")));
        }
        for line in [&b"Vary: X"[..], b"Vary: a b", b"Vary: *"] {
            assert_eq!(head(&[line]).validate(None), Err(Malformed("Vary")), "{}", line.escape_ascii());
        }
        for line in [&b"Set-Cookie: a=b"[..], b"Cache-Control: max-age=1, private", b"cache-control: no-store"] {
            assert!(head(&[line]).validate(None).is_err(), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn durations_are_cut() {
        let long = Head { ttl: 1e30, grace: -5.0, keep: f32::MAX, ..head(&[]) }.clamped();
        assert_eq!((long.ttl, long.grace, long.keep), (MAX_DURATION, 0.0, MAX_DURATION));
        assert!(long.end() < MAX_T_ORIGIN * 3.0);
    }

    #[test]
    fn gzip_bits_lie_in_the_body() {
        let check = |[start, last, stop, length]: [u64; 4], body_len| {
            let bits = [start, last, stop, length].map(u64::to_be_bytes).concat();
            let head = Head { gzip_bits: bits.try_into().ok(), ..head(&[]) };
            head.validate_gzip(body_len, Some(7_u32.to_le_bytes()))
        };
        assert_eq!(check([80, 80, 120, 7], 20), Ok(()));
        assert_eq!(check([80, 80, 120, 0], 20), Ok(()));
        assert_eq!(check([80, 80, 120, (1 << 32) + 7], 20), Ok(()));
        for (bits, body_len) in [
            ([0, 80, 120, 7], 20),
            ([80, 160, 161, 7], 20),
            ([80, 79, 120, 7], 20),
            ([80, 120, 120, 7], 20),
            ([81, 88, 120, 7], 20),
            ([80, 80, u64::MAX, 7], 20),
            ([80, 80, 120, 8], 20),
            ([80, 80, 120, 7], 0),
        ] {
            assert!(check(bits, body_len).is_err(), "{bits:?} in {body_len}");
        }
    }
}
