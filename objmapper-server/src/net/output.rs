//! Replies that wait to be sent, and the server's only `sendmsg`.
//!
//! Replies are gathered into chunks. A chunk ends with the byte that carries descriptors, if it has any: the descriptors go with
//! the last bytes of their chunk, in one `sendmsg`. What a reply grants is kept with its end in the chunk, and is taken back if
//! the output is dropped before the kernel has all of the reply.
//!
//! rustix sends borrowed descriptors, nix numbers.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use objmapper_proto::FD_BYTE;
use objmapper_proto::limits::MAX_FDS;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::handover::{Descriptors, Handover, Revocable};

/// The maximum number of bytes in one `sendmsg` that carries descriptors (EXTENSIONS.md, "Frames"). They fit one socket
/// buffer of the kernel, which takes them whole or not at all.
const WITH_FDS: usize = 16 << 10;
/// Bytes that a chunk without descriptors gathers.
const GATHER: usize = 64 << 10;

/// Bytes, and the descriptors that are sent with the last of them.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Descriptors,
    /// Ends of the replies that grant something, as offsets into `bytes`.
    revocable: Vec<(usize, Revocable)>,
}

/// A connection's unsent replies, in order. Dropping it takes back what the unsent replies grant.
#[derive(Debug, Default)]
pub(crate) struct Output {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    fds: usize,
    /// True if the peer takes `58` and its descriptors out of the same `recvmsg` as the reply before them.
    joined: bool,
}

impl Output {
    /// Sends each further reply in one `sendmsg` with its descriptors: the peer has negotiated the extensions.
    ///
    /// Before, `58` and its descriptors are a `sendmsg` of their own, which the kernel keeps apart from the bytes before
    /// it: a v0.1 client reads the reply with `read`, and a `read` that reaches into a message with descriptors drops them.
    pub(crate) fn join_descriptors(&mut self) {
        self.joined = true;
    }

    /// Appends a reply that `encode` writes, and its descriptors with their byte `58`.
    pub(crate) fn push(&mut self, handover: Handover, encode: impl FnOnce(&mut Vec<u8>)) {
        let Handover { descriptors, revocable } = handover;
        let fds = descriptors.count();
        let room = if fds > 0 && self.joined { WITH_FDS / 2 } else { GATHER };
        let fits = self.chunks.back().is_some_and(|c| c.descriptors.count() == 0 && c.bytes.len() < room);
        let mut chunk = if fits { self.chunks.pop_back().unwrap_or_default() } else { Chunk::default() };
        let before = chunk.bytes.len();
        encode(&mut chunk.bytes);
        self.bytes += chunk.bytes.len() - before;
        if fds > 0 {
            if !self.joined {
                self.chunks.push_back(std::mem::take(&mut chunk));
            }
            chunk.bytes.push(FD_BYTE);
            chunk.descriptors = descriptors;
            self.bytes += 1;
            self.fds += fds;
        }
        chunk.revocable.extend(revocable.map(|revocable| (chunk.bytes.len(), revocable)));
        self.chunks.push_back(chunk);
    }

    /// Returns the number of bytes that wait to be sent.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of descriptors that wait to be sent.
    pub(crate) fn fds(&self) -> usize {
        self.fds
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Sends what the socket takes. Returns `Ok` with bytes left if the socket takes no more now.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(chunk) = self.chunks.front_mut() {
            let unsent = &chunk.bytes[chunk.sent..];
            if unsent.is_empty() {
                self.chunks.pop_front();
                continue;
            }
            let fds = chunk.descriptors.count();
            let with_fds = fds > 0 && unsent.len() <= WITH_FDS;
            let sent = if with_fds {
                // The kernel has the descriptors afterwards, even if it took only some of the bytes.
                chunk.descriptors.hand_over(|fds| send(socket, unsent, fds))
            } else if fds == 0 {
                send(socket, unsent, &[])
            } else {
                send(socket, &unsent[..unsent.len() - WITH_FDS], &[])
            };
            match sent {
                Ok(sent) => {
                    chunk.sent += sent;
                    chunk.revocable.retain(|(end, _)| *end > chunk.sent);
                    self.bytes -= sent;
                    if with_fds {
                        self.fds -= fds;
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

impl Drop for Output {
    fn drop(&mut self) {
        for chunk in self.chunks.drain(..) {
            // The descriptors are closed first: an object that is aborted is charged until its last writer is gone.
            chunk.descriptors.close();
            for (_, revocable) in chunk.revocable {
                revocable.take_back();
            }
        }
    }
}

/// The only `sendmsg` of the server.
fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("more descriptors than a message holds"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}
