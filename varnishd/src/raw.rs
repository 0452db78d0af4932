//! The types of varnishd's that stand in the signatures of the callbacks which a library defines, under names of ours.
//!
//! A library passes such a pointer on to the constructor of a handle ([`crate::objcore::Objcore::new`] and its like), which checks
//! it, and does nothing else with it. No module but this one and `varnishd-sys` gives their fields to a library.

/// A backend or director of VCL's; null is none.
pub use varnishd_sys::bindings::VCL_BACKEND as Backend;
/// A boolean of VCL's.
pub use varnishd_sys::bindings::VCL_BOOL as VclBool;
/// A string of VCL's; null is empty.
pub use varnishd_sys::bindings::VCL_STRING as VclString;
/// A time of VCL's.
pub use varnishd_sys::bindings::VCL_TIME as VclTime;
/// The part of an object that exists while it is fetched.
pub use varnishd_sys::bindings::boc as RawBoc;
/// A number of an attribute ([`crate::attributes::Attribute`]).
pub use varnishd_sys::bindings::obj_attr as RawAttribute;
/// An object in varnishd's index, as a callback of a storage is given it.
pub use varnishd_sys::bindings::objcore as RawObjcore;
/// The reason for which a connection is closed.
pub use varnishd_sys::bindings::stream_close_t as CloseReason;
/// An event in the life of a VCL.
pub use varnishd_sys::bindings::vcl_event_e as VclEvent;
/// A delivery filter.
pub use varnishd_sys::bindings::vdp as DeliveryFilter;
/// What a delivery filter is told beside the bytes.
pub use varnishd_sys::bindings::vdp_action as DeliveryAction;
/// A delivery ([`crate::delivery::Delivery`]).
pub use varnishd_sys::bindings::vdp_ctx as RawDelivery;
/// A fetch filter.
pub use varnishd_sys::bindings::vfp as FetchFilter;
/// The fetch that a filter is a part of ([`crate::fetch_filters::Filters`]).
pub use varnishd_sys::bindings::vfp_ctx as RawFilters;
/// A filter in a fetch ([`crate::fetch_filters::Entry`]).
pub use varnishd_sys::bindings::vfp_entry as RawFilterEntry;
/// What a callback of a fetch filter returns.
pub use varnishd_sys::bindings::vfp_status as FetchStatus;
/// A private pointer of a library's in a task or a VCL ([`crate::private`]).
pub use varnishd_sys::bindings::vmod_priv as RawPrivate;
/// The context of a call ([`crate::context::Context`]).
pub use varnishd_sys::bindings::vrt_ctx as RawContext;
/// A text that a callback appends to ([`crate::text::append`]).
pub use varnishd_sys::bindings::vsb as RawText;
/// The calling thread's worker.
pub use varnishd_sys::bindings::worker as RawWorker;
/// The function that consumes a body, piece by piece ([`crate::iteration::Consumer`]).
pub use varnishd_sys::obj_methods::ObjIterateFn as RawConsumer;
/// A storage ([`crate::storage::Storage`]).
pub use varnishd_sys::stevedore::Stevedore as RawStorage;

/// The names by which C declares the types of a VMOD's functions, for bindings to what vmodtool.py makes.
pub mod signatures {
    pub use varnishd_sys::bindings::{
        VCL_BACKEND, VCL_BOOL, VCL_BYTES, VCL_DURATION, VCL_INT, VCL_REAL, VCL_STRANDS, VCL_STRING, VCL_TIME,
        vcl_event_e, vmod_priv, vrt_ctx,
    };
}
