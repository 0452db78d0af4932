//! Stands between a cache and its store, and can stall: connections stay, nothing is answered, as with SIGSTOP.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

pub(crate) struct Proxy {
    dir: tempfile::TempDir,
    stalled: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) fn to(store: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("proxy")).unwrap();
        let stalled = Arc::new(AtomicBool::new(false));
        let (store, stop) = (store.to_owned(), Arc::clone(&stalled));
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(store)) = (client, UnixStream::connect(&store)) else { continue };
                let (client, store) = (Arc::new(client), Arc::new(store));
                for (from, to) in [(Arc::clone(&client), Arc::clone(&store)), (store, client)] {
                    let stalled = Arc::clone(&stop);
                    std::thread::spawn(move || forward(&from, &to, &stalled));
                }
            }
        });
        Self { dir, stalled }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("proxy")
    }

    pub(crate) fn stall(&self, stall: bool) {
        self.stalled.store(stall, SeqCst);
    }
}

/// Until one end is closed. Descriptors go with the bytes that they came with.
fn forward(from: &UnixStream, to: &UnixStream, stalled: &AtomicBool) {
    let mut buf = vec![0; 64 << 10];
    loop {
        let mut space = nix::cmsg_space!([RawFd; 253]);
        let mut pieces = [IoSliceMut::new(&mut buf)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(received) = recvmsg::<()>(from.as_raw_fd(), &mut pieces, Some(&mut space), flags) else { break };
        let fds: Vec<OwnedFd> = received
            .cmsgs()
            .unwrap()
            .filter_map(|message| match message {
                ControlMessageOwned::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            // SAFETY: the kernel has just made it for this process, and nothing else owns it.
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
            .collect();
        let bytes = received.bytes;
        if bytes == 0 {
            break;
        }
        while stalled.load(SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut control = if raw.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(&raw)] };
        let mut rest = &buf[..bytes];
        // The descriptors belong to the last byte: a message that has them is small, and sent as a whole.
        while !rest.is_empty() {
            match sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(rest)], &control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    control.clear();
                }
                Err(_) => rest = &[],
            }
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}
