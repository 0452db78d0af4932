//! Stands between a client and its objmapperd, and passes answers on late, damaged, cut, or without their descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::random::Random;

/// What is done to answers. Requests are passed on as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddling {
    /// Nothing.
    Nothing,
    /// Each piece of them waits so long.
    Late(Duration),
    /// In one of eight pieces a bit is flipped, but not in the length of an answer: one that is too long takes those that
    /// follow for a part of itself, until the connection ends.
    Flip,
    /// Each piece ends after so many percent of its bytes, and the connection with it. Descriptors come with all of it only.
    CutAt(usize),
    /// At one of eight pieces the connection ends in the middle of it.
    Cut,
    /// Their descriptors are closed, their bytes passed on.
    NoDescriptors,
    /// They have this status instead of their own, and neither payload nor descriptors. Answers have to come one by one.
    Status(u8),
}

/// The meddler. Ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct Meddler {
    listener: UnixListener,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: PathBuf,
    meddling: Mutex<Meddling>,
    /// How often it meddled.
    times: AtomicU64,
    stop: AtomicBool,
    /// Those that have not ended.
    connections: Mutex<Vec<Weak<UnixStream>>>,
    /// Held while an answer is sent and its descriptors are closed: a commit of a file that is still open here is refused.
    sending: Mutex<()>,
    path: PathBuf,
}

/// Room for what one answer may bring, see EXTENSIONS.md: as much as a sendmsg with descriptors may have.
const ROOM: usize = 16 * 1024;
/// Where an answer has its status, the number of its descriptors, and its length (EXTENSIONS.md).
const STATUS: usize = 6;
const DESCRIPTORS: usize = 7;
const LENGTH: std::ops::Range<usize> = 8..12;
const CONTROL: usize = rustix::cmsg_space!(ScmRights(253));

impl Meddler {
    /// Listens at `path` and passes on to the objmapperd at `store`. Does nothing yet.
    pub fn start(path: &Path, store: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        let shared = Arc::new(Shared {
            store: store.to_owned(),
            meddling: Mutex::new(Meddling::Nothing),
            times: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
            sending: Mutex::new(()),
            path: path.to_owned(),
        });
        let (accepting, listening) = (Arc::clone(&shared), listener.try_clone()?);
        let thread = std::thread::spawn(move || accept(&listening, &accepting));
        Ok(Self { listener, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Does this from now on.
    pub fn set(&self, meddling: Meddling) {
        *self.shared.meddling.lock().unwrap_or_else(PoisonError::into_inner) = meddling;
    }

    /// How often it meddled with an answer.
    pub fn times(&self) -> u64 {
        self.shared.times.load(Ordering::Relaxed)
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes who accepts, and through that who reads; what cannot be woken has ended.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    for (number, client) in listener.incoming().enumerate() {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        // Without a store the client finds its connection closed.
        let (Ok(client), Ok(store)) = (client, UnixStream::connect(&shared.store)) else { continue };
        let (client, store) = (Arc::new(client), Arc::new(store));
        let both = [Arc::downgrade(&client), Arc::downgrade(&store)];
        shared.connections.lock().unwrap_or_else(PoisonError::into_inner).extend(both);
        let (requesting, answering) = (Arc::clone(shared), Arc::clone(shared));
        let (client2, store2) = (Arc::clone(&client), Arc::clone(&store));
        threads.push(std::thread::spawn(move || pass_requests(&client, &store, &requesting)));
        threads.push(std::thread::spawn(move || {
            // An error is the end of the connection, like its closing.
            let _ = pass_answers(&store2, &client2, &answering, Random::new(number as u64));
            let _ = client2.shutdown(Shutdown::Both);
            let _ = store2.shutdown(Shutdown::Both);
        }));
    }
    for connection in shared.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        if let Some(connection) = connection.upgrade() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn pass_requests(mut client: &UnixStream, mut store: &UnixStream, shared: &Shared) {
    let mut bytes = [0; ROOM];
    // Clients send no descriptors.
    while let Ok(n) = client.read(&mut bytes) {
        if n == 0 {
            break;
        }
        // The descriptors of an answer that this request follows are closed.
        drop(shared.sending.lock().unwrap_or_else(PoisonError::into_inner));
        if store.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = store.shutdown(Shutdown::Both);
}

fn pass_answers(store: &UnixStream, client: &UnixStream, shared: &Shared, mut random: Random) -> io::Result<()> {
    let mut bytes = [0; ROOM];
    loop {
        let (n, mut descriptors) = receive(store, &mut bytes)?;
        if n == 0 {
            return Ok(());
        }
        let meddling = *shared.meddling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut piece = &mut bytes[..n];
        let chosen = match meddling {
            Meddling::Nothing => false,
            Meddling::Late(_) | Meddling::CutAt(_) | Meddling::Status(_) => true,
            Meddling::NoDescriptors => !descriptors.is_empty(),
            Meddling::Flip | Meddling::Cut => random.below(8) == 0,
        };
        if chosen {
            shared.times.fetch_add(1, Ordering::Relaxed);
            match meddling {
                Meddling::Nothing => {}
                // Not a wait for something: being late is what it is for.
                Meddling::Late(by) => std::thread::sleep(by),
                Meddling::Flip => {
                    let at = random.below(n);
                    if !LENGTH.contains(&at) {
                        piece[at] ^= 1 << random.below(8);
                    }
                }
                Meddling::Cut => {
                    descriptors.clear();
                    piece = &mut piece[..n / 2];
                }
                Meddling::CutAt(percent) => {
                    if percent < 100 {
                        descriptors.clear();
                    }
                    piece = &mut piece[..n * percent / 100];
                }
                Meddling::NoDescriptors => descriptors.clear(),
                Meddling::Status(status) => {
                    descriptors.clear();
                    piece = &mut piece[..LENGTH.end.min(n)];
                    if piece.len() == LENGTH.end {
                        (piece[STATUS], piece[DESCRIPTORS]) = (status, 0);
                        piece[LENGTH].fill(0);
                    }
                }
            }
        }
        let sending = shared.sending.lock().unwrap_or_else(PoisonError::into_inner);
        if !piece.is_empty() {
            send(client, piece, &descriptors)?;
        }
        drop(descriptors);
        drop(sending);
        if chosen && matches!(meddling, Meddling::Cut | Meddling::CutAt(_)) {
            return Ok(());
        }
    }
}

fn receive(from: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((got.bytes, descriptors))
}

/// Sends all of `bytes`, the descriptors with the first of them.
fn send(to: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let mut sent = sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    let mut none = SendAncillaryBuffer::default();
    while sent < bytes.len() {
        sent += sendmsg(to, &[IoSlice::new(&bytes[sent..])], &mut none, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}
