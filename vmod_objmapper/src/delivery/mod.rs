//! A delivery: a body that the storage engine has in a file goes from there to the client's socket, without a copy.
//!
//! ```text
//! objmapper.deliver() ─► placement: the filter will stand last
//! varnishd pushes its list, and ours ─► filter: init ─► the engine asks for the mode ─► for each piece:
//!        in a file, HTTP/1 is next ─► send ─► pipe       else: passed on as bytes, and counted by reason
//! ```
//!
//! Everything runs in the thread of the delivery; only the pipes are shared between threads.

pub(crate) mod filter;
mod pipe;
pub(crate) mod placement;
mod send;
