//! Where the delivery filter stands: last, behind the filters that varnishd chooses for the response.
//!
//! varnishd makes its default list (`esi`, `gunzip`, `range`) in `cnt_transmit` (cache_req_fsm.c), after vcl_deliver, and after it
//! has decided whether the response is a 304. A list that VCL sets fixes that choice before the decision: a `range` in it
//! turns a 304 into a 206 or a 416. So `objmapper.deliver()` sets a list of one name, that of the filter [`PLACER`]. varnishd
//! initialises this filter in `cnt_transmit`. The filter then asks varnishd for the default list, has varnishd push it, pushes
//! [`crate::deliver::SENDER`] behind it, and takes no part in the delivery itself.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::{null, null_mut};

use objmapper_abi::{Copied, Delivered, Place};
use varnishd::boundary::Constant;
use varnishd::cast::{context, has_magic};
use varnishd::text::bytes;
use varnishd_sys::bindings::{
    VCL_EVENT_DISCARD, VCL_EVENT_LOAD, VCL_StackVDP, VDP_Push, VRT_AddFilter, VRT_RemoveFilter, VRT_l_resp_filters,
    VRT_r_resp_filters, vcl_event_e, vdp, vdp_ctx, vrt_ctx,
};
use varnishd_sys::branch::{delivery_filter, strands_of};

use crate::BOUNDARY;
use crate::deliver::{self, SENDER};
use crate::engine;

const PLACER_NAME: &CStr = c"objmapper_default";

/// The filter `objmapper_default`: stands for varnishd's default list with the filter `objmapper` behind it.
// SAFETY: varnishd only reads a filter.
static PLACER: Constant<vdp> = unsafe { Constant::new(delivery_filter(PLACER_NAME, Some(init), None, None)) };

/// Registers the filters with a VCL that is loaded, and removes them from one that is discarded. Returns 0, or 1 after it has failed
/// the load.
///
/// # Safety
/// `ctx` must be varnishd's, in the CLI thread, of that VCL.
pub(crate) unsafe fn event(ctx: *const vrt_ctx, event: vcl_event_e) -> c_int {
    // SAFETY: by contract; the filters are static, and this library is never unloaded.
    unsafe {
        match event {
            VCL_EVENT_LOAD => {
                if !VRT_AddFilter(ctx, null(), SENDER.address()).is_null() {
                    return 1;
                }
                if !VRT_AddFilter(ctx, null(), PLACER.address()).is_null() {
                    VRT_RemoveFilter(ctx, null(), SENDER.address());
                    return 1;
                }
                deliver::listen();
            }
            VCL_EVENT_DISCARD => {
                VRT_RemoveFilter(ctx, null(), PLACER.address());
                VRT_RemoveFilter(ctx, null(), SENDER.address());
            }
            _ => {}
        }
    }
    0
}

/// `objmapper.deliver()`: has the filter stand last, unless VCL has put it somewhere. A body in heap, for which it would do
/// nothing, is only counted, as the filter would: the list of filters and the search in it cost more than all else that is ours.
///
/// # Safety
/// `ctx` must be varnishd's, in vcl_deliver.
pub(crate) unsafe fn deliver(ctx: &vrt_ctx) {
    const NAME: &[u8] = b"objmapper";
    let Some(delivery) = engine::delivery() else { return };
    // SAFETY: by contract: the request and its workspace are the calling thread's. VRT_l_resp_filters copies the parts.
    unsafe {
        let Some(oc) = deliver::body_of(ctx.req) else { return };
        let list = (*ctx.req).vdp_filter_list;
        if bytes(list).windows(NAME.len()).any(|part| part == NAME) {
            return;
        }
        match (delivery.place)(oc.cast()) {
            Place::Elsewhere => {}
            Place::Heap => {
                let delivered = Delivered { sent: 0, copied: 0, why: Copied::Heap };
                (delivery.delivered)(oc.cast(), &raw const delivered);
            }
            Place::Off | Place::File if list.is_null() => (*ctx.req).vdp_filter_list = PLACER_NAME.as_ptr(),
            // VCL has made the choice that varnishd would make later.
            Place::Off | Place::File => {
                let mut parts = [list, c" objmapper".as_ptr()];
                let all = strands_of(&mut parts);
                VRT_l_resp_filters(ctx, null(), &raw const all);
            }
        }
    }
}

unsafe extern "C" fn init(ctx: *const vrt_ctx, vdc: *mut vdp_ctx, _private: *mut *mut c_void) -> c_int {
    /// As of a filter that cannot be initialised: varnishd closes the connection.
    const FAILED: c_int = -1;
    /// The filter takes no part in the delivery.
    const NOT_PUSHED: c_int = 1;
    BOUNDARY.fallible("objmapper_default", FAILED, || {
        // SAFETY: varnishd's own arguments.
        let ctx = unsafe { context(ctx) };
        let req = ctx.req;
        // SAFETY: a context's request is null (in `bereq.filters`) or the calling thread's. VDP_Push has appended our entry, the
        // last of the list, before it called us, and removes it when we return NOT_PUSHED: what is pushed meanwhile stands
        // behind the entries before ours. VCL_StackVDP copies nothing of the list, which lives in the request's workspace.
        unsafe {
            if !has_magic(req) {
                return NOT_PUSHED;
            }
            let named = std::mem::replace(&mut (*req).vdp_filter_list, null());
            let default = VRT_r_resp_filters(ctx);
            (*req).vdp_filter_list = named;
            if !bytes(default).is_empty() && VCL_StackVDP(vdc, (*req).vcl, default, req, null_mut()) != 0 {
                return FAILED;
            }
            if VDP_Push(ctx, vdc, ctx.ws, SENDER.address(), null_mut()) != 0 { FAILED } else { NOT_PUSHED }
        }
    })
}
