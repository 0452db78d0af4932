//! A record's head: made of varnishd's stored object, renewed by a 304, and made into varnishd's response again.

use std::time::SystemTime;

use objmapper_records::{Head, Headers, Hit, is_hop_by_hop, is_never_stored};
use varnishd::attributes::{self, body_flags};
use varnishd::boundary::Constant;
use varnishd::fetch::Busyobj;
use varnishd::fetch_filters::Entry;
use varnishd::http::{self, View};
use varnishd::raw::FetchFilter;
use varnishd::response::{self, Response};

fn is_one_of(name: &[u8], names: &[&[u8]]) -> bool {
    names.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Returns true if and only if no record holds a header line like this one.
fn is_left_out(line: &[u8]) -> bool {
    is_never_stored(http::name_of(line))
}

/// Makes the response of a fetch from a record, with a filter in place of a connection; `age` in seconds.
///
/// # Safety
/// As for [`response::respond`].
pub(crate) unsafe fn respond<'a>(
    bo: Busyobj<'a>,
    hit: &Hit,
    age: u64,
    filter: &'static Constant<FetchFilter>,
) -> Result<Entry<'a>, &'static str> {
    let head = &hit.head;
    let lines: Vec<&[u8]> = head.headers.iter().filter(|line| !is_left_out(line)).collect();
    let body_len = hit.record.body_len();
    let response = Response { status: head.status, reason: &head.reason, lines: &lines, body_len, age };
    // SAFETY: by contract.
    unsafe { response::respond(bo, response, filter) }
}

/// Returns the head of the complete object of a fetch that has ended well; `None` if it is larger than one can be.
pub(crate) fn of_object(bo: Busyobj<'_>) -> Option<Head> {
    let (wrk, oc) = (bo.worker(), bo.object());
    let mut headers = Headers::default();
    for line in response::stored_lines(oc, wrk) {
        if !is_left_out(line) && !headers.push(line) {
            return None;
        }
    }
    let lifetime = oc.lifetime();
    Some(Head {
        status: response::stored_status(oc, wrk),
        reason: bo.response().reason().to_vec(),
        headers,
        t_origin: lifetime.origin,
        ttl: lifetime.ttl,
        grace: lifetime.grace,
        keep: lifetime.keep,
        gzip_bits: attributes::gzip_bits(oc, wrk),
        flags: attributes::flags(oc, wrk),
    })
}

/// Returns the head of a record after the origin's 304, as varnishd's own 304 logic makes it (Varnish: `cache/cache_fetch.c`): what the 304 says
/// replaces what the record said, but for what describes its body, and for headers of the connection, which go. A 304
/// without a Date was made now (RFC 9110, section 6.6.1): with the record's old one, which is as far from Expires as ever, it
/// would be fresh again.
pub(crate) fn refreshed(old: &Head, answer: View<'_>, now: SystemTime) -> Option<Head> {
    let named: Vec<&[u8]> = answer
        .lines()
        .filter_map(|line| http::value_of(line, b"Connection"))
        .flat_map(|value| value.split(|b| *b == b',').map(<[u8]>::trim_ascii))
        .collect();
    let mut headers = Headers::default();
    let mut said: Vec<&[u8]> = Vec::new();
    if answer.header(b"Date").is_none() {
        said.push(b"Date");
        if !headers.push(format!("Date: {}", httpdate::fmt_http_date(now.max(SystemTime::UNIX_EPOCH))).as_bytes()) {
            return None;
        }
    }
    for line in answer.lines() {
        let name = http::name_of(line);
        if is_one_of(name, &[b"Content-Encoding", b"Content-Length", b"Content-Range"]) {
            continue;
        }
        said.push(name);
        if is_hop_by_hop(name) || is_one_of(name, &named) {
            continue;
        }
        // The origin's ETag is of its own coding of the body, ours is of another.
        let strong = name.eq_ignore_ascii_case(b"ETag") && old.flags & body_flags::RECODED != 0;
        let fits = match http::value_of(line, b"ETag") {
            Some(tag) if strong && !tag.starts_with(b"W/") => headers.push(&[b"ETag: W/", tag].concat()),
            _ => headers.push(line),
        };
        if !fits {
            return None;
        }
    }
    for line in old.headers.iter().filter(|line| !is_left_out(line)) {
        if !said.iter().any(|name| name.eq_ignore_ascii_case(http::name_of(line))) && !headers.push(line) {
            return None;
        }
    }
    Some(Head { headers, ..old.clone() })
}

/// Returns a header's number of seconds: its leading digits.
pub(crate) fn seconds(value: &[u8]) -> u64 {
    let digits = value.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0_u64, |sum, b| sum.saturating_mul(10).saturating_add(u64::from(b - b'0'))).min(u64::from(u32::MAX))
}
