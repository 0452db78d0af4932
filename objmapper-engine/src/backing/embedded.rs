//! The store inside varnishd.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use objmapper_server::store::{Commit, Session, Store, StoreError, TierChoice, TierKind, body_path};

use super::{Draft, Failure, Stored};

/// A store in this process, and our session with it.
pub struct Embedded {
    session: Arc<Session>,
    tier_kind: TierKind,
    tier: Arc<OwnedFd>,
}

/// A draft's number. Dropping it aborts the draft, unless it was published.
pub(super) struct Handle {
    session: Arc<Session>,
    number: Option<u64>,
}

impl Embedded {
    /// Keeps bodies in the store's tier of this kind.
    pub fn new(store: &Store, tier_kind: TierKind) -> Result<Embedded, Failure> {
        let session = store.session(None).map_err(failure)?;
        let tier = store.tier_dir(tier_kind).map_err(failure)?;
        let tier = tier.try_clone_to_owned().map_err(|e| Failure::Io(e.to_string()))?;
        Ok(Embedded { session: Arc::new(session), tier_kind, tier: Arc::new(tier) })
    }

    pub(super) fn create(&self, length: u64) -> Result<Draft, Failure> {
        let private = self.session.create(TierChoice::Only(self.tier_kind), length, None).map_err(failure)?;
        let (number, file) = private.into_parts().ok_or_else(|| Failure::Io("a new draft has no file".to_owned()))?;
        let handle = Handle { session: self.session.clone(), number: Some(number) };
        let in_memory = self.tier_kind == TierKind::Memory;
        Ok(Draft { file: File::from(file), in_memory, handle: super::Handle::Embedded(handle) })
    }

    pub(super) fn publish(&self, mut handle: Handle, uri: &str, length: u64, key: u64) -> Result<Stored, Failure> {
        let number = handle.number.ok_or_else(|| Failure::Protocol("published twice".to_owned()))?;
        let mut commit = Commit::new(uri.as_bytes(), length);
        commit.pin = true;
        commit.ephemeral = true;
        let entry = self.session.commit(number, commit).map_err(failure)?;
        handle.number = None;
        Ok(Stored { key, object: entry.object, home: super::Home::Embedded(self.tier.clone()) })
    }

    pub(super) fn release(&self, stored: &Stored) {
        self.session.release(&[stored.object]);
    }
}

/// Opens a body's file below its tier's directory.
pub(super) fn open(tier: &OwnedFd, object: u64) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = openat(tier, body_path(object).as_str(), flags, Mode::empty())?;
    Ok(File::from(fd))
}

impl Handle {
    pub(super) fn reserve(&self, length: u64) -> Result<(), Failure> {
        match self.number {
            Some(number) => self.session.reserve(number, length).map_err(failure),
            None => Ok(()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            // Unknown: the session has ended, and aborted it.
            let _ = self.session.abort(number);
        }
    }
}

fn failure(error: StoreError) -> Failure {
    match error {
        StoreError::Full { .. } => Failure::Full(error.to_string()),
        StoreError::Io { .. } | StoreError::TooMany { .. } => Failure::Io(error.to_string()),
        other => Failure::Protocol(other.to_string()),
    }
}
