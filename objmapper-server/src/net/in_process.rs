//! A server without a listening socket, for clients in the same process.
//!
//! Clients get one end of a socket pair. The other end is served by the same event loops as accepted connections.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::workers::Workers;
use crate::store::Store;

/// The maximum number of connections of an [`InProcess`] server; a client holds at most 64.
const MAX_CONNECTIONS: usize = 1024;

/// Serves a store on socket pairs, so that other parts of this process reach it as clients of a daemon would:
/// the same protocol, sessions and leases, whatever libraries they were linked into. There is no path, no file mode and
/// no check of credentials: any caller of [`InProcess::connect`] is served.
///
/// Dropping it closes all connections and ends its threads.
///
/// ```
/// use objmapper_server::net::InProcess;
/// use objmapper_server::store::{MemoryTier, Store, StoreConfig};
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// let memory = MemoryTier { limit: 16 << 20, mount: None };
/// let store = Store::open(StoreConfig { memory: Some(memory), ..StoreConfig::default() })?;
/// let server = InProcess::start(store, 1)?;
/// let mut peer = UnixStream::from(server.connect()?);
/// peer.write_all(b"1\0\x0b/delete/a/b")?; // protocol V1
/// let mut answer = [0; 11];
/// peer.read_exact(&mut answer)?;
/// assert_eq!(answer[0], 1); // not found
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct InProcess {
    workers: Workers,
}

impl InProcess {
    /// Starts `threads` threads (`objm-loop-N`), at least one.
    ///
    /// # Errors
    /// If a thread or its poller cannot be created.
    pub fn start(store: Store, threads: u8) -> io::Result<Self> {
        Ok(InProcess { workers: Workers::start(store, threads, MAX_CONNECTIONS)? })
    }

    /// Returns a new connection: the client's end of a socket pair, close-on-exec.
    ///
    /// # Errors
    /// If there are no descriptors, or too many connections.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let (client, server) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        self.adopt(server)?;
        Ok(client)
    }

    /// Serves a connected Unix stream socket, without a check of its peer.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn adopt(&self, socket: OwnedFd) -> io::Result<()> {
        self.workers.adopt(socket)
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.workers.shared.connections.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Stops the server. It accepts no further connections; open ones may finish what they have begun (replies, private
    /// objects) within `timeout`.
    pub fn drain(self, timeout: Duration) {
        self.workers.drain(timeout);
    }
}
