//! objmapper as a storage engine of varnishd: `-E /…/libstevedore_objmapper.so -s objmapper,…`.
//!
//! This crate joins two that do not know each other: `varnishd`, which is what varnishd calls and is asked in safe functions, and
//! `objmapper-engine`, which stores bodies. `register` has the tables that varnishd sees; each other module makes a few of
//! the tables' functions.
//!
//! ```text
//! register ──► storage ──► maintenance        a `-s`, and its background thread
//!     │
//!     ├──► object, fetch ──► transit          an object, and its body while it comes in
//!     ├──► iterate ──► spans, read_buffer     its body on the way out
//!     └──► bans, buffer, panic
//! table ──► announcement, object, spans       what the VMOD calls
//! ```

mod announcement;
mod bans;
mod buffer;
mod fetch;
mod iterate;
mod logger;
mod maintenance;
mod object;
mod panic;
mod persist;
mod read_buffer;
mod register;
mod reload;
mod spans;
mod storage;
mod table;
mod transit;

/// No panic of a callback leaves this library; one that is caught is a line of the storage's.
static BOUNDARY: varnishd::boundary::Boundary = varnishd::boundary::Boundary::new(objmapper_engine::log::line);
