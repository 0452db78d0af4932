//! A head, from varnishd's object and back into varnishd's response.

use std::ffi::{c_char, c_void};
use std::ptr::null;
use std::time::SystemTime;

use objmapper_records::{Head, Headers, Hit, is_hop_by_hop, is_never_stored};
use varnishd::http::{self, View};
use varnishd::text::text;
use varnishd::workspace;
use varnishd_sys::attr::{FLAGS_SIZE, GZIPBITS_SIZE};
use varnishd_sys::bindings::{
    BS_LENGTH, BS_NONE, HTTP_CONN_MAGIC, HTTP_GetStatusPack, HTTP_IterHdrPack, OA_FLAGS, OA_GZIPBITS, OF_CHGCE,
    OF_ESIPROC, OF_GZIPED, ObjGetAttr, SC_NULL, VFP_Push, WS_Alloc, busyobj, http_PrintfHeader, http_PutResponse,
    http_SetHeader, http_VSL_log, http_conn, objcore, vfp, vfp_entry, worker,
};

/// Flags of an object that are the body's, and travel with it.
const BODY_FLAGS: u8 = (OF_GZIPED | OF_CHGCE | OF_ESIPROC) as u8;

/// Room for what is not the head's: the connection, the filters, Age and Content-Length.
const EXTRA_ROOM: usize = 2048;
/// Lines for Age, Content-Length and what varnishd may add.
const EXTRA_LINES: usize = 4;

fn is_one_of(name: &[u8], names: &[&[u8]]) -> bool {
    names.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Returns true if and only if no record holds a header line like this one.
fn is_left_out(line: &[u8]) -> bool {
    is_never_stored(http::name_of(line))
}

/// Makes the response of a fetch from a record, with a filter in place of a connection.
///
/// # Safety
/// `bo` must be the calling thread's busyobj with beresp and vfc set up and no connection; `age` in seconds.
pub(crate) unsafe fn respond(
    bo: *mut busyobj,
    hit: &Hit,
    age: u64,
    filter: *const vfp,
) -> Result<*mut vfp_entry, &'static str> {
    let head = &hit.head;
    let lines = head.headers.iter().filter(|line| !is_left_out(line));
    let (count, bytes) = lines.fold((0, 0), |(count, bytes), line| (count + 1, bytes + line.len() + 16));
    // SAFETY: by contract: everything is of this thread's transaction.
    unsafe {
        if count + EXTRA_LINES > http::most_lines((*bo).beresp) {
            return Err("more headers than http_max_hdr");
        }
        let ws = (&raw mut (*bo).ws).cast();
        if bytes + head.reason.len() + EXTRA_ROOM > workspace::free_room(ws) {
            return Err("head larger than what is left of workspace_backend");
        }
        let copy = |text: &[u8]| workspace::copy(ws, text).ok_or("workspace_backend is full");

        let htc = WS_Alloc(ws, size_of::<http_conn>() as u32).cast::<http_conn>();
        if htc.is_null() {
            return Err("workspace_backend is full");
        }
        let reason = copy(&head.reason)?;
        http_PutResponse((*bo).beresp, c"HTTP/1.1".as_ptr(), head.status, reason);
        for line in head.headers.iter().filter(|line| !is_left_out(line)) {
            http_SetHeader((*bo).beresp, copy(line)?);
        }
        let body_len = hit.record.body_len();
        http_PrintfHeader((*bo).beresp, c"Content-Length: %ju".as_ptr(), body_len);
        http_PrintfHeader((*bo).beresp, c"Age: %ju".as_ptr(), age);

        let entry = VFP_Push((*bo).vfc, filter);
        if entry.is_null() {
            return Err("workspace_backend is full");
        }
        htc.write_bytes(0, 1);
        (*htc).magic = HTTP_CONN_MAGIC;
        (*htc).doclose = (&raw const SC_NULL).cast();
        (*htc).content_length = isize::try_from(body_len).map_err(|_| "body too large")?;
        (*htc).body_status = if body_len == 0 { (&raw const BS_NONE).cast() } else { (&raw const BS_LENGTH).cast() };
        (*bo).htc = htc;
        http_VSL_log((*bo).beresp);
        Ok(entry)
    }
}

/// An attribute of an object.
///
/// # Safety
/// `oc` must be an object that the calling thread holds a reference to, `wrk` its worker.
unsafe fn attribute<'a>(wrk: *mut worker, oc: *mut objcore, attr: u32) -> Option<&'a [u8]> {
    let mut len = 0;
    // SAFETY: by contract; the attribute stays where it is as long as the object.
    unsafe {
        let found = ObjGetAttr(wrk, oc, attr as _, &raw mut len);
        (!found.is_null()).then(|| std::slice::from_raw_parts(found.cast::<u8>(), usize::try_from(len).unwrap_or(0)))
    }
}

/// The head of a complete object; `None` if it is larger than one can be.
///
/// # Safety
/// `bo` must be the calling thread's busyobj, whose fetch has ended well.
pub(crate) unsafe fn head(bo: *mut busyobj) -> Option<Head> {
    // SAFETY: by contract: object, worker and response are this thread's until its task ends.
    unsafe {
        let (wrk, oc) = ((*bo).wrk, (*bo).fetch_objcore);
        let mut headers = Headers::default();
        let mut line: *const c_char = null();
        while HTTP_IterHdrPack(wrk, oc, &raw mut line) != 0 {
            let text = text(line)?;
            if !is_left_out(text) && !headers.push(text) {
                return None;
            }
        }
        let flags = attribute(wrk, oc, OA_FLAGS).filter(|a| a.len() == FLAGS_SIZE).map_or(0, |a| a[0]);
        let gzip_bits = attribute(wrk, oc, OA_GZIPBITS)
            .filter(|a| a.len() == GZIPBITS_SIZE && u32::from(flags) & OF_GZIPED != 0)
            .and_then(|a| a.try_into().ok());
        Some(Head {
            status: HTTP_GetStatusPack(wrk, oc),
            reason: View::new((*bo).beresp).reason().to_vec(),
            headers,
            t_origin: (*oc).t_origin,
            ttl: (*oc).ttl,
            grace: (*oc).grace,
            keep: (*oc).keep,
            gzip_bits,
            flags: flags & BODY_FLAGS,
        })
    }
}

/// The head of a record after the origin's 304, as varnishd's own 304 logic makes it (`vbf_304_logic`): what the 304 says
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
        let strong = name.eq_ignore_ascii_case(b"ETag") && u32::from(old.flags) & OF_CHGCE != 0;
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

/// A header's number of seconds: its leading digits.
pub(crate) fn seconds(value: &[u8]) -> u64 {
    let digits = value.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0_u64, |sum, b| sum.saturating_mul(10).saturating_add(u64::from(b - b'0'))).min(u64::from(u32::MAX))
}

/// The gzip attribute of an object whose body is a record's, as it was when it was published.
///
/// # Safety
/// As for [`attribute`], in the fetch, before the object is complete.
pub(crate) unsafe fn set_gzip_bits(wrk: *mut worker, oc: *mut objcore, bits: &[u8; 32]) -> bool {
    use varnishd_sys::bindings::ObjSetAttr;
    // SAFETY: by contract; ObjSetAttr copies the bytes.
    let set = unsafe { ObjSetAttr(wrk, oc, OA_GZIPBITS, bits.len() as isize, bits.as_ptr().cast::<c_void>()) };
    !set.is_null()
}
