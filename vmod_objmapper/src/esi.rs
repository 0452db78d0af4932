//! A body that was parsed for ESI is parsed again when a record of it becomes an object.
//!
//! The record holds the body with its ESI instructions. That they are to be carried out is one of its flags (`OF_ESIPROC`), and
//! no header need say so any more: VCL may have taken away the one that it was told by. As with varnishd's own 304, which
//! copies the result of the parser, `beresp.do_esi` does not take it back.

use std::ffi::CStr;
use std::ptr::null_mut;

use varnishd_sys::bindings::{OF_ESIPROC, VBF_Get_Filter_List, VCL_StackVFP, busyobj, vfp_ctx, vfp_entry};

/// Whether a body with these flags was parsed for ESI.
pub(crate) fn is_esi(flags: u8) -> bool {
    u32::from(flags) & OF_ESIPROC != 0
}

/// What [`ensure`] has found or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parser {
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
pub(crate) unsafe fn ensure(bo: *mut busyobj, vc: *mut vfp_ctx, ours: impl Fn(*const vfp_entry) -> bool) -> Parser {
    // SAFETY: by contract: the list is of entries in the workspace; the filters above ours were pushed by VCL_StackVFP and
    // have nothing to give back before they are opened.
    unsafe {
        let mut entry = (*vc).vfp.vtqh_first;
        while !entry.is_null() {
            if matches!(CStr::from_ptr((*(*entry).vfp).name).to_bytes(), b"esi" | b"esi_gzip") {
                return Parser::There;
            }
            entry = (*entry).list.vtqe_next;
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
        // VTAILQ_REMOVE of the first, until ours is.
        loop {
            let first = (*vc).vfp.vtqh_first;
            if first.is_null() || ours(first) {
                break;
            }
            let next = (*first).list.vtqe_next;
            (*vc).vfp.vtqh_first = next;
            if next.is_null() {
                (*vc).vfp.vtqh_last = &raw mut (*vc).vfp.vtqh_first;
            } else {
                (*next).list.vtqe_prev = &raw mut (*vc).vfp.vtqh_first;
            }
            (*first).list.vtqe_next = null_mut();
            (*vc).vfp_nxt = next;
        }
        // VFP_Open goes on with the one before ours, which is the first of these.
        if VCL_StackVFP(vc, (*bo).vcl, filters) == 0 { Parser::There } else { Parser::NoRoom }
    }
}
