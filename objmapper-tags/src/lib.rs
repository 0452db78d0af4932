//! Which objects of a cache an invalidation means, for a cache that can only be asked by key.
//!
//! - [`Index`]: the objects by their tags (surrogate keys).
//! - [`Recent`]: what was invalidated lately, for objects that were being fetched and were in no index yet.
//!
//! Objects are numbers here, which their user gives a meaning; the crate knows no cache.

mod counters;
mod index;
mod name;
mod recent;

pub use counters::Counters;
pub use index::Index;
pub use name::{Name, Names};
pub use recent::{Effect, Mark, Recent};
