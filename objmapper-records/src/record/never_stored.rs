//! Headers that no record holds.
//!
//! One list, because both sides of it must agree: a record is made and served without these headers, and a ban on one of
//! them matches every record, since what the object said in it is not known.

/// Headers of one connection (RFC 9110, section 7.6.1), and those that varnishd takes for such (Varnish:
/// `include/tbl/http_headers.h`).
const HOP_BY_HOP: [&[u8]; 10] = [
    b"Connection",
    b"Proxy-Connection",
    b"Keep-Alive",
    b"TE",
    b"Trailer",
    b"Transfer-Encoding",
    b"Upgrade",
    b"HTTP2-Settings",
    b"Proxy-Authenticate",
    b"Proxy-Authorization",
];

/// Headers that each response from a record has with a value of its own.
const RESPONSE_ONLY: [&[u8]; 2] = [b"Age", b"Content-Length"];

fn is_one_of(name: &[u8], names: &[&[u8]]) -> bool {
    names.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Returns true if and only if a header of this name is of one connection.
#[must_use]
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    is_one_of(name, &HOP_BY_HOP)
}

/// Returns true if and only if no record holds a header of this name.
#[must_use]
pub fn is_never_stored(name: &[u8]) -> bool {
    is_hop_by_hop(name) || is_one_of(name, &RESPONSE_ONLY)
}

/// All names, for tests.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static [u8]> {
    HOP_BY_HOP.into_iter().chain(RESPONSE_ONLY)
}
