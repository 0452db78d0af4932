//! Sends parts of files to a client's socket, in the place of HTTP/1's own writing (Varnish: `http1/cache_http1_line.c`), with the
//! same time limits, the same lines in the log and the same outcome.
//!
//! varnishd's writev waits `idle_send_timeout` for all of its bytes, the kernel that long for each [`CHUNK`] that it passes from a file to
//! a socket. A call is therefore given only as many of them as cannot pass `send_timeout`; when none is left, calls do not block,
//! and [`Transfer::call`] waits by itself.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt, setsockopt, sockopt};
use nix::sys::uio::pread;
use objmapper_abi::{How, Span};
use varnishd::http1::Line;

use super::pipe::{self, Taken};

/// At most this many bytes per call.
const STEP: usize = 1 << 20;
/// The kernel hands this many bytes at a time to a socket, 16 pages, and waits for each up to `idle_send_timeout`
/// (splice_to_socket in Linux's fs/splice.c).
const CHUNK: usize = 64 << 10;

/// The reasons why not all bytes, but only the first `sent`, were sent.
pub(super) enum Failed {
    /// The connection is broken, or too slow; varnishd knows.
    Broken { sent: usize },
    /// The kernel cannot send from this file: the others are to be copied.
    Unable { sent: usize },
    /// The file cannot be read.
    Unreadable { sent: usize, errno: c_int },
}

/// The reasons why a call has sent nothing.
enum Stopped {
    /// An error of the socket, or of the kernel for both.
    Socket(Errno),
    /// An error of the file.
    File(Errno),
}

/// Returns the file of a span.
fn file_of(span: &Span) -> BorrowedFd<'_> {
    // SAFETY: the engine keeps the descriptor open until the call returns that passed the span's bytes on.
    unsafe { BorrowedFd::borrow_raw(span.fd) }
}

/// Sends the `size` bytes of the file, after what is queued. `idle` is the socket's `idle_send_timeout` in seconds. The line must
/// not be chunked.
pub(super) fn send(line: Line<'_>, span: &Span, size: usize, idle: f64) -> Result<(), Failed> {
    let mut pipe = match span.how {
        How::Splice => pipe::take(),
        How::Auto if size >= pipe::WORTHWHILE => pipe::take(),
        How::Auto | How::Sendfile => None,
    };
    // Before the head is sent: without a body there is none.
    if let Some(pipe) = &mut pipe {
        pipe.fill(file_of(span), span.offset, size).map_err(|errno| unfilled(0, errno))?;
    }
    line.flush();
    let Some(socket) = line.socket() else { return Err(Failed::Broken { sent: 0 }) };
    let mut transfer = Transfer { span, size, sent: 0, socket, pipe };
    let broken = |transfer: &Transfer<'_>, errno| {
        line.write_failed(size - transfer.sent, errno as c_int);
        Failed::Broken { sent: transfer.sent }
    };
    // As varnishd's own writing knows them.
    let (mut last, mut last_error) = (0_isize, Errno::from_raw(0));
    loop {
        let left = line.time_left();
        if left < 0.0 {
            line.log_total_timeout(last, size - transfer.sent);
            return Err(broken(&transfer, last_error));
        }
        let before = transfer.sent;
        let done = transfer.call(left, idle);
        line.count_written(transfer.sent - before);
        match done {
            Ok(()) if transfer.sent == size => return Ok(()),
            Ok(()) => last = (transfer.sent - before) as isize,
            Err(Stopped::Socket(Errno::EAGAIN)) => {
                (last, last_error) = (-1, Errno::EAGAIN);
                line.log_idle_timeout(size - transfer.sent);
            }
            // Of the file or the socket; nothing of this call was sent.
            Err(Stopped::Socket(errno)) if transfer.pipe.as_ref().is_none_or(Taken::is_empty) && is_refusal(errno) => {
                return Err(Failed::Unable { sent: transfer.sent });
            }
            Err(Stopped::Socket(errno)) => return Err(broken(&transfer, errno)),
            Err(Stopped::File(errno)) => return Err(unfilled(transfer.sent, errno)),
        }
    }
}

/// Returns true for an error that says that a call cannot be used with this file or socket, or has no memory: another way may do.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::ENOSYS | Errno::ENOMEM | Errno::EOVERFLOW)
}

/// Returns the failure of a file that could not be read.
fn unfilled(sent: usize, errno: Errno) -> Failed {
    if is_refusal(errno) { Failed::Unable { sent } } else { Failed::Unreadable { sent, errno: errno as c_int } }
}

/// Bytes of a file on their way to a socket.
struct Transfer<'a> {
    span: &'a Span,
    size: usize,
    sent: usize,
    socket: BorrowedFd<'a>,
    pipe: Option<Taken>,
}

impl Transfer<'_> {
    /// Sends some of the bytes, with as much waiting for the client, `idle` seconds in all, as one call of varnishd's writev. It begins
    /// `left` seconds before the deadline. Fails with an errno; EAGAIN: the client took nothing for so long.
    ///
    /// As long as calls that block cannot pass the deadline, whatever the client does, they are used. The last call before it is
    /// made of calls that do not block, whose waiting is counted.
    fn call(&mut self, left: f64, idle: f64) -> Result<(), Stopped> {
        // Not a number if neither has a limit.
        let chunks = left / idle;
        // One chunk is one call, as varnishd's.
        if chunks >= 1.0 || self.size - self.sent <= CHUNK {
            return self.step((chunks as usize).clamp(1, STEP / CHUNK) * CHUNK);
        }
        let Some(_nonblocking) = Nonblocking::set(self.socket) else { return self.step(CHUNK) };
        let (before, mut waited) = (self.sent, 0.0);
        while self.sent < self.size {
            match self.step(STEP) {
                Ok(()) => {}
                Err(Stopped::Socket(Errno::EAGAIN)) if waited < idle => {
                    waited += wait_writable(self.socket, idle - waited)
                }
                Err(Stopped::Socket(Errno::EAGAIN)) if self.sent > before => break,
                Err(stopped) => return Err(stopped),
            }
        }
        Ok(())
    }

    /// Makes one system call that sends, for at most `most` bytes.
    fn step(&mut self, most: usize) -> Result<(), Stopped> {
        let (left, offset) = (self.size - self.sent, self.span.offset + self.sent as u64);
        let want = most.min(left);
        loop {
            let done = match &mut self.pipe {
                Some(pipe) => {
                    pipe.fill(file_of(self.span), offset, left).map_err(Stopped::File)?;
                    pipe.send(self.socket, want, left)
                }
                None => {
                    let mut offset = offset as nix::libc::off_t;
                    sendfile(self.socket, file_of(self.span), Some(&mut offset), want)
                }
            };
            match done {
                // The file ends too early.
                Ok(0) => return Err(Stopped::File(Errno::EIO)),
                Ok(sent) => {
                    self.sent += sent;
                    return Ok(());
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.stopped(errno)),
            }
        }
    }

    /// Returns whose the error of a call is that sends. Of a pipe it is the socket's; sendfile(2) does not tell.
    fn stopped(&self, errno: Errno) -> Stopped {
        if self.pipe.is_some() || errno == Errno::EAGAIN || is_refusal(errno) {
            return Stopped::Socket(errno);
        }
        match read(self.span, self.sent, &mut [0]) {
            Ok(_) if errno != Errno::EIO => Stopped::Socket(errno),
            Ok(_) => Stopped::File(errno),
            Err(errno) => Stopped::File(errno),
        }
    }
}

/// A socket whose calls do not block, as long as this lives.
struct Nonblocking<'a> {
    socket: BorrowedFd<'a>,
    /// The flags before.
    flags: OFlag,
}

impl<'a> Nonblocking<'a> {
    /// Returns `None` if the kernel refuses.
    fn set(socket: BorrowedFd<'a>) -> Option<Nonblocking<'a>> {
        let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).ok()?);
        fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).ok()?;
        Some(Nonblocking { socket, flags })
    }
}

impl Drop for Nonblocking<'_> {
    fn drop(&mut self) {
        // What was set can be undone.
        let _ = fcntl(self.socket, FcntlArg::F_SETFL(self.flags));
    }
}

/// Waits until the socket takes bytes or has failed, at most `most` seconds. Returns how long it has waited, at least a millisecond: so
/// waiting ends, whatever poll(2) says of the socket.
fn wait_writable(socket: BorrowedFd<'_>, most: f64) -> f64 {
    let begin = Instant::now();
    let timeout = PollTimeout::try_from((most * 1e3).ceil() as i32).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [PollFd::new(socket, PollFlags::POLLOUT)], timeout);
    begin.elapsed().as_secs_f64().max(1e-3)
}

/// Returns true if the client is known to be on this machine.
fn is_local(socket: BorrowedFd<'_>) -> bool {
    let fd = socket.as_raw_fd();
    let (Ok(ours), Ok(theirs)) = (getsockname::<SockaddrStorage>(fd), getpeername::<SockaddrStorage>(fd)) else {
        return false;
    };
    if ours.family() == Some(nix::sys::socket::AddressFamily::Unix) {
        return true;
    }
    // The addresses, without port and scope.
    match (ours.as_sockaddr_in(), theirs.as_sockaddr_in(), ours.as_sockaddr_in6(), theirs.as_sockaddr_in6()) {
        (Some(ours), Some(theirs), _, _) => ours.ip() == theirs.ip(),
        (_, _, Some(ours), Some(theirs)) => ours.ip() == theirs.ip(),
        _ => false,
    }
}

/// Ends the pacing of a client on this machine. Returns true if it was paced until now. BBR paces everywhere, with a timer that is set
/// for each 64 KiB that the kernel passes on; where nothing is ever lost or queued that is for nothing, and costs ten times
/// as much as all the rest of such a delivery (DESIGN.md, "Zero-copy delivery").
pub(super) fn unpace(line: Line<'_>, size: usize) -> bool {
    const PACED: &str = "bbr";
    const UNPACED: &str = "reno";
    // Shorter ones are sent at once, and fare better with BBR.
    if size < STEP {
        return false;
    }
    let Some(socket) = line.socket() else { return false };
    // Where BBR is not in use, or was replaced before on this connection, one question is enough. A socket that is not TCP has no
    // congestion control. The kernel has "reno" built in, and any user may choose it.
    getsockopt(&socket, sockopt::TcpCongestion).is_ok_and(|name| name.to_string_lossy().starts_with(PACED))
        && is_local(socket)
        && setsockopt(&socket, sockopt::TcpCongestion, &UNPACED.into()).is_ok()
}

/// Reads from a span, `at` bytes behind its begin.
///
/// # Errors
/// The file cannot be read; EIO if it ends there.
pub(super) fn read(span: &Span, at: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match pread(file_of(span), buffer, (span.offset + at as u64) as nix::libc::off_t) {
            Ok(0) => return Err(Errno::EIO),
            Err(Errno::EINTR) => {}
            read => return read,
        }
    }
}
