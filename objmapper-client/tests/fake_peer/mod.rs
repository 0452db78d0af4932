//! A peer that behaves, and misbehaves, exactly as a test says.
#![allow(dead_code, unreachable_pub, reason = "a module that each test binary uses a part of")]

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use objmapper_client::{Client, Config};
use objmapper_proto::ext::{self, Attached, Entry, EntryFlags, Op, Reply, Request, Tier, TierLimits, Token};
use objmapper_proto::v2::{ClientFrame, Dialect, Hello};
use objmapper_proto::{DecodeError, Status};

/// No wait of a test is longer; one that ends by it has failed.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

/// Waits for a condition, with a bound.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One accepted connection, from the peer's side.
pub struct Conn {
    pub stream: UnixStream,
    /// Which one it is, from 0.
    pub number: usize,
    buf: Vec<u8>,
}

impl Conn {
    /// Exactly these bytes come next.
    pub fn expect(&mut self, bytes: &str) {
        let expected = hex(bytes);
        let mut got = vec![0; expected.len()];
        self.stream.read_exact(&mut got).unwrap();
        assert_eq!(got, expected);
    }

    pub fn send(&mut self, bytes: &str) {
        self.stream.write_all(&hex(bytes)).unwrap();
    }

    /// What comes next, which stays to be read. `None`: the client has gone with an error.
    pub fn peek(&self, bytes: &mut [u8]) -> Option<usize> {
        recv(self.stream.as_raw_fd(), bytes, MsgFlags::MSG_PEEK).ok()
    }

    /// One sendmsg with descriptors.
    pub fn send_fds(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.try_send_fds(bytes, fds).unwrap();
    }

    pub fn try_send_fds(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&numbers)];
        let bytes_out = [IoSlice::new(bytes)];
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &bytes_out, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        assert_eq!(sent, bytes.len());
        Ok(())
    }

    /// Two messages, cut at `at`; the descriptor comes with the second one.
    pub fn send_fds_split(&mut self, bytes: &[u8], at: usize, file: &File) {
        self.stream.write_all(&bytes[..at]).unwrap();
        self.send_fds(&bytes[at..], &[file.as_fd()]);
    }

    /// The byte `58` with a descriptor, on its own, as v0.1 sends it.
    pub fn send_fd(&mut self, file: &File) {
        self.send_fds(b"X", &[file.as_fd()]);
    }

    /// HELLO comes; answers it as v0.1 does. `false` if the client has gone.
    pub fn hello_v01(&mut self) -> bool {
        self.hello("4f424a4d020000000102")
    }

    /// The exchange by which a client knows a V1 peer comes; answers it as v0.1 does.
    pub fn answer_v1_probe(&mut self) {
        self.expect("31 001e 2f64656c6574652f6f626a6d61707065722d636c69656e742d70726f6265");
        self.send("01 0000000000000000 0013 ff0010 4f626a656374206e6f7420666f756e64");
    }

    pub fn hello(&mut self, ack: &str) -> bool {
        let mut hello = [0; Hello::WIRE_LEN];
        if self.stream.read_exact(&mut hello).is_err() {
            return false;
        }
        self.stream.write_all(&hex(ack)).is_ok()
    }

    /// HELLO and ATTACH come; grants the extensions, this session and one memory tier at `dir`.
    pub fn hello_extended(&mut self, session: u8, dir: &Path) -> Option<Token> {
        self.hello_numbered(session, dir, None)
    }

    /// [`Self::hello_extended`], and tells the connection's number.
    pub fn hello_numbered(&mut self, session: u8, dir: &Path, connection: Option<u64>) -> Option<Token> {
        if !self.hello("4f424a4d02800000ff02") {
            return None;
        }
        let (id, Request::Attach { session: offered, .. }) = self.request()? else { panic!("not ATTACH") };
        self.attached_numbered(id, (1, session), dir, connection);
        Some(offered)
    }

    pub fn attached(&mut self, id: u32, instance: u8, session: u8, dir: &Path) {
        self.attached_numbered(id, (instance, session), dir, None);
    }

    fn attached_numbered(&mut self, id: u32, (instance, session): (u8, u8), dir: &Path, connection: Option<u64>) {
        self.attached_with_tiers(id, (instance, session), &[(Tier::Memory, dir)], connection);
    }

    /// Answers ATTACH with these tiers and their directories.
    pub fn attached_with_tiers(
        &mut self,
        id: u32,
        (instance, session): (u8, u8),
        tiers: &[(Tier, &Path)],
        connection: Option<u64>,
    ) {
        let dirs: Vec<_> = tiers.iter().map(|(_, dir)| File::open(dir).unwrap()).collect();
        let reply = Reply::Attached(Attached {
            instance: Token([instance; 16]),
            session: Token([session; 16]),
            version: ext::VERSION,
            tiers: tiers.iter().map(|(tier, _)| TierLimits { tier: *tier, limit: 1 << 20, used: 0 }).collect(),
            connection,
        });
        let mut bytes = Vec::new();
        reply.encode(id, Op::Attach, dirs.len() as u8, &mut bytes).unwrap();
        bytes.push(b'X');
        self.send_fds(&bytes, &dirs.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    }

    /// The next extension request; `None` at the end of the stream.
    pub fn request(&mut self) -> Option<(u32, Request<'static>)> {
        loop {
            match ClientFrame::decode(&self.buf, Dialect::Extended) {
                Ok((ClientFrame::Ext(frame), used)) => {
                    // The payload outlives the buffer: a test's leak is no matter.
                    let payload: &'static [u8] = Vec::leak(frame.payload.to_vec());
                    let request = Request::parse(frame.op, frame.flags, payload).unwrap();
                    let id = frame.id;
                    self.buf.drain(..used);
                    return Some((id, request));
                }
                Ok(other) => panic!("not an extension request: {other:?}"),
                Err(DecodeError::Malformed(m)) => panic!("the client sent what is malformed: {m}"),
                Err(DecodeError::Incomplete { .. }) => {
                    let mut more = [0; 4096];
                    match self.stream.read(&mut more) {
                        Ok(0) | Err(_) => return None,
                        Ok(n) => self.buf.extend_from_slice(&more[..n]),
                    }
                }
            }
        }
    }

    pub fn reply(&mut self, id: u32, op: Op, reply: &Reply<'_>) {
        let mut bytes = Vec::new();
        reply.encode(id, op, 0, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn fail(&mut self, id: u32, op: Op, status: Status) {
        let mut bytes = Vec::new();
        ext::ReplyFrame::encode_failure(id, op.code(), status, "no", &mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The bytes of an answer to LOOKUP with a descriptor.
    pub fn entry_bytes(id: u32, object: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        Reply::Entry(entry(object)).encode(id, Op::Lookup, 1, &mut bytes).unwrap();
        bytes.push(b'X');
        bytes
    }

    /// Waits for the client to hang up; whether nothing else came before.
    pub fn closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.stream.read(&mut byte), Ok(0) | Err(_))
    }
}

pub fn entry(object: u64) -> Entry {
    Entry { object, version: object, tier: Tier::Memory, flags: EntryFlags::NONE, length: 5, mtime: 1, expires: 0 }
}

/// A listening peer whose every connection runs the same script in a thread of its own.
pub struct Peer {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    pub fn start(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&accepted));
        let script = Arc::new(script);
        let thread = std::thread::spawn(move || {
            let mut threads: Vec<JoinHandle<()>> = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let stream = stream.unwrap();
                // A client that never closes fails the test instead of hanging it.
                stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
                stream.set_write_timeout(Some(2 * PATIENCE)).unwrap();
                let conn = Conn { stream, number: count.fetch_add(1, Ordering::SeqCst), buf: Vec::new() };
                let script = Arc::clone(&script);
                threads.push(std::thread::spawn(move || script(conn)));
            }
            for thread in threads {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        Self { dir, stop, accepted, thread: Some(thread) }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub fn config(&self) -> Config {
        Client::builder(self.path())
            .connections(1)
            .call_timeout(PATIENCE)
            .connect_timeout(PATIENCE)
            .max_backoff(Duration::from_millis(20))
    }

    /// Ends the peer. The client must have been dropped; a script's failed assertion fails the test.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(self.path()));
        let result = thread.join();
        if let Err(panic) = result
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A linked file with this content, open for reading and writing at offset 0, as v0.1 hands them out.
pub fn file(dir: &Path, name: &str, content: &[u8]) -> File {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

pub fn read_all(fd: OwnedFd) -> Vec<u8> {
    let mut text = Vec::new();
    File::from(fd).read_to_end(&mut text).unwrap();
    text
}

pub fn is_cloexec(fd: impl AsFd) -> bool {
    FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap()).contains(FdFlag::FD_CLOEXEC)
}
