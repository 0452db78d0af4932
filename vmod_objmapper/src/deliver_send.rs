//! Sends parts of files to a client's socket, in the place of HTTP/1's own writing (V1L_Flush in
//! cache_http1_line.c), with the same time limits, the same lines in the log and the same outcome.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::time::Instant;

use objmapper_abi::{How, Span};
use varnishd_sys::bindings::{SC_NULL, SC_REM_CLOSE, SC_TX_ERROR, SLT_Debug, VAS_errtxt, VSLb, VTIM_real};
use varnishd_sys::http1::{V1L_Flush, V1l};

use crate::deliver_pipe::{self, Taken, errno};

/// At most this many bytes per call.
const STEP: usize = 1 << 20;
/// The kernel hands this many bytes at a time to a socket, 16 pages, and waits for each up to `idle_send_timeout`
/// (splice_to_socket in fs/splice.c). V1L_Flush's writev waits that long for all of its bytes.
const CHUNK: usize = 64 << 10;

/// Why not all bytes, but only the first `sent`, were sent.
pub(crate) enum Failed {
    /// The connection is broken, or too slow; varnishd knows.
    Broken { sent: usize },
    /// The kernel cannot send from this file: copy the others.
    Unable { sent: usize },
    /// The file cannot be read.
    Unreadable { sent: usize, errno: c_int },
}

/// Why a call has sent nothing.
enum Stopped {
    /// What the socket, or the kernel of both, said.
    Socket(c_int),
    /// What the file said.
    File(c_int),
}

/// Sends the `size` bytes of the file, after what is queued. `idle` is the socket's `idle_send_timeout` in seconds.
///
/// # Safety
/// `line` must be that of the calling thread's delivery, not chunked; `span` must stand for that many bytes.
pub(crate) unsafe fn send(line: NonNull<V1l>, span: &Span, size: usize, idle: f64) -> Result<(), Failed> {
    // SAFETY: by contract; no other reference to the line is used while this one lives.
    unsafe {
        let mut pipe = match span.how {
            How::Splice => deliver_pipe::take(),
            How::Auto if size >= deliver_pipe::WORTHWHILE => deliver_pipe::take(),
            How::Auto | How::Sendfile => None,
        };
        // Before the head is sent: without a body there is none.
        if let Some(pipe) = &mut pipe {
            pipe.fill(span.fd, span.offset, size).map_err(|errno| unfilled(0, errno))?;
        }
        flush(line);
        let (socket, werr) = (*(*line.as_ptr()).wfd, (*line.as_ptr()).werr);
        if socket < 0 || !std::ptr::eq(werr, SC_NULL.as_ptr()) {
            return Err(Failed::Broken { sent: 0 });
        }
        let mut transfer = Transfer { span, size, sent: 0, socket, pipe };
        // As V1L_Flush knows them.
        let (mut last, mut last_error) = (0_isize, 0);
        loop {
            let left = (*line.as_ptr()).deadline - VTIM_real();
            if left < 0.0 {
                let text = c"Hit total send timeout, wrote = %zd/%zd; not retrying".as_ptr();
                VSLb((*line.as_ptr()).vsl, SLT_Debug, text, last, size - transfer.sent);
                return Err(broken(line, size, transfer.sent, last_error));
            }
            let before = transfer.sent;
            let done = transfer.call(left, idle);
            (*line.as_ptr()).cnt += (transfer.sent - before) as u64;
            match done {
                Ok(()) if transfer.sent == size => return Ok(()),
                Ok(()) => last = (transfer.sent - before) as isize,
                Err(Stopped::Socket(libc::EAGAIN)) => {
                    last = -1;
                    last_error = libc::EAGAIN;
                    let text = c"Hit idle send timeout, wrote = %zd/%zd; retrying".as_ptr();
                    VSLb((*line.as_ptr()).vsl, SLT_Debug, text, last, size - transfer.sent);
                }
                // Of the file or the socket; nothing of this call was sent.
                Err(Stopped::Socket(errno))
                    if transfer.pipe.as_ref().is_none_or(Taken::is_empty) && is_refusal(errno) =>
                {
                    return Err(Failed::Unable { sent: transfer.sent });
                }
                Err(Stopped::Socket(errno)) => return Err(broken(line, size, transfer.sent, errno)),
                Err(Stopped::File(errno)) => return Err(unfilled(transfer.sent, errno)),
            }
        }
    }
}

/// Returns true for what a call says that cannot be used with this file or socket, or has no memory: another way may do.
fn is_refusal(errno: c_int) -> bool {
    matches!(errno, libc::EINVAL | libc::ENOSYS | libc::ENOMEM | libc::EOVERFLOW)
}

/// A file could not be read.
fn unfilled(sent: usize, errno: c_int) -> Failed {
    if is_refusal(errno) { Failed::Unable { sent } } else { Failed::Unreadable { sent, errno } }
}

/// Bytes of a file on their way to a socket.
struct Transfer<'a> {
    span: &'a Span,
    size: usize,
    sent: usize,
    socket: c_int,
    pipe: Option<Taken>,
}

impl Transfer<'_> {
    /// Sends some of the bytes, with as much waiting for the client, `idle` seconds in all, as one call of V1L_Flush's writev. It begins
    /// `left` seconds before the deadline. Fails with an errno; EAGAIN: the client took nothing for so long.
    ///
    /// As long as calls that block cannot pass the deadline, whatever the client does, they are used. The last call before it is
    /// made of calls that do not block, whose waiting is counted.
    fn call(&mut self, left: f64, idle: f64) -> Result<(), Stopped> {
        // Not a number if neither has a limit.
        let chunks = left / idle;
        // One chunk is one call, as V1L_Flush's.
        if chunks >= 1.0 || self.size - self.sent <= CHUNK {
            return self.step((chunks as usize).clamp(1, STEP / CHUNK) * CHUNK);
        }
        let Some(_nonblocking) = Nonblocking::set(self.socket) else { return self.step(CHUNK) };
        let (before, mut waited) = (self.sent, 0.0);
        while self.sent < self.size {
            match self.step(STEP) {
                Ok(()) => {}
                Err(Stopped::Socket(libc::EAGAIN)) if waited < idle => {
                    waited += wait_writable(self.socket, idle - waited)
                }
                Err(Stopped::Socket(libc::EAGAIN)) if self.sent > before => break,
                Err(stopped) => return Err(stopped),
            }
        }
        Ok(())
    }

    /// One call of the kernel's that sends, for at most `most` bytes.
    fn step(&mut self, most: usize) -> Result<(), Stopped> {
        let (left, offset) = (self.size - self.sent, self.span.offset + self.sent as u64);
        let want = most.min(left);
        loop {
            let done = match &mut self.pipe {
                Some(pipe) => {
                    pipe.fill(self.span.fd, offset, left).map_err(Stopped::File)?;
                    pipe.send(self.socket, want, left)
                }
                None => sendfile(self.span.fd, offset, want, self.socket),
            };
            match done {
                // The file ends too early.
                Ok(0) => return Err(Stopped::File(libc::EIO)),
                Ok(sent) => {
                    self.sent += sent;
                    return Ok(());
                }
                Err(libc::EINTR) => {}
                Err(errno) => return Err(self.stopped(errno)),
            }
        }
    }

    /// What the error of a call that sends is of. Of a pipe it is the socket's; sendfile(2) does not tell.
    fn stopped(&self, errno: c_int) -> Stopped {
        if self.pipe.is_some() || errno == libc::EAGAIN || is_refusal(errno) {
            return Stopped::Socket(errno);
        }
        match read(self.span, self.sent, &mut [0]) {
            Ok(_) if errno != libc::EIO => Stopped::Socket(errno),
            Ok(_) => Stopped::File(errno),
            Err(errno) => Stopped::File(errno),
        }
    }
}

/// A socket whose calls do not block, as long as this lives.
struct Nonblocking {
    socket: c_int,
    /// As they were.
    flags: c_int,
}

impl Nonblocking {
    /// `None`: the kernel refuses.
    fn set(socket: c_int) -> Option<Nonblocking> {
        // SAFETY: fcntl(2) of a number.
        let flags = unsafe { libc::fcntl(socket, libc::F_GETFL) };
        // SAFETY: as above.
        let set = flags >= 0 && unsafe { libc::fcntl(socket, libc::F_SETFL, flags | libc::O_NONBLOCK) } == 0;
        set.then_some(Nonblocking { socket, flags })
    }
}

impl Drop for Nonblocking {
    fn drop(&mut self) {
        // SAFETY: as in `set`; what it did can be undone.
        unsafe { libc::fcntl(self.socket, libc::F_SETFL, self.flags) };
    }
}

/// Waits until the socket takes bytes or has failed, at most `most` seconds. Returns how long it has waited, at least a millisecond: so
/// waiting ends, whatever poll(2) says of the socket.
fn wait_writable(socket: c_int, most: f64) -> f64 {
    let begin = Instant::now();
    let mut entry = libc::pollfd { fd: socket, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which poll(2) reads and writes.
    unsafe { libc::poll(&raw mut entry, 1, (most * 1e3).ceil() as c_int) };
    begin.elapsed().as_secs_f64().max(1e-3)
}

/// Is the client on this machine? What is not known is taken for no.
fn is_local(socket: c_int) -> bool {
    type Name = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int;
    let name = |get: Name| {
        let mut address = [0_u8; size_of::<libc::sockaddr_in6>()];
        let mut len = address.len() as libc::socklen_t;
        // SAFETY: getsockname(2) and getpeername(2) write at most `len` bytes.
        let got = unsafe { get(socket, address.as_mut_ptr().cast(), &raw mut len) } == 0;
        got.then_some(address)
    };
    let (Some(ours), Some(theirs)) = (name(libc::getsockname), name(libc::getpeername)) else { return false };
    match c_int::from(u16::from_ne_bytes([ours[0], ours[1]])) {
        libc::AF_UNIX => true,
        // Of struct sockaddr_in and sockaddr_in6 the address, without port and scope.
        libc::AF_INET => ours[4..8] == theirs[4..8],
        libc::AF_INET6 => ours[8..24] == theirs[8..24],
        _ => false,
    }
}

/// Has a client on this machine sent to without pacing; was it paced until now? BBR paces everywhere, with a timer that is set
/// for each 64 KiB that the kernel hands over; where nothing is ever lost or queued that is for nothing, and costs ten times
/// as much as all the rest of such a delivery (DESIGN.md, "Zero-copy delivery").
///
/// # Safety
/// `line` must be that of the calling thread's delivery.
pub(crate) unsafe fn unpace(line: NonNull<V1l>, size: usize) -> bool {
    const PACED: &[u8] = b"bbr";
    const UNPACED: &[u8] = b"reno";
    // Shorter ones are sent at once, and fare better with BBR.
    if size < STEP {
        return false;
    }
    // SAFETY: by contract. Both calls read or write at most as many bytes as they are told. The kernel has "reno" built in,
    // and any user may choose it; a socket that is not TCP has neither.
    unsafe {
        let socket = *(*line.as_ptr()).wfd;
        let mut name = [0_u8; 16];
        let mut len = name.len() as libc::socklen_t;
        let at = name.as_mut_ptr().cast();
        // Where BBR is not in use, or was replaced before on this connection, one question is enough.
        if libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, at, &raw mut len) != 0
            || !name.starts_with(PACED)
            || !is_local(socket)
        {
            return false;
        }
        let (at, len) = (UNPACED.as_ptr().cast(), UNPACED.len() as libc::socklen_t);
        libc::setsockopt(socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, at, len) == 0
    }
}

/// The connection has failed, as V1L_Flush tells varnishd.
///
/// # Safety
/// `line` must be that of the calling thread's delivery.
unsafe fn broken(line: NonNull<V1l>, size: usize, sent: usize, errno: c_int) -> Failed {
    // SAFETY: by contract; VAS_errtxt (lib/libvarnish/vas.c) returns a static text.
    unsafe {
        let line = line.as_ptr();
        let text = c"Write error, retval = %zd, len = %zd, errno = %s".as_ptr();
        VSLb((*line).vsl, SLT_Debug, text, -1_isize, size - sent, VAS_errtxt(errno));
        let closed = errno == libc::EPIPE;
        (*line).werr = if closed { SC_REM_CLOSE.as_ptr() } else { SC_TX_ERROR.as_ptr() };
    }
    Failed::Broken { sent }
}

/// Writes what HTTP/1 has queued, so that it can share a packet with what follows.
///
/// # Safety
/// `line` must be that of the calling thread's delivery, not chunked.
unsafe fn flush(line: NonNull<V1l>) {
    // SAFETY: by contract: `niov` entries of `iov` are queued, with `liov` readable bytes (V1L_Write). An `Iovec` is C's.
    unsafe {
        let its = line.as_ptr();
        if *(*its).wfd >= 0 && (*its).liov > 0 && std::ptr::eq((*its).werr, SC_NULL.as_ptr()) {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = (*its).iov.cast();
            header.msg_iovlen = (*its).niov as usize;
            let flags = libc::MSG_MORE | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let written = libc::sendmsg(*(*its).wfd, &raw const header, flags);
            if let Ok(written) = usize::try_from(written) {
                (*its).cnt += written as u64;
                forget(its, written);
            }
        }
        // The rest, if any: with its waiting and its errors.
        V1L_Flush(its);
    }
}

/// Takes what was written off the queue.
///
/// # Safety
/// As for [`flush`].
unsafe fn forget(line: *mut V1l, mut written: usize) {
    // SAFETY: by contract.
    unsafe {
        (*line).liov -= written;
        // The usual case: V1L_Flush, which follows, looks at no entry when they have no bytes.
        if (*line).liov == 0 {
            return;
        }
        for index in 0..(*line).niov as usize {
            let entry = &mut *(*line).iov.add(index);
            let here = entry.len.min(written);
            entry.base = entry.base.cast::<u8>().add(here).cast();
            entry.len -= here;
            written -= here;
        }
    }
}

fn sendfile(file: c_int, offset: u64, want: usize, socket: c_int) -> Result<usize, c_int> {
    let mut offset = offset as libc::off_t;
    // SAFETY: sendfile(2) reads no memory of ours but the offset.
    let sent = unsafe { libc::sendfile(socket, file, &raw mut offset, want) };
    usize::try_from(sent).map_err(|_| errno())
}

/// Reads from a span, `at` bytes behind its begin. `Err`: it can't be read; EIO if it ends there.
pub(crate) fn read(span: &Span, at: usize, buffer: &mut [u8]) -> Result<usize, c_int> {
    loop {
        let offset = (span.offset + at as u64) as libc::off_t;
        // SAFETY: pread(2) writes at most the buffer's length to it.
        let got = unsafe { libc::pread(span.fd, buffer.as_mut_ptr().cast(), buffer.len(), offset) };
        match usize::try_from(got) {
            Ok(0) => return Err(libc::EIO),
            Ok(got) => return Ok(got),
            Err(_) if errno() == libc::EINTR => {}
            Err(_) => return Err(errno()),
        }
    }
}
