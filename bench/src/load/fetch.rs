//! Single requests, outside of measurements: to look at a response, and to check that its bytes are the origin's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::connection::parse_head;
use crate::pattern;
use crate::target::Target;

/// A response's head, and the time that it took.
#[derive(Debug)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Body length.
    pub bytes: u64,
    /// The head as it came.
    pub text: String,
    /// From the request to the first byte.
    pub first_byte: Duration,
    /// Body bytes that came with the head.
    rest: Vec<u8>,
}

/// Longer than any deadline of a server that is alive.
const PATIENCE: Duration = Duration::from_secs(60);

/// GETs `path` on a connection of its own and reads the head.
pub fn get(address: SocketAddr, path: &str, header: &str) -> Result<Head> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    get_on(&stream, path, header)
}

/// GETs `path` on this connection and reads the head.
pub fn get_on(mut stream: &TcpStream, path: &str, header: &str) -> Result<Head> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let begun = Instant::now();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n{header}\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut first_byte = None;
    loop {
        let n = stream.read(&mut buffer).with_context(|| format!("response to {path}"))?;
        if n == 0 {
            bail!("the connection ended before the response to {path}");
        }
        first_byte.get_or_insert_with(|| begun.elapsed());
        bytes.extend_from_slice(&buffer[..n]);
        if let Some((length, status, content_length)) = parse_head(&bytes)? {
            let rest = bytes.split_off(length);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let first_byte = first_byte.unwrap_or_default();
            return Ok(Head { status, bytes: content_length, text, first_byte, rest });
        }
    }
}

/// An error unless the server sends exactly the bytes of `target`.
pub fn verify(address: SocketAddr, header: &str, target: Target) -> Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    let head = get_on(&stream, &target.path(), header)?;
    let path = target.path();
    if (head.status, head.bytes) != (200, target.bytes) {
        bail!("{path}: status {} with {} bytes", head.status, head.bytes);
    }
    let mut offset = 0;
    let mut buffer = head.rest;
    let mut filled = buffer.len();
    loop {
        if !pattern::is_right(target.id, offset, &buffer[..filled]) {
            bail!("{path}: a wrong byte in the {filled} from {offset} on");
        }
        offset += filled as u64;
        if offset >= target.bytes {
            break;
        }
        buffer.resize(256 << 10, 0);
        filled = stream.read(&mut buffer).with_context(|| format!("{path} from {offset} on"))?;
        if filled == 0 {
            bail!("{path}: the connection ended after {offset} bytes");
        }
    }
    if offset > target.bytes {
        bail!("{path}: {offset} bytes came");
    }
    Ok(())
}
