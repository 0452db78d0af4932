//! The Unix socket: the crate's only send and recvmsg, and its input buffer.
//!
//! Two calls are rustix's. Its recvmsg returns descriptors that are owned, those of a truncated message too; that of nix returns
//! numbers, and none of a truncated message, whose descriptors would stay open. Its poll has POLLRDHUP, which that of nix lacks.
//!
//! The kernel ends a read with the message that brought descriptors, so a group of descriptors belongs to the last byte of its
//! read. [`Inbox`] keeps each group with the stream position of that byte, and matches it with the reply that announced it. A
//! descriptor without a reply, and a truncated group, is an error.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};
use objmapper_log::RateLimited;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use smallvec::SmallVec;

use crate::config::Target;
use crate::error::{Error, ProtocolError, Result};

/// Descriptors of one answer: nearly always none or one.
pub(crate) type Fds = SmallVec<[OwnedFd; 1]>;

/// The time that a read blocks in the kernel before it checks its deadline. A read with less time left
/// polls instead.
const READ_TICK: Duration = Duration::from_millis(100);

/// Buffer space of each read. It is more than any sendmsg that carries descriptors (EXTENSIONS.md), so
/// that descriptors come with the read whose last byte is theirs.
const READ_ROOM: usize = 64 * 1024;

/// The pause before another connect to a socket whose backlog is full; the kernel has no wait with a deadline for it.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// Control space for as many descriptors as one message may bring.
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(objmapper_proto::limits::MAX_FDS));

/// The outcome of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    Yes,
    TimedOut,
}

/// A connected stream socket.
#[derive(Debug)]
pub(crate) struct Socket(UnixStream);

/// Returns the time until `deadline`; `None` if it has passed.
pub(crate) fn left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
}

fn timespec(d: Duration) -> Timespec {
    // A timeout of more than 2^63 seconds is beyond any deadline here.
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: d.subsec_nanos().into() }
}

/// Returns the errno of a call of rustix's.
fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// Returns a function that makes the error of a failed step out of one of the standard library.
fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |why| Error::Io { what, errno: why.raw_os_error().unwrap_or(Errno::EIO as i32) }
}

/// Waits for `flags` on `fd`.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> Result<PollFlags> {
    loop {
        let Some(left) = left(deadline) else { return Ok(PollFlags::empty()) };
        let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
        match poll(&mut fds, Some(&timespec(left))).map_err(errno) {
            Ok(0) => {}
            Ok(_) => return Ok(fds[0].revents()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::io("poll")(e)),
        }
    }
}

impl Socket {
    /// Opens a connection to the store.
    pub(crate) fn open(target: &Target, deadline: Instant) -> Result<Self> {
        match target {
            Target::Path(path) => Self::connect(path, deadline),
            Target::Connector(connector) => {
                let refused = |why: io::Error| Error::Io {
                    what: "connect in this process",
                    errno: why.raw_os_error().unwrap_or(Errno::ECONNREFUSED as i32),
                };
                Self::from_connected(connector().map_err(refused)?)
            }
        }
    }

    /// Connects. Waits for room in a full backlog until `deadline`; the kernel would wait without bound.
    pub(crate) fn connect(path: &Path, deadline: Instant) -> Result<Self> {
        let address = UnixAddr::new(path).map_err(Error::io("socket path"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(Error::io("socket"))?;
        loop {
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let left = left(deadline).ok_or(Error::Timeout { what: "room in the store's backlog" })?;
                    std::thread::sleep(left.min(BACKLOG_PAUSE));
                }
                Err(e) => return Err(Error::io("connect")(e)),
            }
        }
        Self::from_connected(fd)
    }

    /// Takes a connected stream socket.
    pub(crate) fn from_connected(fd: OwnedFd) -> Result<Self> {
        let stream = UnixStream::from(fd);
        // Each send passes MSG_DONTWAIT, and so does each read that must not block for a tick.
        stream.set_nonblocking(false).map_err(failed("ioctl"))?;
        stream.set_read_timeout(Some(READ_TICK)).map_err(failed("SO_RCVTIMEO"))?;
        Ok(Self(stream))
    }

    /// Sends what the socket takes at once and returns the number of bytes; 0 if it takes none now.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<usize> {
        loop {
            match send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(n) => return Ok(n),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Error::Closed),
                Err(e) => return Err(Error::io("send")(e)),
            }
        }
    }

    /// Waits until the socket can be written or, with `or_read`, read.
    pub(crate) fn wait_writable(&self, or_read: bool, deadline: Instant) -> Result<Ready> {
        let flags = if or_read { PollFlags::OUT | PollFlags::IN } else { PollFlags::OUT };
        let revents = wait(self.0.as_fd(), flags, deadline)?;
        Ok(if revents.is_empty() { Ready::TimedOut } else { Ready::Yes })
    }

    /// Shuts both directions down: every read and write returns, also in other threads.
    pub(crate) fn shut_down(&self) {
        // Fails only if the peer has closed the connection, which has the same effect.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Descriptors that came with one recvmsg, and the stream position of their byte.
#[derive(Debug)]
struct Group {
    at: u64,
    fds: Fds,
}

/// Received bytes that are not decoded yet, and their descriptors.
#[derive(Debug)]
pub(crate) struct Inbox {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// Stream position of `buf[start]`.
    position: u64,
    groups: VecDeque<Group>,
    /// True if the last read did not fill its buffer space, so that the next one would block.
    drained: bool,
    pub(crate) fds_received: u64,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            buf: vec![0; 2 * READ_ROOM],
            start: 0,
            end: 0,
            position: 0,
            groups: VecDeque::new(),
            drained: true,
            fds_received: 0,
        }
    }
}

impl Inbox {
    /// Returns the bytes that are not decoded yet.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Takes `frame` bytes, which are decoded, and behind them the bytes of `counts.len()` groups of
    /// descriptors, of `counts` descriptors each. The buffer must hold all of these bytes.
    pub(crate) fn take(&mut self, frame: usize, counts: &[usize]) -> Result<Fds> {
        let mut fds = Fds::new();
        for (i, &expected) in counts.iter().enumerate() {
            let at = frame + i;
            let byte = self.bytes().get(at).copied().unwrap_or_default();
            if byte != objmapper_proto::FD_BYTE {
                return Err(ProtocolError::NoFdByte(byte).into());
            }
            let position = self.position + at as u64;
            let got = match self.groups.front() {
                Some(group) if group.at == position => group.fds.len(),
                _ => 0,
            };
            if got != expected {
                return Err(ProtocolError::FdCount { expected, got }.into());
            }
            if let Some(group) = self.groups.pop_front() {
                fds.extend(group.fds);
            }
        }
        let n = frame + counts.len();
        self.start += n;
        self.position += n as u64;
        // No reply announced the descriptors of a byte that was taken as another one.
        let extra = self.groups.iter().take_while(|g| g.at < self.position).map(|g| g.fds.len()).sum::<usize>();
        if extra > 0 {
            return Err(ProtocolError::ExtraFds(extra).into());
        }
        Ok(fds)
    }

    /// Reads what has arrived, and waits for it until `deadline`; without a deadline it does not wait. `needed` is the minimum
    /// number of bytes that the first frame still needs.
    pub(crate) fn fill(&mut self, socket: &Socket, needed: usize, deadline: Option<Instant>) -> Result<Ready> {
        self.make_room(needed.max(READ_ROOM));
        loop {
            let flags = match deadline {
                None => RecvFlags::DONTWAIT,
                Some(deadline) => match left(deadline) {
                    None => return Ok(Ready::TimedOut),
                    // SO_RCVTIMEO ends the read after READ_TICK.
                    Some(left) if left >= READ_TICK => RecvFlags::empty(),
                    Some(_) => {
                        if self.drained && wait(socket.as_fd(), PollFlags::IN, deadline)?.is_empty() {
                            return Ok(Ready::TimedOut);
                        }
                        RecvFlags::DONTWAIT
                    }
                },
            };
            match self.receive(socket, flags) {
                Ok(()) => return Ok(Ready::Yes),
                Err(Errno::EAGAIN) => {
                    self.drained = true;
                    if deadline.is_none() {
                        return Ok(Ready::TimedOut);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET | Errno::EPIPE) => return Err(Error::Closed),
                Err(Errno::EMSGSIZE) => return Err(ProtocolError::FdsCutOff.into()),
                Err(Errno::ENOTCONN) => return Err(Error::Closed),
                Err(e) => return Err(Error::io("recvmsg")(e)),
            }
        }
    }

    /// Makes one recvmsg. `EPIPE` stands for the end of the stream, `EMSGSIZE` for truncated descriptors;
    /// recvmsg itself returns neither on a stream socket.
    fn receive(&mut self, socket: &Socket, flags: RecvFlags) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.buf.len() - self.end;
        let message = recvmsg(
            &socket.0,
            &mut [IoSliceMut::new(&mut self.buf[self.end..])],
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(errno)?;
        // Taken even if the message is refused, so that they are closed.
        let mut fds = Fds::new();
        for item in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = item {
                fds.extend(rights);
            }
        }
        if message.bytes == 0 {
            return Err(Errno::EPIPE);
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Errno::EMSGSIZE);
        }
        self.drained = message.bytes < room;
        self.end += message.bytes;
        if !fds.is_empty() {
            self.fds_received += fds.len() as u64;
            // The kernel ends a read with the message that brought descriptors.
            let at = self.position + (self.end - self.start) as u64 - 1;
            self.groups.push_back(Group { at, fds });
        }
        Ok(())
    }

    fn make_room(&mut self, room: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buf.len() > 4 * READ_ROOM {
                // A large frame was taken: its memory is freed.
                self.buf = vec![0; 2 * READ_ROOM];
            }
        }
        if self.buf.len() - self.end < room {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            // Bounded, because the length of a frame is.
            self.buf.resize(self.buf.len().max(self.end + room), 0);
        }
    }
}

/// An event of a watched socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happened {
    /// Its peer has closed it.
    Closed,
    /// It can be read.
    Readable,
}

/// Waits until a peer closes one of `sockets`, one with its flag set can be read, `wake` can be read, or the timeout has
/// passed. Returns the events by index.
pub(crate) fn watch(
    sockets: &[(BorrowedFd<'_>, bool)],
    wake: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> Vec<(usize, Happened)> {
    let flags = |read: bool| if read { PollFlags::RDHUP | PollFlags::IN } else { PollFlags::RDHUP };
    let mut fds: Vec<PollFd<'_>> = sockets.iter().map(|(s, read)| PollFd::from_borrowed_fd(*s, flags(*read))).collect();
    fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
    match poll(&mut fds, timeout.map(timespec).as_ref()).map_err(errno) {
        Ok(_) => {}
        // The same as a wake-up: the caller checks its state and waits again.
        Err(Errno::EINTR) => return Vec::new(),
        Err(e) => {
            static FAILED: RateLimited = RateLimited::new(3, Duration::from_secs(60));
            if let Some(left_out) = FAILED.admit() {
                log::error!("poll for closed connections: {e}{left_out}");
            }
            // The error may last (for example ENOMEM), so the thread pauses.
            std::thread::sleep(READ_TICK);
            return Vec::new();
        }
    }
    let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let happened = |revents: PollFlags| match revents {
        revents if revents.intersects(closed) => Some(Happened::Closed),
        revents if revents.intersects(PollFlags::IN) => Some(Happened::Readable),
        _ => None,
    };
    let sockets = fds.iter().take(sockets.len()).enumerate();
    sockets.filter_map(|(i, fd)| Some((i, happened(fd.revents())?))).collect()
}
