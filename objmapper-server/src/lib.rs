//! The object store of objmapper, as a library.
//!
//! [`store`] is the store itself: it runs inside `objmapperd`, and the same code runs embedded in
//! another process (the Varnish storage engine without a `socket=` option). An object is a file in
//! the directory of a *tier* (a detached tmpfs, or a directory on disk), published by
//! linking an unnamed temporary file; readers hold descriptors, never memory of this process.
//!
//! With the feature `daemon` (on by default) the modules `net` and `config` serve the store on a
//! Unix socket; `objmapperd` is a thin program around them.
//!
//! No input and no I/O error makes this library panic: every failure is a [`store::StoreError`].

#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod net;
pub mod store;
mod sys;
