//! Replies that wait for a peer to read them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use objmapper_proto::FD_BYTE;
use objmapper_proto::limits::MAX_FDS;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Most bytes in one `sendmsg` that carries descriptors (EXTENSIONS.md, "Frames"); one socket
/// buffer of the kernel, so it is taken whole or not at all.
const WITH_FDS: usize = 16 << 10;
/// Plain bytes are gathered up to this much.
const GATHER: usize = 64 << 10;

/// Bytes, then descriptors that go with the last of them.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A connection's unsent replies, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    fds: usize,
}

impl Output {
    /// Appends a reply that `encode` writes, and its descriptors with their byte `58`.
    pub(crate) fn push(&mut self, fds: Vec<OwnedFd>, encode: impl FnOnce(&mut Vec<u8>)) {
        let room = if fds.is_empty() { GATHER } else { WITH_FDS / 2 };
        if !self.chunks.back().is_some_and(|c| c.fds.is_empty() && c.bytes.len() < room) {
            self.chunks.push_back(Chunk::default());
        }
        let Some(chunk) = self.chunks.back_mut() else { return };
        let before = chunk.bytes.len();
        encode(&mut chunk.bytes);
        if !fds.is_empty() {
            chunk.bytes.push(FD_BYTE);
        }
        self.bytes += chunk.bytes.len() - before;
        self.fds += fds.len();
        chunk.fds = fds;
    }

    /// Bytes that the peer has not read.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Descriptors that the peer has not read.
    pub(crate) fn fds(&self) -> usize {
        self.fds
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Sends what the socket takes. `WouldBlock` is not an error: what is left, is left.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(chunk) = self.chunks.front_mut() {
            let unsent = &chunk.bytes[chunk.sent..];
            if unsent.is_empty() {
                self.chunks.pop_front();
                continue;
            }
            let with_fds = !chunk.fds.is_empty() && unsent.len() <= WITH_FDS;
            let sent = if with_fds {
                send(socket, unsent, &chunk.fds)
            } else if chunk.fds.is_empty() {
                send(socket, unsent, &[])
            } else {
                send(socket, &unsent[..unsent.len() - WITH_FDS], &[])
            };
            match sent {
                Ok(sent) => {
                    chunk.sent += sent;
                    self.bytes -= sent;
                    if with_fds {
                        // The kernel has them, also where it took only some of the bytes.
                        self.fds -= chunk.fds.len();
                        chunk.fds.clear();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The only `sendmsg` of the server.
fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("more descriptors than a message holds"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}
