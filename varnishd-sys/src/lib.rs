//! The private varnishd ABI that a loadable storage engine (a *stevedore*) and a director with a body of its own need,
//! and nothing else.
//!
//! varnishd resolves the symbols of a stevedore that it loads with `-E`, and of a VMOD, against itself. What it installs
//! of its internals (`cache/cache_varnishd.h`, `cache/cache_filter.h`, `cache/cache_director.h` and what they include) is
//! read by bindgen; `storage/storage.h`, `cache/cache_obj.h`, `cache/cache_objhead.h`, `cache/cache_ban.h` and the
//! generated `VSC_*.h` are not installed, so that what we need of them is declared here by hand,
//! with its size and offsets checked when this is compiled. What differs between branches of Varnish and Vinyl Cache is in
//! [`branch`] and behind `cfg(varnishd_has = "…")`, whose values `build.rs` derives from the headers.
//! [`version::check`] refuses to run in a varnishd of another release than the one this was compiled for.
//!
//! Nothing in this crate calls anything at load time; linking it into a program other than a library that varnishd
//! loads leaves undefined symbols.

pub mod ban;
pub mod branch;
pub mod functions;
pub mod http1;
pub mod obj_methods;
pub mod objhead;
pub mod stevedore;
pub mod version;
pub mod vsc;

/// Bindings generated from the installed headers.
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, non_snake_case, unused, unnameable_types)]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, unreachable_pub)]
pub mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::{boc, objcore, vsb, worker};

/// `OC_F_TRANSIENT` (Varnish: `cache/cache.h`), a macro of enum constants: the object's body is for one delivery only.
pub const OC_F_TRANSIENT: u32 = bindings::OC_F_PRIVATE | bindings::OC_F_HFM | bindings::OC_F_HFP;

/// The attributes of an object, as `include/tbl/obj_attr.h` lists them.
pub mod attr {
    use super::bindings;
    pub use super::bindings::obj_attr;
    pub use super::bindings::{
        OA_ESIDATA, OA_FLAGS, OA_GZIPBITS, OA_HEADERS, OA_LASTMODIFIED, OA_LEN, OA_VARY, OA_VXID,
    };

    /// Bytes of `OA_LEN`, a big-endian u64.
    pub const LEN_SIZE: usize = bindings::OBJM_SIZE_LEN as usize;
    /// Bytes of `OA_VXID`, a big-endian u64.
    pub const VXID_SIZE: usize = bindings::OBJM_SIZE_VXID as usize;
    /// Bytes of `OA_FLAGS`.
    pub const FLAGS_SIZE: usize = bindings::OBJM_SIZE_FLAGS as usize;
    /// Bytes of `OA_GZIPBITS`.
    pub const GZIPBITS_SIZE: usize = bindings::OBJM_SIZE_GZIPBITS as usize;
    /// Bytes of `OA_LASTMODIFIED`, a big-endian IEEE double.
    pub const LASTMODIFIED_SIZE: usize = bindings::OBJM_SIZE_LASTMODIFIED as usize;
}
