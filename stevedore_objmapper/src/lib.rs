//! objmapper as a storage engine of varnishd: `-E /…/libstevedore_objmapper.so -s objmapper,…`.
//!
//! This crate is the boundary to C and nothing else: `register` has the tables that varnishd sees, `varnishd::boundary`
//! keeps panics on this side, and each other module makes a few of the tables' functions from
//! `objmapper-engine`, which knows nothing of varnishd.

mod announcement;
mod bans;
mod buffer;
mod delivery;
mod fetch;
mod house;
mod iterate;
mod logger;
mod object;
mod panic;
mod read_buffer;
mod register;
mod spans;
mod storage;
mod table;
mod transit;

/// No panic of a callback leaves this library; one that is caught is a line of the storage's.
static BOUNDARY: varnishd::boundary::Boundary = varnishd::boundary::Boundary::new(objmapper_engine::log::line);
