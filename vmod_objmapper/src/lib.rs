//! objmapper in VCL: `import objmapper;`. What it does for VCL is documented in `vmod_objmapper.vcc`.
//!
//! This crate joins two that do not know each other: `varnishd`, which is what varnishd calls and is asked in safe functions, and
//! `objmapper-records`, which knows what a record is, where it is found and how it is published.
//!
//! ```text
//! entry ──► director_callbacks ──► fetch ──► filter      a fetch: look-up, answer from a record, or the real backend
//!                 │                  │
//!                 │                  └────► transaction ──► publish    the fetch is over: publish, or log why not
//!                 └► store (one second level per store and prefix) ◄── bans
//!
//! entry ──► delivery::placement ──► delivery::filter ──► delivery::send ──► delivery::pipe     from the engine's files to the client
//! ```

mod arguments;
mod bans;
mod delivery;
mod director;
mod director_callbacks;
mod engine;
mod entry;
mod fetch;
mod ffi;
mod filter;
mod head;
mod invalidate;
mod l1;
mod pending;
mod publish;
mod regex;
mod request;
mod store;
mod store_address;
mod transaction;
mod wishes;

/// No panic of a callback leaves this library; one that is caught is a line of the director's.
static BOUNDARY: varnishd::boundary::Boundary = varnishd::boundary::Boundary::new(operator);

/// Writes a line of the director's for the operator.
fn operator(ident: &str, message: &str) {
    objmapper_log::stderr_line("director", ident, message);
}
