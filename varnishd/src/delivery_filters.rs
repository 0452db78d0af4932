//! Delivery filters of ours (VDP): made, registered with a VCL, and put into a delivery.
//!
//! varnishd makes its own list (`esi`, `gunzip`, `range`) after vcl_deliver and after it has decided whether the response is a 304
//! (`cnt_transmit` in cache_req_fsm.c). VCL's list, `resp.filters`, is in its place if it is set.

use std::ffi::{CStr, c_int};
use std::ptr::{null, null_mut};

use varnishd_sys::bindings::{
    VCL_EVENT_DISCARD, VCL_EVENT_LOAD, VCL_StackVDP, VDP_Push, VRT_AddFilter, VRT_RemoveFilter, VRT_l_resp_filters,
    VRT_r_resp_filters,
};
/// Makes a filter that is called for each piece of a body.
pub use varnishd_sys::branch::delivery_filter as filter;
use varnishd_sys::branch::strands_of;

use crate::boundary::Constant;
use crate::context::Context;
use crate::raw::{DeliveryFilter, RawDelivery, VclEvent};
use crate::request::ClientRequest;
use crate::text::bytes;

/// The outcome of a filter's initialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Init {
    /// The filter is in the delivery.
    Pushed = 0,
    /// The filter takes no part in the delivery.
    NotPushed = 1,
    /// varnishd closes the connection.
    Failed = -1,
}

impl From<Init> for c_int {
    fn from(init: Init) -> c_int {
        init as c_int
    }
}

/// An event in the life of a VCL that a filter is registered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The VCL is loaded.
    Load,
    /// The VCL is discarded.
    Discard,
    /// Another one.
    Other,
}

impl From<VclEvent> for Event {
    fn from(event: VclEvent) -> Event {
        match event {
            VCL_EVENT_LOAD => Event::Load,
            VCL_EVENT_DISCARD => Event::Discard,
            _ => Event::Other,
        }
    }
}

/// The VCL's load has failed: another library has a filter of this name.
#[derive(Debug, Clone, Copy)]
pub struct NameInUse;

/// Registers filters with a VCL that is being loaded: all of them, or none.
///
/// # Errors
/// The load is failed.
///
/// # Safety
/// `ctx` must be of the VCL's load, in the CLI thread. The library of the filters must never be unloaded.
pub unsafe fn register(ctx: Context<'_>, filters: &[&'static Constant<DeliveryFilter>]) -> Result<(), NameInUse> {
    for (index, filter) in filters.iter().enumerate() {
        // SAFETY: by contract.
        if !unsafe { VRT_AddFilter(ctx.as_ptr(), null(), filter.address()) }.is_null() {
            // SAFETY: by contract; these are registered.
            unsafe { unregister(ctx, &filters[..index]) };
            return Err(NameInUse);
        }
    }
    Ok(())
}

/// Takes filters back from a VCL.
///
/// # Safety
/// `ctx` must be of the VCL's load or discard, in the CLI thread, and the filters registered with it.
pub unsafe fn unregister(ctx: Context<'_>, filters: &[&'static Constant<DeliveryFilter>]) {
    for filter in filters.iter().rev() {
        // SAFETY: by contract.
        unsafe { VRT_RemoveFilter(ctx.as_ptr(), null(), filter.address()) };
    }
}

/// Sets the list of filters of a request to one filter.
pub fn set_list(request: ClientRequest<'_>, name: &'static CStr) {
    // SAFETY: the calling thread's request; the list is static.
    unsafe { (*request.as_ptr()).vdp_filter_list = name.as_ptr() };
}

/// Appends to the list of filters of a request, which VCL has set.
///
/// # Safety
/// `ctx` must be of vcl_deliver, with this request.
pub unsafe fn append_to_list(ctx: Context<'_>, request: ClientRequest<'_>, more: &'static CStr) {
    // SAFETY: by contract; the parts are copied.
    unsafe {
        let mut parts = [(*request.as_ptr()).vdp_filter_list, more.as_ptr()];
        let all = strands_of(&mut parts);
        VRT_l_resp_filters(ctx.as_ptr(), null(), &raw const all);
    }
}

/// Pushes the list that varnishd would choose, and `last` behind it, in the place of the filter that is being initialised, which
/// returns the result.
///
/// # Safety
/// Called in the initialisation of a filter of ours, with its context and delivery.
pub unsafe fn push_default_list(
    ctx: Context<'_>,
    vdc: *mut RawDelivery,
    last: &'static Constant<DeliveryFilter>,
) -> Init {
    // None in `bereq.filters`.
    let Some(request) = ctx.request() else { return Init::NotPushed };
    let req = request.as_ptr();
    // SAFETY: by contract, the request is the calling thread's. varnishd has appended the calling filter's entry, the last of
    // the list, before it called, and removes it for `NotPushed`: what is pushed meanwhile stands behind the entries before it.
    // Nothing is copied of the default list, which lives in the request's workspace.
    unsafe {
        let named = std::mem::replace(&mut (*req).vdp_filter_list, null());
        let default = VRT_r_resp_filters(ctx.as_ptr());
        (*req).vdp_filter_list = named;
        if !bytes(default).is_empty() && VCL_StackVDP(vdc, (*req).vcl, default, req, null_mut()) != 0 {
            return Init::Failed;
        }
        match VDP_Push(ctx.as_ptr(), vdc, ctx.workspace().as_ptr(), last.address(), null_mut()) {
            0 => Init::NotPushed,
            _ => Init::Failed,
        }
    }
}
