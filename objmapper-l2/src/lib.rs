//! The shared second level of a cache.
