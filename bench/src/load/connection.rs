//! One connection of the load: sends a request, takes the response apart as it comes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::Drain;

/// The longest response head.
const MAX_HEAD: usize = 16 << 10;
/// While the kernel discards the bodies, a read that looks for a head takes no more than this of a body with it.
const HEAD_READ: usize = 1 << 10;
/// So much is read from one connection before the others have their turn.
const TURN: u64 = 1 << 20;

/// Where a response stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More will come.
    Waiting,
    /// It is complete.
    Complete(Answer),
}

/// A complete response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: u64,
    pub(crate) latency: Duration,
    pub(crate) first_byte: Duration,
}

/// What must come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) status: u16,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    /// Body bytes still to come, once the head is complete.
    left: Option<u64>,
    expected: Expected,
    begun: Instant,
    first_byte: Option<Duration>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let expected = Expected { status: 200, bytes: 0 };
        Ok(Self { stream, head: Vec::new(), left: None, expected, begun: Instant::now(), first_byte: None })
    }

    /// Sends a request; the response before it was complete, so the socket's buffer has room.
    pub(crate) fn send(&mut self, request: &[u8], expected: Expected) -> Result<()> {
        self.head.clear();
        self.left = None;
        self.first_byte = None;
        self.expected = expected;
        self.begun = Instant::now();
        let sent = (&self.stream).write(request).context("request")?;
        if sent != request.len() {
            bail!("the socket took only {sent} of {} request bytes", request.len());
        }
        Ok(())
    }

    /// Reads what is there. `buffer` is where copied bytes go.
    pub(crate) fn advance(&mut self, drain: Drain, buffer: &mut [u8]) -> Result<Progress> {
        if self.left.is_none() && !self.read_head(drain, buffer)? {
            return Ok(Progress::Waiting);
        }
        let mut turn = TURN;
        while let Some(left) = self.left
            && left > 0
            && turn > 0
        {
            let most = left.min(buffer.len() as u64) as usize;
            let n = match drain {
                Drain::Copy => would_block((&self.stream).read(&mut buffer[..most]))?,
                Drain::Discard => would_block(self.discard(&mut buffer[..most]))?,
            };
            let Some(n) = n else { return Ok(Progress::Waiting) };
            if n == 0 {
                bail!("the connection ended {left} bytes before the body's end");
            }
            self.left = Some(left - n as u64);
            turn = turn.saturating_sub(n as u64);
        }
        if self.left != Some(0) {
            return Ok(Progress::Waiting);
        }
        let latency = self.begun.elapsed();
        Ok(Progress::Complete(Answer {
            bytes: self.expected.bytes,
            latency,
            first_byte: self.first_byte.unwrap_or(latency),
        }))
    }

    /// The kernel drops the bytes: nothing is written to `buffer`, whose length says how many.
    fn discard(&self, buffer: &mut [u8]) -> io::Result<usize> {
        recv(self.stream.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC).map_err(|e: Errno| e.into())
    }

    /// Whether the head is complete. What was read behind it counts as body.
    fn read_head(&mut self, drain: Drain, buffer: &mut [u8]) -> Result<bool> {
        let most = match drain {
            Drain::Copy => buffer.len(),
            Drain::Discard => HEAD_READ.min(buffer.len()),
        };
        let Some(n) = would_block((&self.stream).read(&mut buffer[..most]))? else { return Ok(false) };
        if n == 0 {
            bail!("the connection ended before a response");
        }
        self.first_byte.get_or_insert_with(|| self.begun.elapsed());
        // Nearly always the whole head comes with the first read; then it is not copied.
        let so_far = if self.head.is_empty() {
            &buffer[..n]
        } else {
            self.head.extend_from_slice(&buffer[..n]);
            &self.head
        };
        let Some((length, status, content_length)) = parse_head(so_far)? else {
            if self.head.is_empty() {
                self.head.extend_from_slice(&buffer[..n]);
            }
            if self.head.len() > MAX_HEAD {
                bail!("a response head of more than {MAX_HEAD} bytes");
            }
            return Ok(false);
        };
        if (status, content_length) != (self.expected.status, self.expected.bytes) {
            bail!("status {status} with {content_length} bytes came, expected was {:?}", self.expected);
        }
        let of_body = (so_far.len() - length) as u64;
        let left = content_length.checked_sub(of_body).context("more bytes than the response has")?;
        self.left = Some(left);
        Ok(true)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn would_block(read: io::Result<usize>) -> io::Result<Option<usize>> {
    match read {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Length of the head, status and Content-Length, if the head is complete.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<(usize, u16, u64)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(bytes).context("not HTTP")? else { return Ok(None) };
    let header = |name: &str| response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    let content_length = header("content-length").context("a response without Content-Length")?;
    let content_length = std::str::from_utf8(content_length)?.trim().parse().context("Content-Length")?;
    Ok(Some((length, response.code.context("no status")?, content_length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let text = b"HTTP/1.1 200 OK\r\nAge: 0\r\ncontent-LENGTH: 12\r\n\r\nbody";
        assert_eq!(parse_head(text).unwrap(), Some((text.len() - 4, 200, 12)));
        for cut in 0..text.len() - 4 {
            assert_eq!(parse_head(&text[..cut]).unwrap(), None, "{cut}");
        }
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n").is_err());
        assert!(parse_head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }

    /// Sends `pieces` one by one, each only when the one before has been looked at.
    fn drive(drain: Drain, pieces: &[&[u8]], bytes: u64) -> Result<Vec<Progress>> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut connection = Connection::open(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        connection.send(b"GET / HTTP/1.1\r\n\r\n", Expected { status: 200, bytes }).unwrap();
        let mut buffer = vec![0; 4096];
        let mut seen = Vec::new();
        for piece in pieces {
            server.write_all(piece).unwrap();
            // Loopback delivers before write returns to us only as a rule: wait until it is readable.
            let mut fds = [nix::poll::PollFd::new(connection.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, 5000_u16).unwrap();
            seen.push(connection.advance(drain, &mut buffer)?);
        }
        drop(server);
        Ok(seen)
    }

    #[test]
    fn a_response_in_pieces() {
        for drain in [Drain::Copy, Drain::Discard] {
            let seen = drive(drain, &[b"HTTP/1.1 200 OK\r\nConte", b"nt-Length: 5\r\n\r\nab", b"cde"], 5).unwrap();
            assert_eq!(seen[..2], [Progress::Waiting, Progress::Waiting]);
            assert!(matches!(&seen[2], Progress::Complete(a) if a.bytes == 5 && a.first_byte <= a.latency), "{seen:?}");
        }
    }

    #[test]
    fn too_much_the_wrong_length_and_the_wrong_status_are_errors() {
        for response in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nab",
        ] {
            assert!(drive(Drain::Copy, &[response], 2).is_err(), "{}", String::from_utf8_lossy(response));
        }
    }
}
