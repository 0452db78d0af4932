//! The store on Unix sockets: protocol V1, V2 and our extensions.
//!
//! | file | concept |
//! |---|---|
//! | `workers` | the threads that serve connections |
//! | `in_process` | a server for clients in the same process |
//! | `listener` | the socket, the admission of clients, the accepting thread |
//! | `refusal` | connections that are not served, and the reply that they get |
//! | `event_loop` | a thread that serves its share of the connections |
//! | `inbox` | messages of other threads to an event loop |
//! | `connection` | one connection: its input bytes, its protocol, its replies |
//! | `output` | replies that wait to be sent, and the only `sendmsg` |
//! | `handover` | a reply's descriptors, and what is taken back if the reply cannot be sent |
//! | `v1` | v0.1 requests (V1, and V2's request frame) |
//! | `ext` | extension requests |

mod connection;
mod event_loop;
mod ext;
mod handover;
mod in_process;
mod inbox;
mod listener;
mod output;
mod refusal;
mod v1;
mod workers;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

pub use ext::status_of;
pub use in_process::InProcess;
pub use listener::{ListenConfig, NetError, Server};
use objmapper_log::RateLimited;

use crate::store::Store;

/// State that the network threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) connections: AtomicUsize,
    pub(crate) draining: AtomicBool,
    pub(crate) loops: u8,
    /// Connections admitted since the start.
    pub(crate) accepted: AtomicUsize,
    /// Connections refused since the start, by credentials or by number.
    pub(crate) refused: AtomicU64,
    /// Refused connections that wait for their first request.
    pub(crate) refusing: AtomicUsize,
    /// Limits the rate of lines about refused connections.
    pub(crate) refusal_log: RateLimited,
    /// Limits the rate of lines about connections that broke the protocol.
    pub(crate) protocol_log: RateLimited,
    /// Connections ended because the peer broke the protocol.
    pub(crate) protocol_errors: AtomicU64,
    /// Connections ended because a reply could not be sent to a live peer.
    pub(crate) send_failures: AtomicU64,
}

impl Shared {
    fn new(store: Store, loops: u8) -> Self {
        /// Lines of one kind per minute.
        const LINES: u32 = 5;
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            store,
            connections: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            loops,
            accepted: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            refusing: AtomicUsize::new(0),
            refusal_log: RateLimited::new(LINES, MINUTE),
            protocol_log: RateLimited::new(LINES, MINUTE),
            protocol_errors: AtomicU64::new(0),
            send_failures: AtomicU64::new(0),
        }
    }
}
