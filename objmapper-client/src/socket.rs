//! The Unix socket: the crate's only sendmsg and recvmsg, and its input buffer.
//!
//! The kernel ends a read with the message that brought descriptors, so a group of descriptors belongs to the last byte of its
//! read. [`Inbox`] keeps each group with the stream position of that byte, and matches it with the reply that announced it. A
//! descriptor without a reply, and a truncated group, is an error.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use objmapper_log::RateLimited;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, shutdown, socket_with, sockopt,
};
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
pub(crate) struct Socket(OwnedFd);

/// Returns the time until `deadline`; `None` if it has passed.
pub(crate) fn left(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
}

fn timespec(d: Duration) -> Timespec {
    // A timeout of more than 2^63 seconds is beyond any deadline here.
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: d.subsec_nanos().into() }
}

/// Waits for `flags` on `fd`.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> Result<PollFlags> {
    loop {
        let Some(left) = left(deadline) else { return Ok(PollFlags::empty()) };
        let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => {}
            Ok(_) => return Ok(fds[0].revents()),
            Err(Errno::INTR) => {}
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
                let failed = |e: std::io::Error| Error::Io {
                    what: "connect in this process",
                    errno: e.raw_os_error().unwrap_or(Errno::CONNREFUSED.raw_os_error()),
                };
                Self::from_connected(connector().map_err(failed)?)
            }
        }
    }

    /// Connects. Waits for room in a full backlog until `deadline`; the kernel would wait without bound.
    pub(crate) fn connect(path: &Path, deadline: Instant) -> Result<Self> {
        let address = SocketAddrUnix::new(path).map_err(Error::io("socket path"))?;
        let fd =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
                .map_err(Error::io("socket"))?;
        loop {
            match connect(&fd, &address) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
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
        // Each send passes MSG_DONTWAIT, and so does each read that must not block for a tick.
        rustix::io::ioctl_fionbio(&fd, false).map_err(Error::io("ioctl"))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(READ_TICK)).map_err(Error::io("SO_RCVTIMEO"))?;
        Ok(Self(fd))
    }

    /// Sends what the socket takes at once and returns the number of bytes; 0 if it takes none now.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<usize> {
        let mut no_fds = SendAncillaryBuffer::default();
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut no_fds, flags) {
                Ok(n) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::Closed),
                Err(e) => return Err(Error::io("sendmsg")(e)),
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
        let _ = shutdown(&self.0, Shutdown::Both);
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
                Err(Errno::AGAIN) => {
                    self.drained = true;
                    if deadline.is_none() {
                        return Ok(Ready::TimedOut);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(Error::Closed),
                Err(Errno::MSGSIZE) => return Err(ProtocolError::FdsCutOff.into()),
                Err(Errno::NOTCONN) => return Err(Error::Closed),
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
        )?;
        // Taken even if the message is refused, so that they are closed.
        let mut fds = Fds::new();
        for item in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = item {
                fds.extend(rights);
            }
        }
        if message.bytes == 0 {
            return Err(Errno::PIPE);
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Errno::MSGSIZE);
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
    let timeout = timeout.map(timespec);
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        // The same as a wake-up: the caller checks its state and waits again.
        Err(Errno::INTR) => return Vec::new(),
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
