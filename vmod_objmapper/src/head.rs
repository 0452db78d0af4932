//! A record's head: made of varnishd's stored object, renewed by a 304, and made into varnishd's response again.
//!
//! A record has two: as it was stored, and as the origin sent it. The response is made of the latter, so that
//! vcl_backend_response works on what it worked on when the record was published; only what describes the body is of the
//! former, as the body is the stored one.

use std::time::SystemTime;

use objmapper_records::{Head, Headers, Hit, OriginHead, is_hop_by_hop, is_never_stored};
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

fn is_content_encoding(line: &[u8]) -> bool {
    http::name_of(line).eq_ignore_ascii_case(b"Content-Encoding")
}

/// Returns the lines of the response that is made from a record.
fn response_lines(head: &Head) -> Vec<&[u8]> {
    let (_, _, sent) = head.as_sent();
    let coding = head.headers.iter().filter(|line| is_content_encoding(line));
    sent.iter().filter(|line| !is_left_out(line) && !is_content_encoding(line)).chain(coding).collect()
}

/// Returns the head of the origin's response to a fetch, which VCL has not seen yet. `None`: it is larger than one can be, or is a
/// 304, of which varnishd makes a response by an object of its own, whose head is as VCL left it.
pub(crate) fn of_origin(bo: Busyobj<'_>, now: SystemTime) -> Option<OriginHead> {
    let response = bo.response();
    if response.status() == 304 {
        return None;
    }
    let mut lines: Vec<&[u8]> = response.lines().collect();
    // As varnishd dates a response without a Date.
    let date = date_line(now);
    if response.header(b"Date").is_none() {
        lines.push(date.as_bytes());
    }
    OriginHead::new(response.status(), response.reason(), &lines)
}

fn date_line(now: SystemTime) -> String {
    format!("Date: {}", httpdate::fmt_http_date(now.max(SystemTime::UNIX_EPOCH)))
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
    let (status, reason, _) = hit.head.as_sent();
    let (lines, body_len) = (response_lines(&hit.head), hit.record.body_len());
    let response = Response { status, reason, lines: &lines, body_len, age };
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
        origin: None,
    })
}

/// Returns the head of a record after the origin's 304, as varnishd's own 304 logic makes it (Varnish: `cache/cache_fetch.c`): what the 304 says
/// replaces what the record said, but for what describes its body, and for headers of the connection, which go. A 304
/// without a Date was made now (RFC 9110, section 6.6.1): with the record's old one, which is as far from Expires as ever, it
/// would be fresh again. Both heads of the record are renewed so.
pub(crate) fn refreshed(old: &Head, answer: View<'_>, now: SystemTime) -> Option<Head> {
    let headers = refreshed_lines(&old.headers, old.flags & body_flags::RECODED != 0, answer, now)?;
    let (status, reason, sent) = old.as_sent();
    let sent = refreshed_lines(sent, false, answer, now)?;
    let origin = OriginHead { status, reason: reason.to_vec(), headers: sent };
    Some(Head { headers, origin: Some(origin), ..old.clone() })
}

/// Returns the lines of a head after a 304. `recoded`: the body is not coded as the origin's is, so that its ETag is weak.
fn refreshed_lines(old: &Headers, recoded: bool, answer: View<'_>, now: SystemTime) -> Option<Headers> {
    let named: Vec<&[u8]> = answer
        .lines()
        .filter_map(|line| http::value_of(line, b"Connection"))
        .flat_map(|value| value.split(|b| *b == b',').map(<[u8]>::trim_ascii))
        .collect();
    let mut headers = Headers::default();
    let mut said: Vec<&[u8]> = Vec::new();
    if answer.header(b"Date").is_none() {
        said.push(b"Date");
        if !headers.push(date_line(now).as_bytes()) {
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
        let fits = match http::value_of(line, b"ETag") {
            Some(tag) if recoded && !tag.starts_with(b"W/") => headers.push(&[b"ETag: W/", tag].concat()),
            _ => headers.push(line),
        };
        if !fits {
            return None;
        }
    }
    for line in old.iter().filter(|line| !is_left_out(line)) {
        if !said.iter().any(|name| name.eq_ignore_ascii_case(http::name_of(line))) && !headers.push(line) {
            return None;
        }
    }
    Some(headers)
}

/// Returns a header's number of seconds: its leading digits.
pub(crate) fn seconds(value: &[u8]) -> u64 {
    let digits = value.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0_u64, |sum, b| sum.saturating_mul(10).saturating_add(u64::from(b - b'0'))).min(u64::from(u32::MAX))
}
