//! The store inside varnishd. Calls are carried out at once, in the caller's thread; its bodies live as long as this
//! process.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use objmapper_client::Outage;
use objmapper_proto::Status;
use objmapper_server::net::status_of;
use objmapper_server::store::{Commit, Entry, Session, Store, StoreError, TierKind, body_path};

use super::pins::Pins;
use super::{DraftFile, Failure, Home, Lengths, Name, StoredBody};

/// A store in this process, and our session with it.
pub struct Embedded {
    session: Arc<Session>,
    tier_kind: TierKind,
    tier: Arc<OwnedFd>,
    pins: Pins,
}

/// A draft's reservation in the store. Dropping it aborts the draft, unless it was published.
pub(super) struct Reservation {
    session: Arc<Session>,
    number: Option<u64>,
}

impl Embedded {
    /// Keeps bodies in the store's tier of this kind.
    pub fn new(store: &Store, tier_kind: TierKind) -> Result<Embedded, Failure> {
        let session = store.session(None).map_err(failure)?;
        let tier = store.tier_dir(tier_kind).map_err(failure)?;
        let tier = tier.try_clone_to_owned().map_err(Failure::from)?;
        Ok(Embedded { session: Arc::new(session), tier_kind, tier: Arc::new(tier), pins: Pins::new(false) })
    }

    pub(super) fn create(&self, length: u64) -> Result<DraftFile, Failure> {
        let private = self.session.create(Some(self.tier_kind), length, None).map_err(failure)?;
        let (number, file) =
            private.into_parts().ok_or_else(|| Failure::new(Outage::Protocol, "a new draft has no file"))?;
        let reservation = Reservation { session: self.session.clone(), number: Some(number) };
        Ok(DraftFile { file: Some(File::from(file)), reservation: super::Reservation::Embedded(reservation) })
    }

    pub(super) fn publish(
        &self,
        reservation: &mut Reservation,
        name: Name<'_>,
        lengths: Lengths,
        key: u64,
    ) -> Result<StoredBody, Failure> {
        let number = reservation.number.ok_or_else(|| Failure::new(Outage::Protocol, "published twice"))?;
        let mut commit = Commit::new(name.uri(), lengths.file);
        commit.pin = true;
        match name {
            Name::Own(_) => {
                commit.ephemeral = true;
                let entry = self.session.commit(number, commit).map_err(failure)?;
                reservation.number = None;
                Ok(self.stored(key, entry.object, lengths, false))
            }
            Name::Kept(_) => {
                let entry = self.session.commit(number, commit).map_err(failure)?;
                reservation.number = None;
                Ok(StoredBody { kept: true, ..self.stored(key, entry.object, lengths, false) })
            }
            Name::Record { expires, fence, .. } => {
                commit.expires = expires;
                commit.fence = Some(fence);
                self.pins.committing(
                    || {
                        let entry = self.session.commit(number, commit).map_err(failure)?;
                        reservation.number = None;
                        Ok((self.stored(key, entry.object, lengths, true), (0, entry.object)))
                    },
                    |(_, object)| self.session.release(&[object]),
                )
            }
        }
    }

    fn stored(&self, key: u64, object: u64, lengths: Lengths, shared: bool) -> StoredBody {
        let Lengths { body: body_len, file: file_len } = lengths;
        StoredBody { key, object, body_len, file_len, kept: false, shared, home: Home::Embedded(self.tier.clone()) }
    }

    pub(super) fn pin(
        &self,
        uri: &[u8],
        object: u64,
        lengths: Lengths,
        key: u64,
    ) -> Result<Option<StoredBody>, Failure> {
        // Releases are carried out when they are called for: none is under way.
        let _ = self.pins.acquire((0, object));
        let found = self.session.lookup(uri, true).map_err(failure);
        let wanted = |entry: &Entry| {
            entry.object == object
                && entry.length == lengths.file
                && entry.tier == self.tier_kind
                && !entry.is_foreign()
                && !entry.is_ephemeral()
        };
        match found {
            Ok(Some(entry)) if wanted(&entry) => Ok(Some(self.stored(key, object, lengths, true))),
            found => {
                if let Ok(Some(other)) = &found
                    && other.object != object
                    && !other.is_ephemeral()
                {
                    // The look-up has pinned that object, which another body may need.
                    let _ = self.pins.acquire((0, other.object));
                    self.unpin(other.object);
                }
                self.unpin(object);
                found.map(|_| None)
            }
        }
    }

    /// Pins a body that an earlier process kept.
    pub(super) fn restore(
        &self,
        uri: &[u8],
        object: u64,
        lengths: Lengths,
        key: u64,
    ) -> Result<Option<StoredBody>, Failure> {
        let found = self.session.lookup(uri, true).map_err(failure)?;
        let wanted = |entry: &Entry| {
            entry.object == object
                && entry.length == lengths.file
                && entry.tier == self.tier_kind
                && !entry.is_foreign()
        };
        match found {
            Some(entry) if wanted(&entry) => {
                Ok(Some(StoredBody { kept: true, ..self.stored(key, object, lengths, false) }))
            }
            Some(entry) => {
                self.session.release(&[entry.object]);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    pub(super) fn uri(&self, stored: &StoredBody) -> Option<Arc<[u8]>> {
        self.session.pinned_uri(stored.object)
    }

    fn unpin(&self, object: u64) {
        self.pins.release((0, object), |(_, object)| self.session.release(&[object]));
    }

    pub(super) fn instance(&self) -> [u8; 16] {
        self.session.store().instance().0
    }

    pub(super) fn release(&self, stored: &StoredBody) {
        if stored.shared {
            self.unpin(stored.object);
        } else if stored.kept {
            self.session.discard(stored.object);
        } else {
            self.session.release(&[stored.object]);
        }
    }
}

/// Opens a body's file below its tier's directory.
pub(super) fn open(tier: &OwnedFd, object: u64) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = openat(tier, body_path(object).as_str(), flags, Mode::empty())?;
    Ok(File::from(fd))
}

impl Reservation {
    pub(super) fn reserve(&self, length: u64) -> Result<(), Failure> {
        match self.number {
            Some(number) => self.session.reserve(number, length).map_err(failure),
            None => Ok(()),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            // Unknown: the session has ended, and aborted it.
            let _ = self.session.abort(number);
        }
    }
}

/// Classifies as an objmapperd's answer is: by the status that it would have sent.
fn failure(error: StoreError) -> Failure {
    match status_of(&error) {
        Status::Conflict => Failure::Conflict,
        status => Failure::new(Outage::from(status), error),
    }
}
