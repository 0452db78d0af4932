//! Runs the programs that the tests are about, as they are: the packaged `varnishd`, `varnishtest` and
//! `h2o` that PATH names (of Varnish, or of Vinyl Cache under the same names), and our `objmapperd` and storage engine from `target/release`.
//!
//! Everything started here is ended by its process id when its value is dropped, listens on loopback or
//! on a Unix socket only, and is waited for by a condition with a bound, never by a sleep.

pub mod arrangement;
pub mod artefacts;
pub mod cell;
pub mod conformance;
pub mod h2o;
pub mod http;
pub mod meddler;
pub mod mount;
pub mod needs;
pub mod objmapperd;
pub mod outage;
pub mod persist;
pub mod proc;
pub mod process;
pub mod product;
pub mod random;
pub mod record;
pub mod shared;
pub mod site;
pub mod small_disk;
pub mod unit;
pub mod varnishd;
pub mod versioned;
pub mod vtc;
