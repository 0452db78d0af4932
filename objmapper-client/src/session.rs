//! A session: what the connections of one client have in common.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use objmapper_proto::ext::{BodyPath, Entry, Tier, Token};
use rustix::fs::{Mode, OFlags, openat};

use crate::board::Board;
use crate::error::{Error, Result};

/// A tier as it was when the session was attached.
#[derive(Debug)]
pub struct TierDirectory {
    /// Which.
    pub tier: Tier,
    /// Bytes that it may hold.
    pub limit: u64,
    /// Bytes that it held.
    pub used: u64,
    directory: OwnedFd,
}

impl AsFd for TierDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// A session with a store that has the extensions.
///
/// Its tier directories stay usable when the store is gone: what was pinned can still be opened.
#[derive(Debug)]
pub struct Session {
    pub(crate) id: u64,
    pub(crate) instance: Token,
    pub(crate) token: Token,
    pub(crate) tiers: Vec<TierDirectory>,
    pub(crate) board: Option<Board>,
}

impl Session {
    pub(crate) fn tier(tier: Tier, limit: u64, used: u64, directory: OwnedFd) -> TierDirectory {
        TierDirectory { tier, limit, used, directory }
    }

    /// Its number: another one after the store has lost a session, the same as long as pins, leases and
    /// private objects live on. Unique within one [`Client`](crate::Client), from 1.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The store's instance: another one after its memory tier has begun anew.
    #[must_use]
    pub fn instance(&self) -> Token {
        self.instance
    }

    /// The store's tiers.
    #[must_use]
    pub fn tiers(&self) -> &[TierDirectory] {
        &self.tiers
    }

    /// The board of the server that runs now, or ran last; `None` if it has none.
    ///
    /// A server that starts again has another one. A session of its disk tier may go on: [`Client::session`](crate::Client::session)
    /// then answers another `Session` of the same [`Self::id`].
    #[must_use]
    pub fn board(&self) -> Option<&Board> {
        self.board.as_ref()
    }

    /// The directory of a tier, if the store has that tier.
    #[must_use]
    pub fn directory(&self, tier: Tier) -> Option<BorrowedFd<'_>> {
        self.tiers.iter().find(|t| t.tier == tier).map(AsFd::as_fd)
    }

    /// Opens a body's file, read-only and close-on-exec, without asking the store: one system call.
    ///
    /// # Errors
    /// [`Error::Io`] with ENOENT if the body is gone (it was not pinned, or its pin was released), or if the
    /// store has no such tier.
    pub fn open(&self, tier: Tier, object: u64) -> Result<OwnedFd> {
        let failed = Error::io("open body");
        let directory = self.directory(tier).ok_or_else(|| failed(rustix::io::Errno::NOENT))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(directory, BodyPath::new(object).as_c_str(), flags, Mode::empty()).map_err(failed)
    }

    /// [`Self::open`] for an entry.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_entry(&self, entry: &Entry) -> Result<OwnedFd> {
        self.open(entry.tier, entry.object)
    }
}
