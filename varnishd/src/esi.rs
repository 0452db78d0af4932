//! A stored body that was parsed for ESI when it was first fetched is parsed again when a director's filter is its source.
//!
//! That its ESI instructions are to be carried out is one of the object's flags ([`body_flags::ESI`]), and no header need say so any
//! more: VCL may have taken away the one that it was told by. As with varnishd's own 304, which copies the result of the
//! parser, `beresp.do_esi` does not take it back.

use std::ffi::CStr;

use varnishd_sys::bindings::{VBF_Get_Filter_List, VCL_StackVFP};

use crate::attributes::body_flags;
use crate::fetch::Busyobj;
use crate::fetch_filters::{Entry, Filters};

/// Returns true if a body with these flags was parsed for ESI.
pub fn is_esi(flags: u8) -> bool {
    flags & body_flags::ESI != 0
}

/// The outcome of [`ensure_parser`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parser {
    /// A filter parses the body.
    Present,
    /// VCL has chosen filters of its own (`beresp.filters`), without one.
    Unwanted,
    /// The filters do not fit into the workspace.
    NoRoom,
}

/// Has the body parsed for ESI, unless VCL has chosen the filters itself.
///
/// # Safety
/// Called in the init of the filter that is the source of the body, with its fetch and filters, and no filter above it opened yet.
/// `is_ours` must tell the filters that the director has pushed from those that varnishd has pushed for VCL.
pub unsafe fn ensure_parser<'a>(bo: Busyobj<'a>, filters: Filters<'a>, is_ours: impl Fn(Entry<'a>) -> bool) -> Parser {
    if filters.entries().any(|entry| matches!(entry.name(), b"esi" | b"esi_gzip")) {
        return Parser::Present;
    }
    let raw = bo.as_ptr();
    // SAFETY: by contract: the list is of entries in the workspace; the filters above ours were pushed by varnishd and
    // have nothing to give back before they are opened.
    unsafe {
        let chosen = (*raw).vfp_filter_list;
        if chosen.is_null() || CStr::from_ptr(VBF_Get_Filter_List(raw)) != CStr::from_ptr(chosen) {
            return Parser::Unwanted;
        }
        // As the fetch does it for beresp.do_esi (cache/cache_fetch.c): an object is delivered when it is parsed as a whole.
        bo.set_esi();
        (*raw).set_do_stream(0);
        bo.object().lift_transit_buffer();
        let list = VBF_Get_Filter_List(raw);
        if !CStr::from_ptr(list).to_bytes().windows(3).any(|word| word == b"esi") {
            return Parser::NoRoom;
        }
        (*raw).vfp_filter_list = list;
        for above in filters.entries().take_while(|entry| !is_ours(*entry)) {
            filters.remove(above);
        }
        // varnishd goes on with the one before ours, which is the first of these.
        if VCL_StackVFP(filters.as_ptr(), (*raw).vcl, list) == 0 { Parser::Present } else { Parser::NoRoom }
    }
}
