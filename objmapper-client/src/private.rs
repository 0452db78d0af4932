//! Private objects: created, written, then committed or thrown away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use objmapper_proto::ext::{Commit, Fence, IfVersion, Op, Reply, Request, Tier, Want};
use objmapper_proto::{ObjUri, Status};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use crate::client::Client;
use crate::deferred::Item;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::objects::Found;
use crate::session::Session;

/// How to publish a private object.
#[derive(Debug, Clone, Copy)]
pub struct CommitOptions {
    /// When it may go, in milliseconds since 1970; 0 is never.
    pub expires: i64,
    /// What must be published for the commit to go ahead.
    pub if_version: IfVersion,
    /// A read-only descriptor, a pin.
    pub want: Want,
    /// It is deleted with its session, or with its pin.
    pub ephemeral: bool,
    /// Where a fence must be, see [`Board::fence`](crate::Board::fence). With one, a conflict of whatever reason
    /// leaves the object private, see [`PrivateObject::is_used_up`].
    pub fence: Option<Fence>,
}

impl Default for CommitOptions {
    /// Never expires, replaces whatever is there, no descriptor, no pin, no fence.
    fn default() -> Self {
        Self { expires: 0, if_version: IfVersion::Any, want: Want::ENTRY, ephemeral: false, fence: None }
    }
}

/// An object that nobody sees until it is committed. Dropped before that, it is thrown away in the
/// background.
#[derive(Debug)]
pub struct PrivateObject {
    client: Client,
    session: Arc<Session>,
    handle: u64,
    tier: Tier,
    fd: Option<OwnedFd>,
    /// The store no longer knows the handle.
    used_up: bool,
    /// The last commit carried a fence.
    fenced: bool,
}

impl Client {
    /// Creates a private object with `length` bytes reserved, in `tier` or where the store decides. `uri`
    /// may be known already: then a [`Client::delete`] of it in the meantime makes the commit fail.
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
            // The guard aborts it.
            return Err(ProtocolError::FdCount { expected: 1, got: answer.fds.len() }.into());
        };
        object.fd = Some(fd);
        Ok(object)
    }

    /// Creates a private object in `tier`, with `length` bytes reserved, that begins with the first `written` bytes of `file`:
    /// to go on in another tier with what was begun in one that is full.
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
    /// The store's name for it.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// Where it is.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The session that it lives in.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Whether the store no longer knows it: it was committed, or a commit without a fence met a conflict. Else
    /// it can be committed, under another URI or without a fence too, or aborted.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.used_up
    }

    /// Its file, for reading and writing, at first of size 0; `None` once it has been taken.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Takes its descriptor out. It must be closed, and writable mappings of it unmapped, before
    /// [`Self::commit`].
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fd.take()
    }

    /// Closes its descriptor; the request that publishes it.
    pub(crate) fn commit_request<'u>(&mut self, uri: ObjUri<'u>, length: u64, options: CommitOptions) -> Request<'u> {
        self.fd = None;
        let CommitOptions { expires, if_version, want, ephemeral, fence } = options;
        self.fenced = fence.is_some();
        Request::Commit(Commit { handle: self.handle, length, expires, if_version, uri, want, ephemeral, fence })
    }

    /// Takes note of a commit's or an abort's outcome.
    pub(crate) fn settled<T>(&mut self, outcome: &Result<T>) {
        self.used_up |= match outcome {
            Ok(_) => true,
            Err(why) => match why.status() {
                Some(Status::Conflict) => !self.fenced,
                status => status == Some(Status::UnknownHandle),
            },
        };
    }

    /// Why it cannot be committed or aborted, if it cannot: the store no longer knows the handle.
    pub(crate) fn check(&self, op: Op, session: u64) -> Result<()> {
        if self.used_up {
            let message = "committed already".into();
            return Err(Error::Status { op: OpName::Ext(op), status: Status::UnknownHandle, message });
        }
        // In another session the handle might be somebody else's.
        if session == self.session.id { Ok(()) } else { Err(Error::SessionLost) }
    }

    fn call(&self, request: &Request<'_>) -> Result<crate::answer::Answer> {
        let connection = self.client.inner.pool.pick_extended(OpName::Ext(request.op()))?;
        self.check(request.op(), connection.session_id())?;
        self.client.call_on(&connection, request, self.client.deadline())
    }

    /// Sets its reservation to `length` bytes in total, up or down.
    ///
    /// # Errors
    /// See [`Error`]; status [`Status::Full`] if they cannot be had, and then the reservation is as before.
    pub fn reserve(&self, length: u64) -> Result<()> {
        self.call(&Request::Reserve { handle: self.handle, length }).map(|_| ())
    }

    /// Publishes it, `length` bytes, under `uri`: atomically visible, replaces what was there. Closes the
    /// descriptor that this guard holds; other writable descriptors and mappings must be gone already.
    ///
    /// After an error the object is still private, and can be committed again, unless the status is
    /// [`Status::Conflict`] and there was no fence: [`Self::is_used_up`].
    ///
    /// # Errors
    /// See [`Error`]; status [`Status::Conflict`] if `if_version` does not hold, the URI was deleted
    /// since, or the fence has moved, [`Status::Busy`] while someone can still write to it. After [`Error::Timeout`] and
    /// [`Error::Closed`] it may be published all the same.
    pub fn commit(&mut self, uri: &ObjUri<'_>, length: u64, options: CommitOptions) -> Result<Found> {
        let request = self.commit_request(uri.borrowed(), length, options);
        let result = self.call(&request);
        self.settled(&result);
        Found::from_answer(result?, options.want, self.session.id)
    }

    /// Throws it away and waits for the store to say so. Dropping does the same without waiting.
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
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    while done < length {
        let room = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
        let read = retry_on_intr(|| pread(from, &mut buffer[..room], done))?;
        if read == 0 {
            return Err(Errno::NODATA);
        }
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            let written = retry_on_intr(|| pwrite(to, bytes, done))?;
            if written == 0 {
                return Err(Errno::NOSPC);
            }
            bytes = &bytes[written..];
            done += written as u64;
        }
    }
    Ok(())
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
