//! Private objects: created, written, then committed or aborted; seen by nobody before the commit.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;

use objmapper_proto::ext::Fence;

use super::account::page_round;
use super::object::{ANY_VERSION, Entry, check_uri};
use super::session::Session;
use super::tier::Tier;
use super::{Inner, StoreError, TierChoice, TierKind};

/// The store's side of a private object.
#[derive(Debug)]
pub(crate) struct Private {
    pub(crate) handle: u64,
    pub(crate) tier: TierKind,
    /// Read-only, so that it does not count as a writer; links the file at commit.
    pub(crate) reader: OwnedFd,
    pub(crate) uri: Option<Arc<[u8]>>,
    /// Its URI was deleted after it was created.
    pub(crate) doomed: AtomicBool,
    pub(crate) state: Mutex<PrivateState>,
}

#[derive(Debug)]
pub(crate) struct PrivateState {
    /// Bytes that the tier's account carries for it.
    pub(crate) reserved: u64,
    /// False once committed or aborted.
    pub(crate) open: bool,
}

/// How to publish a private object.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// The name; a canonical URI (see [`check_uri`]).
    pub uri: &'a [u8],
    /// Bytes; must be the file's size.
    pub length: u64,
    /// Milliseconds since 1970 after which the object is a miss; 0 is never.
    pub expires: i64,
    /// [`ANY_VERSION`], 0 (there must be none), or the version that is to be replaced.
    pub if_version: u64,
    /// Pin it for the session at once.
    pub pin: bool,
    /// Delete it when the session ends.
    pub ephemeral: bool,
    /// Where a fence must be. With it, a conflict leaves the object private.
    pub fence: Option<Fence>,
}

impl<'a> Commit<'a> {
    /// An unconditional commit without expiry, not pinned, not ephemeral, without a fence.
    pub fn new(uri: &'a [u8], length: u64) -> Self {
        Commit { uri, length, expires: 0, if_version: ANY_VERSION, pin: false, ephemeral: false, fence: None }
    }
}

/// A private object and its writable file. Dropping it aborts.
#[derive(Debug)]
pub struct PrivateObject {
    pub(super) session: Session,
    pub(super) handle: u64,
    pub(super) tier: TierKind,
    pub(super) file: Option<OwnedFd>,
    pub(super) armed: bool,
}

impl PrivateObject {
    /// The read-write file; `None` after a commit was tried.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// The tier that it is in.
    pub fn tier(&self) -> TierKind {
        self.tier
    }

    /// Sets the reservation to `total` bytes, up or down. [`StoreError::Full`] leaves it as it was.
    pub fn reserve(&self, total: u64) -> Result<(), StoreError> {
        self.session.reserve(self.handle, total)
    }

    /// Publishes it: atomically visible under its URI, replacing what was there. Gives back what
    /// is allocated beyond the end and closes the writable file first; every duplicate and writable
    /// mapping of it must be gone, else [`StoreError::Busy`]. After an error that leaves the object
    /// private (busy, full, wrong length, a conflict where a fence was given) it may be tried again.
    pub fn commit(&mut self, commit: Commit<'_>) -> Result<Entry, StoreError> {
        if let Some(file) = self.file.take()
            && let Err(e) = Tier::trim(file.as_fd(), commit.length)
        {
            log::debug!("giving back surplus space: {e}");
        }
        let entry = self.session.commit(self.handle, commit)?;
        self.armed = false;
        Ok(entry)
    }

    /// Hands the parts out: the handle for [`Session::commit`] and the file. Nothing aborts it any
    /// more but [`Session::abort`] and the session's end.
    pub fn into_parts(mut self) -> Option<(u64, OwnedFd)> {
        self.armed = false;
        self.file.take().map(|file| (self.handle, file))
    }
}

impl Drop for PrivateObject {
    fn drop(&mut self) {
        if self.armed {
            drop(self.file.take());
            // Unknown means that the session's end aborted it already.
            let _ = self.session.abort(self.handle);
        }
    }
}

impl Inner {
    /// Reserves and creates; the caller registers it with its session.
    pub(crate) fn create_private(
        &self,
        choice: TierChoice,
        length: u64,
        uri: Option<&[u8]>,
    ) -> Result<(Arc<Private>, OwnedFd), StoreError> {
        if let Some(uri) = uri {
            check_uri(uri)?;
        }
        let count = self.private_count.fetch_add(1, SeqCst);
        let made = if count < self.max_private {
            self.create_counted(choice, length, uri)
        } else {
            Err(StoreError::TooMany { what: "private objects", limit: self.max_private })
        };
        if made.is_err() {
            self.private_count.fetch_sub(1, SeqCst);
        }
        made
    }

    fn create_counted(
        &self,
        choice: TierChoice,
        length: u64,
        uri: Option<&[u8]>,
    ) -> Result<(Arc<Private>, OwnedFd), StoreError> {
        let reserved = page_round(length);
        let tier = self.reserve_in(choice, reserved)?;
        let made = self.with_room(tier, || tier.create().map_err(StoreError::io("creating a file")));
        let (writer, reader) = made.inspect_err(|_| tier.account.sub(reserved))?;
        let uri: Option<Arc<[u8]>> = uri.map(Arc::from);
        let private = Arc::new(Private {
            handle: self.next_handle.fetch_add(1, SeqCst),
            tier: tier.kind,
            reader,
            uri: uri.clone(),
            doomed: AtomicBool::new(false),
            state: Mutex::new(PrivateState { reserved, open: true }),
        });
        if let Some(uri) = uri {
            let mut map = self.index.shard(&uri).map.write();
            map.privates.entry(uri).or_default().push(Arc::downgrade(&private));
        }
        Ok((private, writer))
    }

    /// Takes `bytes` of the chosen tier and says which it was.
    pub(crate) fn reserve_in(&self, choice: TierChoice, bytes: u64) -> Result<&Tier, StoreError> {
        let (first, second) = match choice {
            TierChoice::Only(kind) => (Some(self.tier(kind)?), None),
            TierChoice::Any => match (&self.memory, &self.disk) {
                (Some(memory), disk) => (Some(memory), disk.as_ref()),
                (None, disk) => (disk.as_ref(), None),
            },
        };
        let mut full = StoreError::Invalid("the store has no tier".into());
        for tier in first.into_iter().chain(second) {
            match self.make_room(tier, bytes) {
                Ok(()) => return Ok(tier),
                Err(e) => full = e,
            }
        }
        Err(full)
    }

    pub(crate) fn resize_private(&self, private: &Private, total: u64) -> Result<(), StoreError> {
        let mut state = private.state.lock();
        if !state.open {
            return Err(StoreError::UnknownHandle);
        }
        let total = page_round(total);
        let tier = self.tier(private.tier)?;
        if total > state.reserved {
            self.make_room(tier, total - state.reserved)?;
        } else {
            tier.account.sub(state.reserved - total);
        }
        state.reserved = total;
        Ok(())
    }

    /// Gives the reservation back; the file goes with its last descriptor.
    pub(crate) fn abort_private(&self, private: &Private) {
        if private.tier == TierKind::Disk {
            // Its writer may have found no room.
            self.suspect();
        }
        let mut state = private.state.lock();
        self.close_private(private, &mut state);
    }

    /// Ends a private object: returns what is left of its reservation and forgets its URI.
    pub(crate) fn close_private(&self, private: &Private, state: &mut PrivateState) {
        if !std::mem::replace(&mut state.open, false) {
            return;
        }
        if let Ok(tier) = self.tier(private.tier) {
            tier.account.sub(std::mem::take(&mut state.reserved));
        }
        self.private_count.fetch_sub(1, SeqCst);
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
