//! objmapper in VCL: `import objmapper;`. What it does for VCL is documented in `vmod_objmapper.vcc`.
//!
//! This crate is everything of the second cache level that touches varnishd, and nothing else: what a record is, where it
//! is found and how it is published is `objmapper-records`, which knows nothing of varnishd.
//!
//! ```text
//! entry ──► director ──► fetch ──► filter      a fetch: look-up, answer from a record, or the real backend
//!              │           │
//!              │           └────► transaction ──► publish    the fetch is over: publish, or tell why not
//!              └► store (one second level per store and prefix) ◄── bans
//!
//! entry ──► deliver_place ──► deliver ──► deliver_send ──► deliver_pipe      a delivery: from the engine's files to the client
//! ```

mod arguments;
mod bans;
mod deliver;
mod deliver_pipe;
mod deliver_place;
mod deliver_send;
mod director;
mod engine;
mod entry;
mod fetch;
mod ffi;
mod filter;
mod object;
mod om;
mod pending;
mod place;
mod publish;
mod refresh;
mod regex;
mod request;
mod store;
mod transaction;

/// No panic of a callback leaves this library; one that is caught is a line of the director's.
static BOUNDARY: varnishd::boundary::Boundary = varnishd::boundary::Boundary::new(operator);

/// Writes a line of the director's for the operator.
fn operator(ident: &str, message: &str) {
    objmapper_log::stderr_line("director", ident, message);
}
