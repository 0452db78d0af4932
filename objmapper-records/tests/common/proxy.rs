//! Stands between a cache and its store, and can stall: connections stay, nothing is answered, as with SIGSTOP.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

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
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(from, &mut [IoSliceMut::new(&mut buf)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let Ok(received) = received else { break };
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            break;
        }
        while stalled.load(SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if !borrowed.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        let mut rest = &buf[..received.bytes];
        // The descriptors belong to the last byte: a message that has them is small, and sent as a whole.
        while !rest.is_empty() {
            match sendmsg(to, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
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
