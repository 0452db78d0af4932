//! Private objects: created, written, then committed or aborted.
//!
//! | state | legal calls |
//! |---|---|
//! | open, and after a commit that failed and left it open | `fd`, `take_fd` (once), `reserve`, `commit`, `abort` |
//! | used up: committed, or a commit without a fence had a conflict | none that reaches the store |
//!
//! Dropping an open object aborts it in the background. A commit closes the descriptor that the guard holds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};
use objmapper_proto::ext::{Commit, Fence, IfVersion, Op, Reply, Request, Tier, Want};
use objmapper_proto::{ObjUri, Status};

use crate::client::Client;
use crate::deferred::Item;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::objects::Found;
use crate::session::Session;

/// The options of a commit.
#[derive(Debug, Clone, Copy)]
pub struct CommitOptions {
    /// Milliseconds since 1970 after which the store may drop the object; 0 is never.
    pub expires: i64,
    /// The version that the URI must have for the commit to succeed.
    pub if_version: IfVersion,
    /// Requests a read-only descriptor, a pin, or both.
    pub want: Want,
    /// If true, the object is deleted with its session, or with its pin.
    pub ephemeral: bool,
    /// The value that a fence must have, see [`Board::fence`](crate::Board::fence). With a fence, a conflict of any reason
    /// leaves the object private, see [`PrivateObject::is_used_up`].
    pub fence: Option<Fence>,
}

impl Default for CommitOptions {
    /// Returns the options of an unconditional commit without expiry, descriptor, pin and fence.
    fn default() -> Self {
        Self { expires: 0, if_version: IfVersion::Any, want: Want::ENTRY, ephemeral: false, fence: None }
    }
}

/// An object that no look-up finds until it is committed. Dropping it before aborts it in the
/// background.
#[derive(Debug)]
pub struct PrivateObject {
    client: Client,
    session: Arc<Session>,
    handle: u64,
    tier: Tier,
    fd: Option<OwnedFd>,
    /// True once the store no longer knows the handle.
    used_up: bool,
    /// True if the last commit carried a fence.
    fenced: bool,
}

impl Client {
    /// Creates a private object with `length` bytes reserved, in `tier` or in the tier that the store chooses. With `uri`,
    /// a [`Client::delete`] of that URI before the commit makes the commit fail.
    ///
    /// # Errors
    /// See [`Error`]; status [`Status::Full`] if the bytes cannot be had.
    pub fn create(&self, length: u64, tier: Option<Tier>, uri: Option<&ObjUri<'_>>) -> Result<PrivateObject> {
        let request = Request::Create { tier, length, uri: uri.map(ObjUri::borrowed) };
        let (mut answer, connection) = self.call(&request, self.deadline())?;
        let session = connection.session.clone().ok_or(Error::SessionLost)?;
        let Reply::Created { handle, tier } = answer.reply(Op::Create)? else {
            return Err(ProtocolError::WrongKind.into());
        };
        let mut object =
            PrivateObject { client: self.clone(), session, handle, tier, fd: None, used_up: false, fenced: false };
        let (Some(fd), true) = (answer.fds.pop(), answer.fds.is_empty()) else {
            // Dropping the guard aborts the object.
            return Err(ProtocolError::FdCount { expected: 1, got: answer.fds.len() }.into());
        };
        object.fd = Some(fd);
        Ok(object)
    }

    /// Creates a private object in `tier`, with `length` bytes reserved, that begins with the first `written` bytes of `file`.
    /// It continues a body whose first tier is full.
    ///
    /// # Errors
    /// See [`Error`]; status [`Status::Full`] if the bytes cannot be had.
    pub fn create_copy(&self, tier: Tier, length: u64, file: BorrowedFd<'_>, written: u64) -> Result<PrivateObject> {
        let object = self.create(length, Some(tier), None)?;
        match object.fd() {
            Some(fd) => copy(file, fd, written).map_err(Error::io("copy a body"))?,
            None => return Err(ProtocolError::FdCount { expected: 1, got: 0 }.into()),
        }
        Ok(object)
    }
}

impl PrivateObject {
    /// Returns the object's handle in the store.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// Returns the object's tier.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Returns the object's session.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Returns true if the store no longer knows the object: it was committed, or a commit without a fence had a conflict.
    /// Otherwise it can be committed, also under another URI or without a fence, or aborted.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.used_up
    }

    /// Returns the object's file, open for reading and writing, of size 0 at first; `None` once it was taken.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Takes the descriptor. The caller must close it, and unmap writable mappings of it, before
    /// [`Self::commit`].
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fd.take()
    }

    /// Closes the descriptor and returns the request for the commit.
    pub(crate) fn commit_request<'u>(&mut self, uri: ObjUri<'u>, length: u64, options: CommitOptions) -> Request<'u> {
        self.fd = None;
        let CommitOptions { expires, if_version, want, ephemeral, fence } = options;
        self.fenced = fence.is_some();
        Request::Commit(Commit { handle: self.handle, length, expires, if_version, uri, want, ephemeral, fence })
    }

    /// Notes the outcome of a commit or an abort.
    pub(crate) fn settled<T>(&mut self, outcome: &Result<T>) {
        self.used_up |= match outcome {
            Ok(_) => true,
            Err(why) => match why.status() {
                Some(Status::Conflict) => !self.fenced,
                status => status == Some(Status::UnknownHandle),
            },
        };
    }

    /// Returns an error if the object cannot be committed or aborted, because the store no longer knows the handle.
    pub(crate) fn check(&self, op: Op, session: u64) -> Result<()> {
        if self.used_up {
            let message = "committed already".into();
            return Err(Error::Status { op: OpName::Ext(op), status: Status::UnknownHandle, message });
        }
        // In another session the handle could be that of another object.
        if session == self.session.id { Ok(()) } else { Err(Error::SessionLost) }
    }

    fn call(&self, request: &Request<'_>) -> Result<crate::answer::Answer> {
        let connection = self.client.inner.pool.pick_extended(OpName::Ext(request.op()))?;
        self.check(request.op(), connection.session_id())?;
        self.client.call_on(&connection, request, self.client.deadline())
    }

    /// Sets the reservation to `length` bytes in total, up or down.
    ///
    /// # Errors
    /// See [`Error`]; status [`Status::Full`] if there is no room, and the reservation is then unchanged.
    pub fn reserve(&self, length: u64) -> Result<()> {
        self.call(&Request::Reserve { handle: self.handle, length }).map(|_| ())
    }

    /// Publishes the object with `length` bytes under `uri`: it becomes visible atomically and replaces the former object. Closes
    /// the descriptor that this guard holds; there must be no other writable descriptor or mapping of the file.
    ///
    /// After an error the object is still private, and can be committed again, unless the status is
    /// [`Status::Conflict`] and there was no fence: [`Self::is_used_up`].
    ///
    /// # Errors
    /// See [`Error`]; status [`Status::Conflict`] if `if_version` does not hold, the URI was deleted
    /// since, or the fence has moved, [`Status::Busy`] while a process can still write to it. After [`Error::Timeout`] and
    /// [`Error::Closed`] the object may have been published.
    pub fn commit(&mut self, uri: &ObjUri<'_>, length: u64, options: CommitOptions) -> Result<Found> {
        let request = self.commit_request(uri.borrowed(), length, options);
        let result = self.call(&request);
        self.settled(&result);
        Found::from_answer(result?, options.want, self.session.id)
    }

    /// Aborts the object and waits for the answer. Dropping it does the same without waiting.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn abort(mut self) -> Result<()> {
        self.fd = None;
        let result = self.call(&Request::Abort { handle: self.handle });
        self.settled(&result);
        result.map(|_| ())
    }
}

/// Copies the first `length` bytes of a file.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> nix::Result<()> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| Errno::EFBIG);
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    while done < length {
        let room = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
        let read = uninterrupted(|| pread(from, &mut buffer[..room], offset(done)?))?;
        if read == 0 {
            return Err(Errno::ENODATA);
        }
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            let written = uninterrupted(|| pwrite(to, bytes, offset(done)?))?;
            if written == 0 {
                return Err(Errno::ENOSPC);
            }
            bytes = &bytes[written..];
            done += written as u64;
        }
    }
    Ok(())
}

/// Repeats a system call that a signal has interrupted.
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

impl Drop for PrivateObject {
    fn drop(&mut self) {
        // First: the store charges an aborted object until its last writer is gone.
        self.fd = None;
        if !self.used_up {
            self.client.defer(self.session.id, Item::Abort(self.handle));
        }
    }
}
