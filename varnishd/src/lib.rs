//! What a storage engine and a VMOD both need above varnishd's private ABI (`varnishd-sys`).
//!
//! - [`bans`]: varnishd's list of bans, and news of it.
//! - [`boundary`]: no panic of a callback crosses into C.
//! - [`cast`]: no pointer is trusted before its magic number is checked.
//! - [`fetch`]: a fetch, begun anew by its director, or handed to another one.
//! - [`http`], [`workspace`]: a head and a workspace, read and written.
//! - [`text`]: strings for C, and strings of C's.
//! - [`fetch_filters`], [`delivery_filters`], [`esi`]: the filters of a fetch and of a delivery.
//! - [`vsl`]: lines in the transaction log.
//!
//! This crate knows varnishd and nothing of objmapper: what differs between the two libraries is a parameter. Each of them
//! links a copy of its own.

pub mod bans;
pub mod boundary;
pub mod cast;
pub mod delivery_filters;
pub mod esi;
pub mod fetch;
pub mod fetch_filters;
pub mod http;
pub mod text;
pub mod vsl;
pub mod workspace;
