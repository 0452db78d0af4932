//! The object model of the objmapper storage engine, without varnishd.
//!
//! A body is *in heap* while it is small, *a draft* (a private file, written through a buffer) while a large one comes
//! in, and *stored* (a published, immutable file in the store, neither open nor mapped unless it is being read)
//! afterwards. It may be published as a record that other caches find, and a record of another cache may be adopted as
//! a body. `state.rs` has all states.
//!
//! [`engine::Engine`] is one storage with its limit, counters and bounded caches of descriptors and mappings;
//! [`body::Body`] is one body. The cdylib `stevedore_objmapper` makes varnishd's `obj_methods` of them.

pub mod account;
pub mod adopt;
mod adopted;
pub mod backing;
pub mod body;
pub mod counters;
mod descriptors;
mod draft;
pub mod engine;
mod fallback;
pub mod grant;
mod health;
pub mod heap;
pub mod log;
pub mod maintenance;
pub mod maps;
mod memory;
pub mod options;
pub mod persist;
pub mod publish;
pub mod record;
mod registry;
pub mod space;
pub mod span;
mod state;
mod to_draft;
pub mod transit;
pub mod unreadable;
mod write_buffer;
mod writer;
