//! A stored body that was parsed for ESI when it was first fetched is parsed again when a director's filter is its source.
//!
//! That its ESI instructions are to be carried out is one of the object's flags (`OF_ESIPROC`), and no header need say so any
//! more: VCL may have taken away the one that it was told by. As with varnishd's own 304, which copies the result of the
//! parser, `beresp.do_esi` does not take it back.

use std::ffi::CStr;

use varnishd_sys::bindings::{OF_ESIPROC, VBF_Get_Filter_List, VCL_StackVFP, busyobj, vfp_ctx, vfp_entry};

use crate::fetch_filters;

/// Whether a body with these flags was parsed for ESI.
pub fn is_esi(flags: u8) -> bool {
    u32::from(flags) & OF_ESIPROC != 0
}

/// What [`ensure`] has found or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parser {
    /// A filter parses the body.
    There,
    /// VCL has chosen filters of its own (`beresp.filters`), without one.
    Unwanted,
    /// The filters do not fit into the workspace.
    NoRoom,
}

/// Has the body parsed for ESI, unless VCL has chosen the filters itself.
///
/// # Safety
/// `bo` and `vc` must be the calling thread's, in the init of the filter `source`, with no filter above it opened yet. `ours` must
/// tell the filters that the director has pushed from those that varnishd has pushed for VCL.
pub unsafe fn ensure(bo: *mut busyobj, vc: *mut vfp_ctx, ours: impl Fn(*const vfp_entry) -> bool) -> Parser {
    // SAFETY: by contract: the list is of entries in the workspace; the filters above ours were pushed by VCL_StackVFP and
    // have nothing to give back before they are opened.
    unsafe {
        if fetch_filters::entries(vc).any(|entry| matches!(fetch_filters::name(entry), b"esi" | b"esi_gzip")) {
            return Parser::There;
        }
        let chosen = (*bo).vfp_filter_list;
        if chosen.is_null() || CStr::from_ptr(VBF_Get_Filter_List(bo)) != CStr::from_ptr(chosen) {
            return Parser::Unwanted;
        }
        // As vbf_stp_startfetch and vbf_stp_fetch do it for beresp.do_esi: an object is delivered when it is parsed as a whole.
        (*bo).set_do_esi(1);
        (*bo).set_do_stream(0);
        let boc = (*(*bo).fetch_objcore).boc;
        if !boc.is_null() {
            (*boc).transit_buffer = 0;
        }
        let filters = VBF_Get_Filter_List(bo);
        if !CStr::from_ptr(filters).to_bytes().windows(3).any(|word| word == b"esi") {
            return Parser::NoRoom;
        }
        (*bo).vfp_filter_list = filters;
        for above in fetch_filters::entries(vc).take_while(|entry| !ours(*entry)) {
            fetch_filters::remove(vc, above);
        }
        // VFP_Open goes on with the one before ours, which is the first of these.
        if VCL_StackVFP(vc, (*bo).vcl, filters) == 0 { Parser::There } else { Parser::NoRoom }
    }
}
