//! The place of the delivery filter: last, behind the filters that varnishd chooses for the response.
//!
//! varnishd makes its default list (`esi`, `gunzip`, `range`) after vcl_deliver, and after it has decided whether the response is a 304
//! ([`varnishd::delivery_filters`]). A list that VCL sets fixes that choice before the decision: a `range` in it
//! turns a 304 into a 206 or a 416. So `objmapper.deliver()` sets a list of one name, that of the filter [`PLACER`], which varnishd
//! initialises when it would make its own. The filter then has varnishd push the default list, pushes
//! [`SENDER`] behind it, and takes no part in the delivery itself.

use std::ffi::{CStr, c_int, c_void};

use objmapper_abi::BodyLocation;
use varnishd::boundary::Constant;
use varnishd::context::Context;
use varnishd::delivery_filters::{self, Event, Init};
use varnishd::raw::{DeliveryFilter, RawContext, RawDelivery};

use super::filter::{self, SENDER};
use crate::BOUNDARY;
use crate::engine;

const SENDER_NAME: &[u8] = b"objmapper";
const PLACER_NAME: &CStr = c"objmapper_default";

/// The filter `objmapper_default`: stands for varnishd's default list with the filter `objmapper` behind it.
// SAFETY: varnishd only reads a filter.
static PLACER: Constant<DeliveryFilter> =
    unsafe { Constant::new(delivery_filters::filter(PLACER_NAME, Some(init), None, None)) };

/// Registers the filters with a VCL that is loaded, and removes them from one that is discarded. Returns 0, or 1 after it has failed
/// the load.
///
/// # Safety
/// `ctx` must be of that event, in the CLI thread.
pub(crate) unsafe fn event(ctx: Context<'_>, event: Event) -> c_int {
    let filters = [&SENDER, &PLACER];
    match event {
        Event::Load => {
            // SAFETY: by contract; this library is never unloaded.
            if unsafe { delivery_filters::register(ctx, &filters) }.is_err() {
                return 1;
            }
            filter::listen();
        }
        // SAFETY: by contract; they were registered when this VCL was loaded.
        Event::Discard => unsafe { delivery_filters::unregister(ctx, &filters) },
        Event::Other => {}
    }
    0
}

/// `objmapper.deliver()`: has the filter stand last, unless VCL has put it somewhere. A body in heap, for which it would do
/// nothing, is only counted, as the filter would: the list of filters and the search in it cost more than all else that is ours.
///
/// # Safety
/// `ctx` must be of vcl_deliver.
pub(crate) unsafe fn deliver(ctx: Context<'_>) {
    let Some(delivery) = engine::delivery() else { return };
    let Some(request) = ctx.request() else { return };
    let Some(oc) = request.delivered_object() else { return };
    let list = request.filter_list();
    if list.is_some_and(|list| list.windows(SENDER_NAME.len()).any(|part| part == SENDER_NAME)) {
        return;
    }
    // SAFETY: the request references its object.
    match unsafe { (delivery.location)(oc.address()) } {
        BodyLocation::Elsewhere => {}
        BodyLocation::Heap => filter::count_heap(delivery, oc),
        BodyLocation::Off | BodyLocation::File if list.is_none() => delivery_filters::set_list(request, PLACER_NAME),
        // VCL has made the choice that varnishd would make later.
        // SAFETY: by contract.
        BodyLocation::Off | BodyLocation::File => unsafe {
            delivery_filters::append_to_list(ctx, request, c" objmapper");
        },
    }
}

unsafe extern "C" fn init(ctx: *const RawContext, vdc: *mut RawDelivery, _private: *mut *mut c_void) -> c_int {
    BOUNDARY
        .fallible("objmapper_default", Init::Failed, || {
            // SAFETY: varnishd's own arguments, in this filter's initialisation.
            unsafe { delivery_filters::push_default_list(Context::new(ctx), vdc, &SENDER) }
        })
        .into()
}
