//! The origin: an HTTP/1.1 server in this process that has every object and knows how often it was asked.

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;

use crate::machine::cpus::Cpus;
use crate::pattern;
use crate::target::Target;

/// A running origin. Its address is closed when it is dropped; connections end when their clients do.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    requests: AtomicU64,
    ending: AtomicBool,
}

impl Origin {
    /// Listens on loopback; its threads run on `cpus`.
    pub fn start(cpus: &Cpus) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::<State>::default();
        let (theirs, cpus) = (Arc::clone(&state), cpus.clone());
        let acceptor = std::thread::Builder::new().name("origin".into()).spawn(move || {
            if let Err(why) = cpus.bind() {
                eprintln!("bench: origin: {why:#}");
            }
            accept(&listener, &theirs);
        })?;
        Ok(Self { address, state, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests it has had so far.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.state.ending.store(true, Ordering::Relaxed);
        // Wakes the acceptor; if nobody listens any more, it has ended already.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in it has been printed, and this is the end.
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.ending.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let state = Arc::clone(state);
        let serving = std::thread::Builder::new().name("origin-conn".into()).spawn(move || {
            // A cache may close at any time; what it misses then, the load reports.
            let _ = serve(&stream, &state);
            let _ = stream.shutdown(Shutdown::Both);
        });
        if let Err(why) = serving {
            eprintln!("bench: origin: no thread for a connection: {why}");
        }
    }
}

fn serve(mut stream: &TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 << 10];
    let mut filled = 0;
    loop {
        let Some(end) = end_of_head(&buffer[..filled]) else {
            if filled == buffer.len() {
                return Err(io::Error::other("a request head of more than 16 KiB"));
            }
            match io::Read::read(&mut stream, &mut buffer[filled..])? {
                0 => return Ok(()),
                n => filled += n,
            }
            continue;
        };
        state.requests.fetch_add(1, Ordering::Relaxed);
        answer(stream, &buffer[..end])?;
        buffer.copy_within(end..filled, 0);
        filled -= end;
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

fn answer(mut stream: &TcpStream, head: &[u8]) -> io::Result<()> {
    let mut words = head.split(|&b| b == b' ');
    let method = words.next().unwrap_or_default();
    let target = words.next().and_then(|path| Target::from_path(std::str::from_utf8(path).ok()?));
    let Some(target) = target else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: video/mp4\r\nCache-Control: max-age=86400\r\n\
         ETag: \"{}-{}\"\r\nContent-Length: {}\r\n\r\n",
        target.bytes, target.id, target.bytes
    );
    if method == b"HEAD" {
        return stream.write_all(head.as_bytes());
    }
    let mut head = head.as_bytes();
    let mut sent = 0;
    while !head.is_empty() || sent < target.bytes {
        let piece = pattern::piece(target.id, sent);
        let piece = &piece[..(piece.len() as u64).min(target.bytes - sent) as usize];
        let n = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(piece)])?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = n.min(head.len());
        head = &head[of_head..];
        sent += (n - of_head) as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fetch;

    #[test]
    fn serves_the_bytes_that_the_path_says_and_counts() {
        let origin = Origin::start(&Cpus::allowed().unwrap()).unwrap();
        for bytes in [0, 1, 5000, 3 << 20] {
            fetch::verify(origin.address(), "", Target { bytes, id: 9 }).unwrap();
        }
        assert_eq!(origin.requests(), 4);
        assert!(fetch::get(origin.address(), "/no/such/path", "").unwrap().status == 404);
    }
}
