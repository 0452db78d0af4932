//! A server to talk to, and a peer that knows bytes and nothing else.
#![allow(dead_code, unreachable_pub)] // each test binary compiles it and uses its part

#[path = "../../../tests/harness/src/small_disk.rs"]
pub mod small_disk;

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use objmapper_proto::ext::{Op, Reply, Request, Token};
use objmapper_proto::v2::{Dialect, ServerFrame};
use objmapper_proto::{DecodeError, Status};
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{MemoryTier, Store, StoreConfig};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// No reply takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Waits for a condition with a bound.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A server in this process.
pub struct InProcess {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub server: Option<Server>,
}

pub fn listen(dir: &Path) -> ListenConfig {
    ListenConfig {
        socket: dir.join("s"),
        mode: 0o600,
        owner: None,
        group: None,
        allow_uids: Vec::new(),
        allow_gids: Vec::new(),
        max_connections: 100,
        threads: 2,
    }
}

impl InProcess {
    pub fn new() -> Self {
        Self::with(StoreConfig::default(), |_| {})
    }

    pub fn with(config: StoreConfig, change: impl FnOnce(&mut ListenConfig)) -> Self {
        let memory = Some(MemoryTier { limit: 8 << 20, mount: None });
        let memory = if config.memory.is_none() && config.disk.is_none() { memory } else { config.memory };
        let store = Store::open(StoreConfig { memory, ..config }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut listen = listen(dir.path());
        change(&mut listen);
        let server = Server::start(listen, store.clone()).unwrap();
        InProcess { dir, store, server: Some(server) }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn peer(&self) -> Peer {
        Peer::connect(&self.socket())
    }

    pub fn v01_peer(&self) -> V01Peer {
        V01Peer { stream: connect(&self.socket()).unwrap() }
    }

    pub fn attached(&self) -> Peer {
        let mut peer = self.peer();
        peer.extended();
        peer.attach(Token::NEW);
        peer
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain(Duration::ZERO);
        }
    }
}

/// `objmapperd` itself. Killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub socket: PathBuf,
}

impl Daemon {
    pub fn command(socket: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_objmapperd"));
        command.arg("--socket").arg(socket).stderr(Stdio::piped());
        command
    }

    /// Starts it and waits until it answers.
    pub fn start(mut command: Command, socket: &Path) -> Self {
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut daemon = Daemon { child, socket: socket.into() };
        eventually("the daemon answers", || {
            assert_eq!(daemon.child.try_wait().unwrap(), None, "the daemon ended");
            UnixStream::connect(&daemon.socket).is_ok()
        });
        daemon
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// A peer that reads as the public v0.1 client does: bytes by `read`, which drops the descriptors of a message that it
/// reaches into, and the one byte `58` by `recvmsg`.
pub struct V01Peer {
    pub stream: UnixStream,
}

impl V01Peer {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Receives exactly these bytes.
    pub fn expect(&mut self, expected: &str) {
        let expected = hex(expected);
        assert_eq!(to_hex(&self.take(expected.len())), to_hex(&expected));
    }

    /// The byte `58` and its one descriptor.
    pub fn expect_fd(&mut self) -> File {
        let mut byte = [0u8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            recvmsg(self.stream.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .unwrap();
        assert_eq!((got.bytes, byte), (1, [0x58]));
        let mut fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fd = fds.next().and_then(|mut fds| fds.next());
        File::from(fd.expect("the byte 58 came without its descriptor"))
    }

    /// Nothing more but the end.
    pub fn expect_end(&mut self) {
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

pub struct Peer {
    pub stream: UnixStream,
    pub input: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    /// The connection's number, if ATTACH asked for it.
    pub number: Option<u64>,
    next_id: u32,
}

impl Peer {
    pub fn connect(socket: &Path) -> Self {
        Self::try_connect(socket).unwrap()
    }

    pub fn try_connect(socket: &Path) -> io::Result<Self> {
        let stream = connect(socket)?;
        Ok(Peer { stream, input: Vec::new(), fds: Vec::new(), number: None, next_id: 0 })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// One recvmsg; false at the end. A message with descriptors must end with its `58`.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0u8; 32 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg(self.stream.as_fd(), &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let before = self.fds.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.input.extend_from_slice(&buffer[..got.bytes]);
        if self.fds.len() > before {
            assert_eq!(self.input.last(), Some(&0x58), "descriptors without their byte at the end");
        }
        Ok(got.bytes > 0)
    }

    pub fn take(&mut self, n: usize) -> Vec<u8> {
        while self.input.len() < n {
            assert!(self.receive().unwrap(), "the connection ended after {}", to_hex(&self.input));
        }
        self.input.drain(..n).collect()
    }

    /// Receives exactly these bytes.
    pub fn expect(&mut self, expected: &str) {
        let expected = hex(expected);
        let got = self.take(expected.len());
        assert_eq!(to_hex(&got), to_hex(&expected));
    }

    /// The byte `58` and its one descriptor.
    pub fn expect_fd(&mut self) -> File {
        self.expect("58");
        assert_eq!(self.fds.len(), 1);
        File::from(self.fds.remove(0))
    }

    /// Nothing more but the end.
    pub fn expect_end(&mut self) {
        match self.receive() {
            Ok(false) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("{other:?} {}", to_hex(&self.input)),
        }
        assert!(self.input.is_empty() && self.fds.is_empty());
    }

    pub fn extended(&mut self) {
        self.send(&hex("4f424a4d0280000064"));
        let ack = self.take(10);
        assert_eq!(to_hex(&ack[..9]), "4f424a4d0280000064");
    }

    pub fn attach(&mut self, token: Token) -> Token {
        match self.call(&Request::Attach { session: token, directories: false, board: false, number: false }).unwrap().0
        {
            Answer::Attached(session) => session,
            other => panic!("{other:?}"),
        }
    }

    /// Attaches, and has the connection numbered.
    pub fn attach_numbered(&mut self, token: Token) -> Token {
        let request = Request::Attach { session: token, directories: false, board: false, number: true };
        match self.call(&request).unwrap().0 {
            Answer::Attached(session) => session,
            other => panic!("{other:?}"),
        }
    }

    pub fn request(&mut self, request: &Request<'_>) -> u32 {
        self.next_id += 1;
        let mut bytes = Vec::new();
        request.encode(self.next_id, &mut bytes).unwrap();
        self.send(&bytes);
        self.next_id
    }

    /// The next reply, whoever's.
    pub fn reply(&mut self) -> (u32, Result<(Answer, Vec<OwnedFd>), Status>) {
        loop {
            match ServerFrame::decode(&self.input, Dialect::Extended) {
                Ok((ServerFrame::Ext(frame), used)) => {
                    let nfds = usize::from(frame.nfds);
                    let id = frame.id;
                    let answer = match frame.status {
                        Status::Ok => {
                            let op = Op::try_from(frame.op).unwrap();
                            let reply = Reply::parse(op, frame.payload).unwrap();
                            if let Reply::Attached(attached) = &reply {
                                self.number = attached.connection;
                            }
                            Ok(Answer::of(&reply))
                        }
                        status => {
                            assert!(!frame.message().is_empty());
                            Err(status)
                        }
                    };
                    self.take(used);
                    if nfds > 0 {
                        self.expect("58");
                    }
                    let fds: Vec<_> = self.fds.drain(..nfds).collect();
                    return (id, answer.map(|a| (a, fds)));
                }
                Err(DecodeError::Incomplete { .. }) => assert!(self.receive().unwrap(), "the end"),
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn call(&mut self, request: &Request<'_>) -> Result<(Answer, Vec<OwnedFd>), Status> {
        let id = self.request(request);
        let (got, answer) = self.reply();
        assert_eq!(got, id);
        answer
    }
}

/// A reply that owns what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Attached(Token),
    Entry(objmapper_proto::ext::Entry),
    Created(u64),
    Empty,
    Stat(objmapper_proto::ext::Stat),
    List(Vec<Vec<u8>>, Vec<u8>),
    Lease(objmapper_proto::ext::LeaseOutcome),
    Batch(Vec<Result<(Box<Answer>, u8), Status>>),
}

impl Answer {
    fn of(reply: &Reply<'_>) -> Self {
        use objmapper_proto::ext::BatchReply;
        match reply {
            Reply::Attached(a) => Answer::Attached(a.session),
            Reply::Entry(e) => Answer::Entry(*e),
            Reply::Created { handle, .. } => Answer::Created(*handle),
            Reply::Empty => Answer::Empty,
            Reply::Stat(s) => Answer::Stat(s.clone()),
            Reply::List(page) => {
                Answer::List(page.items.iter().map(|(uri, _)| uri.as_bytes().to_vec()).collect(), page.cursor.to_vec())
            }
            Reply::Lease(outcome) => Answer::Lease(*outcome),
            Reply::Batch(replies) => Answer::Batch(
                replies
                    .iter()
                    .map(|reply| match reply {
                        BatchReply::Done { reply, nfds, .. } => Ok((Box::new(Answer::of(reply)), *nfds)),
                        BatchReply::Failed { status, .. } => Err(*status),
                    })
                    .collect(),
            ),
        }
    }
}

pub fn read_fd(fd: OwnedFd) -> Vec<u8> {
    let mut body = Vec::new();
    File::from(fd).read_to_end(&mut body).unwrap();
    body
}
