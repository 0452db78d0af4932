//! A session: the state in the store that the connections of one client share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use objmapper_proto::ext::{BodyPath, Entry, Tier, Token};

use crate::board::Board;
use crate::error::{Error, Result};

/// A tier and its figures at the time of ATTACH.
#[derive(Debug)]
pub struct TierDirectory {
    /// The tier.
    pub tier: Tier,
    /// The limit in bytes.
    pub limit: u64,
    /// The bytes held.
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
/// Its tier directories stay usable after the store has ended: pinned bodies can still be opened.
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

    /// Returns the session's number, from 1 and unique within one [`Client`](crate::Client). It stays the same as long as pins and
    /// private objects live, and is another one after the store has lost the session.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the store's instance, which changes when the memory tier starts empty.
    #[must_use]
    pub fn instance(&self) -> Token {
        self.instance
    }

    /// Returns the store's tiers.
    #[must_use]
    pub fn tiers(&self) -> &[TierDirectory] {
        &self.tiers
    }

    /// Returns the board of the server that runs now or ran last; `None` if it has none.
    ///
    /// A restarted server has another board. If it resumes the session, [`Client::session`](crate::Client::session)
    /// returns another `Session` with the same [`Self::id`].
    #[must_use]
    pub fn board(&self) -> Option<&Board> {
        self.board.as_ref()
    }

    /// Returns the directory of a tier, if the store has that tier.
    #[must_use]
    pub fn directory(&self, tier: Tier) -> Option<BorrowedFd<'_>> {
        self.tiers.iter().find(|t| t.tier == tier).map(AsFd::as_fd)
    }

    /// Opens a body's file, read-only and close-on-exec, by one system call and without a request to the store.
    ///
    /// # Errors
    /// [`Error::Io`] with ENOENT if the body is gone (it was not pinned, or its pin was released), or if the
    /// store has no such tier.
    pub fn open(&self, tier: Tier, object: u64) -> Result<OwnedFd> {
        let failed = Error::io("open body");
        let directory = self.directory(tier).ok_or_else(|| failed(Errno::ENOENT))?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(directory, BodyPath::new(object).as_c_str(), flags, Mode::empty()).map_err(failed)
    }

    /// Opens the body of an entry as [`Self::open`] does.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_entry(&self, entry: &Entry) -> Result<OwnedFd> {
        self.open(entry.tier, entry.object)
    }
}
