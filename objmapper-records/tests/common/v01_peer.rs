//! A peer of protocol v0.1, as the public program is, with its defects at a test's command.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// What it does wrong, with every n-th request for a file; 0: never.
#[derive(Debug, Default)]
pub(crate) struct Defects {
    /// Loses the object: its file is truncated before it is handed out.
    pub(crate) loses: AtomicUsize,
    /// Two clients created it at once: this one gets a file that is deleted already.
    pub(crate) unlinked: AtomicUsize,
    /// The same, with the error that the other one gets.
    pub(crate) storage_error: AtomicUsize,
    /// Says OK and sends no descriptor.
    pub(crate) no_fd: AtomicUsize,
    /// Closes the connection instead of answering.
    pub(crate) resets: AtomicUsize,
}

pub(crate) struct V01Peer {
    dir: tempfile::TempDir,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    files: PathBuf,
    stop: AtomicBool,
    defects: Defects,
    requests: AtomicUsize,
    /// One request at a time looks at the files.
    busy: Mutex<()>,
}

impl V01Peer {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let state = Arc::new(State {
            files,
            stop: AtomicBool::new(false),
            defects: Defects::default(),
            requests: AtomicUsize::new(0),
            busy: Mutex::new(()),
        });
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(SeqCst) {
                    return;
                }
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                // It ends with its client.
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Self { dir, state, thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn defects(&self) -> &Defects {
        &self.state.defects
    }

    pub(crate) fn path(&self, uri: &[u8]) -> PathBuf {
        self.state.path(uri)
    }

    /// All files that are not empty.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let paths = std::fs::read_dir(&self.state.files).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| std::fs::metadata(path).unwrap().len() > 0).collect()
    }
}

impl Drop for V01Peer {
    fn drop(&mut self) {
        self.state.stop.store(true, SeqCst);
        drop(UnixStream::connect(self.socket()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn path(&self, uri: &[u8]) -> PathBuf {
        let mut hash = DefaultHasher::new();
        uri.hash(&mut hash);
        self.files.join(format!("{:016x}", hash.finish()))
    }

    /// Until the client hangs up, or a defect says so.
    fn serve(&self, mut stream: UnixStream) {
        let mut hello = [0; 9];
        if stream.read_exact(&mut hello).is_err() || stream.write_all(b"OBJM\x02\0\0\0\x01\x02").is_err() {
            return;
        }
        while self.answer(&mut stream).is_some() {}
    }

    fn answer(&self, stream: &mut UnixStream) -> Option<()> {
        let mut header = [0; 9];
        stream.read_exact(&mut header).ok()?;
        assert_eq!((header[0], header[6]), (1, b'1'), "{header:?}");
        let mut uri = vec![0; usize::from(u16::from_be_bytes([header[7], header[8]]))];
        stream.read_exact(&mut uri).ok()?;
        let mut reply = vec![2];
        reply.extend_from_slice(&header[1..5]);
        let _alone = self.busy.lock().unwrap();
        if let Some(uri) = uri.strip_prefix(b"/delete") {
            let status = u8::from(std::fs::remove_file(self.path(uri)).is_err());
            reply.push(status);
            reply.extend_from_slice(&[0; 10]);
            return stream.write_all(&reply).ok();
        }
        let number = self.requests.fetch_add(1, SeqCst) + 1;
        let now = |defect: &AtomicUsize| match defect.load(SeqCst) {
            0 => false,
            n => number.is_multiple_of(n),
        };
        if now(&self.defects.resets) {
            return None;
        }
        if now(&self.defects.storage_error) {
            reply.push(0x11);
            reply.extend_from_slice(&[0; 10]);
            return stream.write_all(&reply).ok();
        }
        let path = self.path(&uri);
        let open = |path| File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        let file = if now(&self.defects.unlinked) {
            let loser = path.with_extension("loser");
            let file = open(&loser);
            std::fs::remove_file(loser).unwrap();
            file
        } else {
            open(&path)
        };
        if now(&self.defects.loses) {
            file.set_len(0).unwrap();
        }
        reply.push(0);
        reply.extend_from_slice(&file.metadata().unwrap().len().to_be_bytes());
        reply.extend_from_slice(&[0; 2]);
        stream.write_all(&reply).ok()?;
        if now(&self.defects.no_fd) {
            return Some(());
        }
        let fds = [file.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"X")], &control, MsgFlags::MSG_NOSIGNAL, None).ok()?;
        Some(())
    }
}
