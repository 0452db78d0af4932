//! varnishd for libraries that it loads, above its private ABI (`varnishd-sys`): what a storage engine and a VMOD need is here in safe
//! functions, and handles whose constructors say what a pointer must be. Nothing above this crate names a structure, a constant, a
//! function or a sequence of varnishd's.
//!
//! A handle ([`objcore::Objcore`], [`fetch::Busyobj`], [`delivery::Delivery`], …) is made of a pointer that varnishd calls with, which is
//! checked, and is used in that call and that thread.
//!
//! | for | |
//! |---|---|
//! | every callback | [`boundary`]: no panic crosses into C; `cast`: no pointer is trusted before its magic number is checked; [`raw`]: types of signatures; [`context`], [`private`] |
//! | a storage | [`storage`]: the engine's tables; [`objcore`], [`attributes`]: an object; [`iteration`]: its body on the way out; [`lru`], [`worker`], [`counters`] |
//! | the cache | [`object`], [`object_events`], [`present`], [`purge`], [`ban_commit`], [`synthetic`]: objects of any storage: news of them, those that are there, how they leave; [`ban_reload`], [`reload`]: bans and objects of an earlier process |
//! | a director | [`director`], [`fetch`], [`response`], [`header`], [`coding`], [`fetch_filters`], [`esi`] |
//! | a delivery | [`request`], [`delivery`], [`delivery_filters`], [`http1`] |
//! | all | [`bans`], [`ban_spec`], [`regex`], [`parameters`], [`http`], [`workspace`], [`text`], [`vsl`], [`clock`] |
//!
//! This crate knows varnishd and nothing of objmapper: what differs between the two libraries is a parameter. Each of them
//! links a copy of its own.

pub mod attributes;
pub mod ban_commit;
pub mod ban_reload;
pub mod ban_spec;
pub mod bans;
pub mod boundary;
mod cast;
pub mod clock;
pub mod coding;
pub mod context;
pub mod counters;
pub mod delivery;
pub mod delivery_filters;
pub mod director;
pub mod esi;
pub mod fetch;
pub mod fetch_filters;
pub mod header;
pub mod http;
pub mod http1;
pub mod iteration;
pub mod lru;
pub mod objcore;
pub mod object;
pub mod object_events;
pub mod parameters;
pub mod present;
pub mod private;
pub mod purge;
pub mod raw;
pub mod regex;
pub mod reload;
pub mod request;
pub mod response;
pub mod storage;
pub mod synthetic;
pub mod text;
pub mod vsl;
pub mod worker;
pub mod workspace;
