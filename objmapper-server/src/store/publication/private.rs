//! Private objects: created, written, then committed or aborted. No look-up finds one before its commit.
//!
//! | state | legal calls |
//! |---|---|
//! | open | write, reserve, commit, abort |
//! | open after a failed commit (busy, full, wrong length, a conflict with a fence) | the same |
//! | closed: committed, aborted, its session ended, or a conflict without a fence | none: the handle is unknown |
//!
//! A client has the writable descriptor, so the store cannot stop it from writing (see `writers`). The tier's account is charged
//! the reservation, and for an aborted object what it takes until its last writer is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;

use objmapper_proto::ext::Fence;

use super::writers::has_writer;
use crate::store::object::{ANY_VERSION, check_uri};
use crate::store::session::Session;
use crate::store::tier::account::page_round;
use crate::store::tier::{BodyFiles, Medium, Tier};
use crate::store::{Entry, Inner, StoreError, TierKind};

/// The store's side of a private object.
#[derive(Debug)]
pub(crate) struct Private {
    pub(crate) handle: u64,
    pub(crate) tier: Arc<Tier>,
    /// Read-only descriptor, which does not count as a writer. The commit links the file by it.
    pub(crate) reader: Arc<OwnedFd>,
    pub(crate) uri: Option<Arc<[u8]>>,
    /// The writable descriptor, while the server has not sent it to the client.
    pub(crate) outgoing: Arc<OutgoingWriter>,
    /// True once the URI was deleted after the object was created.
    pub(crate) uri_deleted: AtomicBool,
    pub(crate) state: Mutex<PrivateState>,
}

#[derive(Debug)]
pub(crate) struct PrivateState {
    /// Bytes that the tier's account is charged for it.
    pub(crate) reserved: u64,
    /// False once committed or aborted.
    pub(crate) open: bool,
}

/// The server's copy of a private object's writable descriptor, on its way to the client.
///
/// The copy is a writer that the client does not know of: the client can receive its own, close it, and commit over another
/// connection before the server's thread has returned from the `sendmsg` and closed the copy. Therefore both happen under
/// this lock, and a commit takes it before it looks for writers. No thread waits for the peer under it.
#[derive(Debug, Default)]
pub(crate) struct OutgoingWriter(Mutex<Option<OwnedFd>>);

#[cfg(feature = "daemon")]
impl OutgoingWriter {
    /// Calls `send` with the descriptor, and closes it if that succeeds.
    pub(crate) fn hand_over<T>(&self, send: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<T>) -> std::io::Result<T> {
        let mut file = self.0.lock();
        let gone = || std::io::Error::other("a private object's descriptor was sent before");
        let sent = send(file.as_ref().ok_or_else(gone)?.as_fd())?;
        *file = None;
        Ok(sent)
    }

    /// Closes a descriptor that will not be sent.
    pub(crate) fn close(&self) {
        *self.0.lock() = None;
    }
}

impl OutgoingWriter {
    /// Returns true if the descriptor is not sent yet. Waits for a `send` that is running.
    pub(crate) fn is_pending(&self) -> bool {
        self.0.lock().is_some()
    }
}

/// The arguments of a commit.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// The object's name, a canonical URI (see [`check_uri`]).
    pub uri: &'a [u8],
    /// Bytes of the body; must be the file's size.
    pub length: u64,
    /// Milliseconds since 1970 after which the object is a miss; 0 is never.
    pub expires: i64,
    /// [`ANY_VERSION`], 0 (the URI must have no object), or the version to replace.
    pub if_version: u64,
    /// Pins the object for the session.
    pub pin: bool,
    /// Deletes the object when the session ends.
    pub ephemeral: bool,
    /// The value that a fence must have. With it, a conflict leaves the object private.
    pub fence: Option<Fence>,
}

impl<'a> Commit<'a> {
    /// Returns an unconditional commit without expiry, pin, session and fence.
    pub fn new(uri: &'a [u8], length: u64) -> Self {
        Commit { uri, length, expires: 0, if_version: ANY_VERSION, pin: false, ephemeral: false, fence: None }
    }
}

/// A private object and its writable file. Dropping it aborts the object.
#[derive(Debug)]
pub struct PrivateObject {
    session: Session,
    private: Arc<Private>,
    file: Option<OwnedFd>,
    /// True until the object is committed or given away: the drop then aborts it.
    armed: bool,
}

impl PrivateObject {
    pub(in crate::store) fn new(session: Session, private: Arc<Private>, file: OwnedFd) -> Self {
        PrivateObject { session, private, file: Some(file), armed: true }
    }

    /// Returns the read-write file; `None` once a commit was tried.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Returns the object's tier.
    pub fn tier(&self) -> TierKind {
        self.private.tier.kind
    }

    /// Sets the reservation to `total` bytes, up or down, but not below what the file takes. [`StoreError::Full`] leaves it
    /// unchanged.
    pub fn reserve(&self, total: u64) -> Result<(), StoreError> {
        self.session.reserve(self.private.handle, total)
    }

    /// Publishes the object: it becomes visible under its URI atomically, and replaces the former object. First the
    /// space beyond the end is freed and the writable file is closed; if a duplicate or a writable
    /// mapping of it exists, the error is [`StoreError::Busy`]. After an error that leaves the object
    /// private (busy, full, wrong length, a conflict with a fence) the caller may try again.
    pub fn commit(&mut self, commit: Commit<'_>) -> Result<Entry, StoreError> {
        if let Some(file) = self.file.take()
            && let Err(e) = BodyFiles::trim(file.as_fd(), commit.length)
        {
            log::debug!("giving back surplus space: {e}");
        }
        let entry = self.session.commit(self.private.handle, commit)?;
        self.armed = false;
        Ok(entry)
    }

    /// Returns the handle for [`Session::commit`], and the file. From then on only [`Session::abort`] and the session's end abort
    /// the object.
    pub fn into_parts(mut self) -> Option<(u64, OwnedFd)> {
        self.armed = false;
        self.file.take().map(|file| (self.private.handle, file))
    }

    /// Returns the same parts as [`Self::into_parts`], for a server that sends the file to its client.
    #[cfg(feature = "daemon")]
    pub(crate) fn into_outgoing(mut self) -> Option<(u64, Arc<OutgoingWriter>)> {
        self.armed = false;
        *self.private.outgoing.0.lock() = Some(self.file.take()?);
        Some((self.private.handle, self.private.outgoing.clone()))
    }
}

impl Drop for PrivateObject {
    fn drop(&mut self) {
        if self.armed {
            drop(self.file.take());
            // Unknown means that the session's end aborted it already.
            let _ = self.session.abort(self.private.handle);
        }
    }
}

impl Inner {
    /// Reserves space and creates the object; the caller registers it with its session.
    pub(crate) fn create_private(
        &self,
        kind: Option<TierKind>,
        length: u64,
        uri: Option<&[u8]>,
    ) -> Result<(Arc<Private>, OwnedFd), StoreError> {
        if let Some(uri) = uri {
            check_uri(uri)?;
        }
        let is_counted = self.count_private() || self.settle_leftovers() && self.count_private();
        if !is_counted {
            return Err(StoreError::TooMany { what: "private objects", limit: self.max_private });
        }
        self.create_counted(kind, length, uri).inspect_err(|_| {
            self.private_count.fetch_sub(1, SeqCst);
        })
    }

    /// Counts one more private object. Returns false at the limit.
    pub(crate) fn count_private(&self) -> bool {
        self.private_count.fetch_update(SeqCst, SeqCst, |count| (count < self.max_private).then_some(count + 1)).is_ok()
    }

    fn create_counted(
        &self,
        kind: Option<TierKind>,
        length: u64,
        uri: Option<&[u8]>,
    ) -> Result<(Arc<Private>, OwnedFd), StoreError> {
        let reserved = page_round(length);
        let tier = self.reserve_in(kind, reserved)?;
        let made = self.with_space(tier, || tier.files.create().map_err(StoreError::io("creating a file")));
        let (writer, reader) = made.inspect_err(|_| tier.account.sub(reserved))?;
        let uri: Option<Arc<[u8]>> = uri.map(Arc::from);
        let private = Arc::new(Private {
            handle: self.next_handle.fetch_add(1, SeqCst),
            tier: tier.clone(),
            reader: Arc::new(reader),
            uri: uri.clone(),
            outgoing: Arc::default(),
            uri_deleted: AtomicBool::new(false),
            state: Mutex::new(PrivateState { reserved, open: true }),
        });
        if let Some(uri) = uri {
            let mut map = self.index.shard(&uri).map.write();
            map.privates.entry(uri).or_default().push(Arc::downgrade(&private));
        }
        Ok((private, writer))
    }

    pub(crate) fn resize_private(&self, private: &Private, total: u64) -> Result<(), StoreError> {
        let mut state = private.state.lock();
        if !state.open {
            return Err(StoreError::UnknownHandle);
        }
        let tier = &private.tier;
        let measure = tier.files.measure(private.reader.as_fd()).map_err(StoreError::io("fstat"))?;
        // The reservation stays above what is written.
        let total = page_round(total).max(measure.allocated);
        if total > state.reserved {
            self.reserve(tier, total - state.reserved)?;
        } else {
            tier.account.sub(state.reserved - total);
        }
        state.reserved = total;
        Ok(())
    }

    /// Frees the reservation when the file has no writer any more. The kernel frees the file with its last descriptor.
    pub(crate) fn abort_private(&self, private: &Private) {
        if private.tier.files.medium == Medium::Shared {
            // The writer may have found the file system without space.
            private.tier.capacity.suspect();
        }
        let mut state = private.state.lock();
        if state.open && has_writer(private.reader.as_fd()) {
            self.leave_private(private, std::mem::take(&mut state.reserved));
            self.forget_private(private, &mut state);
        } else {
            self.close_private(private, &mut state);
        }
    }

    /// Closes a private object that has no writer: frees the rest of its reservation and removes it from its URI's list.
    pub(crate) fn close_private(&self, private: &Private, state: &mut PrivateState) {
        if !state.open {
            return;
        }
        private.tier.account.sub(std::mem::take(&mut state.reserved));
        self.private_count.fetch_sub(1, SeqCst);
        self.forget_private(private, state);
    }

    fn forget_private(&self, private: &Private, state: &mut PrivateState) {
        state.open = false;
        if let Some(uri) = &private.uri {
            let mut map = self.index.shard(uri).map.write();
            if let Some(list) = map.privates.get_mut(uri) {
                list.retain(|p| p.upgrade().is_some_and(|p| p.handle != private.handle));
                if list.is_empty() {
                    map.privates.remove(uri);
                }
            }
        }
    }
}
