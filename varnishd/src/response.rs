//! A response that a director makes itself, with a filter in place of a connection; and the head of a stored one.

use std::ffi::c_char;
use std::ptr::null;

use varnishd_sys::bindings::{
    BS_LENGTH, BS_NONE, HTTP_CONN_MAGIC, HTTP_GetStatusPack, HTTP_IterHdrPack, SC_NULL, WS_Alloc, http_PrintfHeader,
    http_PutResponse, http_SetHeader, http_VSL_log, http_conn,
};

use crate::boundary::Constant;
use crate::fetch::Busyobj;
use crate::fetch_filters::Entry;
use crate::http;
use crate::objcore::Objcore;
use crate::raw::FetchFilter;
use crate::text::text;
use crate::worker::Worker;

/// Room for what is not the head's: the connection, the filters, Age and Content-Length.
const EXTRA_ROOM: usize = 2048;
/// Lines for Age, Content-Length and what varnishd may add.
const EXTRA_LINES: usize = 4;

/// A response that is complete but for its body.
#[derive(Clone, Copy)]
pub struct Response<'h> {
    /// The status.
    pub status: u16,
    /// The reason phrase.
    pub reason: &'h [u8],
    /// The header lines, without Age and Content-Length.
    pub lines: &'h [&'h [u8]],
    /// Bytes of the body.
    pub body_len: u64,
    /// Its age in seconds.
    pub age: u64,
}

/// Makes a response, with `filter` as the source of its body.
///
/// # Errors
/// The head is larger than what varnishd has room for, and why: the response is to be begun anew.
///
/// # Safety
/// Called when varnishd has asked a director of ours for the response; the fetch must have none and no connection. No view of
/// the response that was made before may be used afterwards.
pub unsafe fn respond<'a>(
    bo: Busyobj<'a>,
    response: Response<'_>,
    filter: &'static Constant<FetchFilter>,
) -> Result<Entry<'a>, &'static str> {
    let Response { status, reason, lines, body_len, age } = response;
    let bytes: usize = lines.iter().map(|line| line.len() + 16).sum();
    let workspace = bo.workspace();
    // SAFETY: by contract: everything is of this thread's transaction.
    unsafe {
        let raw = bo.as_ptr();
        let beresp = (*raw).beresp;
        if lines.len() + EXTRA_LINES > http::max_lines(beresp) {
            return Err("more headers than http_max_hdr");
        }
        if bytes + reason.len() + EXTRA_ROOM > workspace.free_room() {
            return Err("head larger than what is left of workspace_backend");
        }
        let copy = |text: &[u8]| workspace.copy(text).ok_or("workspace_backend is full");

        let htc = WS_Alloc(workspace.as_ptr(), size_of::<http_conn>() as u32).cast::<http_conn>();
        if htc.is_null() {
            return Err("workspace_backend is full");
        }
        http_PutResponse(beresp, c"HTTP/1.1".as_ptr(), status, copy(reason)?);
        for line in lines {
            http_SetHeader(beresp, copy(line)?);
        }
        http_PrintfHeader(beresp, c"Content-Length: %ju".as_ptr(), body_len);
        http_PrintfHeader(beresp, c"Age: %ju".as_ptr(), age);

        let entry = bo.push_filter(filter).map_err(|_| "workspace_backend is full")?;
        htc.write_bytes(0, 1);
        (*htc).magic = HTTP_CONN_MAGIC;
        (*htc).doclose = (&raw const SC_NULL).cast();
        (*htc).content_length = isize::try_from(body_len).map_err(|_| "body too large")?;
        (*htc).body_status = if body_len == 0 { (&raw const BS_NONE).cast() } else { (&raw const BS_LENGTH).cast() };
        (*raw).htc = htc;
        http_VSL_log(beresp);
        Ok(entry)
    }
}

/// Returns the status of a stored response.
pub fn stored_status(oc: Objcore<'_>, wrk: Worker<'_>) -> u16 {
    // SAFETY: a referenced object and the calling thread's worker.
    unsafe { HTTP_GetStatusPack(wrk.as_ptr(), oc.as_ptr()) }
}

/// Returns the header lines of a stored response.
pub fn stored_lines<'a>(oc: Objcore<'a>, wrk: Worker<'a>) -> impl Iterator<Item = &'a [u8]> {
    let mut line: *const c_char = null();
    std::iter::from_fn(move || {
        // SAFETY: a referenced object and the calling thread's worker; a line stays where it is as long as the object.
        unsafe {
            if HTTP_IterHdrPack(wrk.as_ptr(), oc.as_ptr(), &raw mut line) == 0 {
                return None;
            }
            text(line)
        }
    })
}
