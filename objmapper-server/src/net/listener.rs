//! The listening socket (path, mode, owner), the admission of clients (uid, gid, number), and the [`Server`] as a whole.
//!
//! The socket is bound under a temporary name and renamed, so that it is never reachable with a wrong mode or owner. The thread
//! `objm-accept` accepts, checks credentials and number, and passes each connection to an event loop. When the process is out
//! of descriptors, accepting pauses.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mio::net::UnixListener;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::refusal::Refusal;
use super::workers::{Workers, join};
use crate::store::Store;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);
/// How long accepting pauses when the process is out of descriptors.
const BACKOFF: Duration = Duration::from_millis(100);

/// The socket, and the clients that may connect.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Owner of the socket; `None` is the process's user.
    pub owner: Option<u32>,
    /// Group of the socket; `None` is the process's group.
    pub group: Option<u32>,
    /// Users that may connect. If both lists are empty, the socket's mode alone decides.
    pub allow_uids: Vec<u32>,
    /// Primary groups that may connect.
    pub allow_gids: Vec<u32>,
    /// The maximum number of connections; further ones are refused with a message.
    pub max_connections: usize,
    /// Threads that serve connections.
    pub threads: u8,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// A running server answers on the socket.
    #[error("the socket {0} is in use by a running server; remedy: stop it, or choose another --socket")]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{0} exists and is not a socket; remedy: remove it, or choose another --socket")]
    NotASocket(PathBuf),
    /// A step of the set-up failed.
    #[error("the socket {path}: {what}: {source}")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The step that failed.
        what: &'static str,
        /// The step's error.
        source: io::Error,
    },
    /// A thread or its poller could not be made.
    #[error("starting the server's threads: {0}")]
    Threads(io::Error),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    workers: Arc<Workers>,
    path: PathBuf,
    /// Device and inode of the socket file that this server made.
    identity: (u64, u64),
    stop: Arc<Waker>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds the socket and starts the threads (`objm-accept`, `objm-loop-N`).
    pub fn start(config: ListenConfig, store: Store) -> Result<Self, NetError> {
        let listener = bind(&config)?;
        let identity = identity(&config.socket).map_err(|source| NetError::Socket {
            path: config.socket.clone(),
            what: "stat",
            source,
        })?;
        let workers = Workers::start(store, config.threads, config.max_connections).map_err(NetError::Threads)?;
        let workers = Arc::new(workers);
        let poll = Poll::new().map_err(NetError::Threads)?;
        let stop = Arc::new(Waker::new(poll.registry(), STOP).map_err(NetError::Threads)?);
        let path = config.socket.clone();
        let acceptor = Acceptor { config, poll, listener: UnixListener::from_std(listener), workers: workers.clone() };
        let accepting = thread::Builder::new()
            .name("objm-accept".into())
            .spawn(move || acceptor.run())
            .map_err(NetError::Threads)?;
        Ok(Server { workers, path, identity, stop, accepting: Some(accepting) })
    }

    /// Serves a connected Unix stream socket like an accepted one, without a check of its peer's credentials.
    ///
    /// # Errors
    /// If there are too many connections, or the server is shutting down.
    pub fn adopt(&self, socket: OwnedFd) -> io::Result<()> {
        self.workers.adopt(socket)
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.workers.shared.connections.load(Relaxed)
    }

    /// Returns the number of connections refused since the start, by credentials or by number.
    pub fn refused(&self) -> u64 {
        self.workers.shared.refused.load(Relaxed)
    }

    /// Returns the number of connections ended since the start because the peer broke the protocol.
    pub fn protocol_errors(&self) -> u64 {
        self.workers.shared.protocol_errors.load(Relaxed)
    }

    /// Returns the number of connections ended since the start because a reply could not be sent to a live peer: the kernel
    /// has no memory, or too many descriptors of this user are sent and unread.
    pub fn send_failures(&self) -> u64 {
        self.workers.shared.send_failures.load(Relaxed)
    }

    /// Stops the server. It accepts no further connections and removes the socket; open connections may finish
    /// what they have begun (replies, private objects) within `timeout`.
    pub fn drain(mut self, timeout: Duration) {
        self.workers.shared.draining.store(true, Relaxed);
        if let Err(e) = self.stop.wake() {
            log::error!("waking the accepting thread: {e}");
        }
        if let Some(thread) = self.accepting.take() {
            join(thread);
        }
        // Another server may have taken the path over meanwhile.
        if identity(&self.path).is_ok_and(|id| id == self.identity)
            && let Err(e) = fs::remove_file(&self.path)
        {
            log::warn!("removing {}: {e}", self.path.display());
        }
        self.workers.drain(timeout);
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let stat = fs::symlink_metadata(path)?;
    Ok((stat.dev(), stat.ino()))
}

/// Binds beside the path and renames, so that no client finds the socket before its mode and owner
/// are set, or finds none while a stale one is replaced.
fn bind(config: &ListenConfig) -> Result<StdListener, NetError> {
    let path = &config.socket;
    let error = |what| {
        let path = path.clone();
        move |source| NetError::Socket { path, what, source }
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(error("stat")(e)),
        Ok(stat) if !stat.file_type().is_socket() => return Err(NetError::NotASocket(path.clone())),
        Ok(_) => match StdStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                log::info!("replacing the stale socket {}", path.display());
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // A server answers, or may answer: its socket must stay.
            Ok(_) => return Err(NetError::InUse(path.clone())),
            Err(e) => return Err(error("connecting to see if a server answers")(e)),
        },
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    let listener = StdListener::bind(&temporary).map_err(error("bind"))?;
    let prepared = (|| {
        if config.owner.is_some() || config.group.is_some() {
            chown(&temporary, config.owner, config.group).map_err(error("setting its owner"))?;
        }
        fs::set_permissions(&temporary, fs::Permissions::from_mode(config.mode)).map_err(error("setting its mode"))?;
        listener.set_nonblocking(true).map_err(error("making it non-blocking"))?;
        fs::rename(&temporary, path).map_err(error("moving it into place"))
    })();
    if let Err(e) = prepared {
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    Ok(listener)
}

struct Acceptor {
    config: ListenConfig,
    poll: Poll,
    listener: UnixListener,
    workers: Arc<Workers>,
}

impl Acceptor {
    fn run(mut self) {
        if let Err(e) = self.poll.registry().register(&mut self.listener, LISTENER, Interest::READABLE) {
            log::error!("accepting ends: {e}");
            return;
        }
        let mut events = Events::with_capacity(8);
        let mut backoff = None;
        while !self.workers.shared.draining.load(Relaxed) {
            if let Err(e) = self.poll.poll(&mut events, backoff)
                && e.kind() != io::ErrorKind::Interrupted
            {
                log::error!("accepting ends: poll: {e}");
                return;
            }
            // Edge-triggered: accept until the backlog is empty, also after a pause.
            backoff = self.accept_all(backoff.is_some());
        }
    }

    /// Accepts until the backlog is empty. Returns the pause that is needed if the process is out of descriptors.
    fn accept_all(&self, paused: bool) -> Option<Duration> {
        while !self.workers.shared.draining.load(Relaxed) {
            // Not mio's accept, whose stream would have to be registered here first; nix's returns a number, and no owned descriptor.
            let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
            match rustix::net::accept_with(self.listener.as_fd(), flags) {
                Ok(fd) => self.admit(StdStream::from(fd)),
                Err(rustix::io::Errno::AGAIN) => return None,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(e) => {
                    if !paused {
                        log::warn!("accepting pauses: {e}");
                    }
                    return Some(BACKOFF);
                }
            }
        }
        None
    }

    fn admit(&self, stream: StdStream) {
        match self.check(&stream).and_then(|()| self.workers.admit()) {
            Ok(()) => self.workers.serve(stream),
            Err(refusal) => self.workers.refuse(stream, refusal),
        }
    }

    fn check(&self, stream: &StdStream) -> Result<(), Refusal> {
        let (uids, gids) = (&self.config.allow_uids, &self.config.allow_gids);
        if uids.is_empty() && gids.is_empty() {
            return Ok(());
        }
        let peer = getsockopt(stream, PeerCredentials).map_err(Refusal::NoCredentials)?;
        let (uid, gid) = (peer.uid(), peer.gid());
        if uids.contains(&uid) || gids.contains(&gid) {
            return Ok(());
        }
        Err(Refusal::NotAllowed { uid, gid })
    }
}
