//! A body that is being written to a store with extensions, and where it is published.
//!
//! A draft reserves room ahead and writes at its end. A full memory tier moves it to the disk tier. [`Draft::commit`]
//! appends the tail, closes the writable descriptor, and publishes the file; until then no reader can find it.

use std::os::fd::{AsFd, OwnedFd};

use objmapper_client::{Client, CommitOptions, Error, Fence, IfVersion, ObjUri, PrivateObject, Session, Status, Tier};

use crate::core::Core;
use crate::lookup::hit::ReadView;
use crate::outage::Outage;
use crate::publication::outcome::Outcome;
use crate::record::file_io::write_all_at;
use crate::record::head::{BodySum, Summer};
use crate::record::key::Key;
use crate::record::stored::{Mark, Stored};
use crate::record::tail::{Kind, tail};
use crate::record::vary::Index;

/// The first reservation in bytes for a body of unknown length.
const FIRST_RESERVATION: u64 = 64 << 10;
/// The most bytes that are reserved beyond the present length.
const MAX_STEP: u64 = 64 << 20;

impl Stored {
    /// Returns the tail of a body with this head; `None` if it is too long.
    pub(crate) fn tail(&self, body_len: u64, sum: Option<BodySum>) -> Option<Vec<u8>> {
        let kind = if self.target.is_some() { Kind::Renewal } else { Kind::Record };
        tail(kind, self.encode(), body_len, sum)
    }
}

impl ReadView {
    /// Returns the mark of a response that is requested from the origin now.
    pub(crate) fn mark(&self) -> Mark {
        match self {
            Self::Board { position, .. } => position.mark,
            Self::V01 { mark } => *mark,
        }
    }

    pub(crate) fn board(&self) -> Result<(&Session, Fence), Outcome> {
        match self {
            Self::Board { session, fence, .. } => Ok((session, *fence)),
            Self::V01 { .. } => Err(Outcome::Outage(Outage::Protocol)),
        }
    }

    /// Returns why a commit was refused as a conflict: the fence has moved, or another commit was first.
    pub(crate) fn conflict_outcome(&self) -> Outcome {
        match self {
            Self::Board { session, fence, .. } => match session.board() {
                Some(board) if board.is_current(*fence) => Outcome::Overtaken,
                _ => Outcome::Conflict,
            },
            Self::V01 { .. } => Outcome::Overtaken,
        }
    }
}

/// A body that is being written. Dropped before [`Draft::commit`], it is aborted.
#[derive(Debug)]
pub(crate) struct Draft {
    client: Client,
    object: PrivateObject,
    file: OwnedFd,
    len: u64,
    reserved: u64,
    sum: Summer,
}

impl Draft {
    pub(crate) fn new(core: &Core, view: &ReadView, expected: Option<u64>) -> Result<Self, Outcome> {
        let (session, _) = view.board()?;
        let now = core.store.session()?;
        if now.board().map(|board| board.id()) != session.board().map(|board| board.id()) {
            // The store has restarted since: its board is another one, and the fence that was read is void.
            return Err(Outcome::Outage(Outage::Down));
        }
        let reserved = expected.unwrap_or(FIRST_RESERVATION);
        let mut object = core.store.client.create(reserved, None, None).map_err(|why| Outage::from(&why))?;
        let file = object.take_fd().ok_or(Outage::Protocol)?;
        Ok(Self { client: core.store.client.clone(), object, file, len: 0, reserved, sum: Summer::new() })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn reserve_in_place(&mut self, length: u64) -> Result<(), Error> {
        if length > self.reserved {
            self.object.reserve(length)?;
            self.reserved = length;
        }
        Ok(())
    }

    /// Sets the reservation. If the memory tier is full, moves the draft to the disk tier, if there is one.
    fn reserve(&mut self, needed: u64) -> Result<(), Outcome> {
        match self.reserve_in_place(needed) {
            Err(why) if why.status() == Some(Status::Full) && self.may_move() => {
                let copied = self.client.create_copy(Tier::Disk, needed, self.file.as_fd(), self.len);
                let mut object = copied.map_err(|why| Outage::from(&why))?;
                self.file = object.take_fd().ok_or(Outage::Protocol)?;
                self.object = object;
                self.reserved = needed;
                Ok(())
            }
            other => other.map_err(|why| Outage::from(&why).into()),
        }
    }

    fn may_move(&self) -> bool {
        self.object.tier() == Tier::Memory && self.object.session().directory(Tier::Disk).is_some()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Outcome> {
        let needed = self.len + bytes.len() as u64;
        if needed > self.reserved {
            let ample = needed.saturating_add(needed.min(MAX_STEP));
            // The store may still have room for the bytes that are needed now.
            self.reserve_in_place(ample).or_else(|_| self.reserve(needed))?;
        }
        write_all_at(&self.file, bytes, self.len)?;
        self.sum.update(bytes);
        self.len = needed;
        Ok(())
    }

    /// Appends the tail and publishes the file as a record.
    pub(crate) fn commit(mut self, uri: &ObjUri<'_>, stored: &Stored, options: CommitOptions) -> Result<(), Failed> {
        let tail = stored.tail(self.len, Some(self.sum.sum())).ok_or(Failed::Outcome(Outcome::TooLarge))?;
        let len = self.len + tail.len() as u64;
        self.reserve(len).map_err(Failed::Outcome)?;
        write_all_at(&self.file, &tail, self.len).map_err(|outage| Failed::Outcome(outage.into()))?;
        drop(self.file);
        match self.object.commit(uri, len, options) {
            Ok(_) => Ok(()),
            Err(why) if why.status() == Some(Status::Conflict) => Err(Failed::Conflict),
            Err(why) => Err(Failed::Outcome(Outage::from(&why).into())),
        }
    }
}

/// Why a draft was not published.
pub(crate) enum Failed {
    /// The store refused: the fence has moved, or `if_version` does not hold.
    Conflict,
    Outcome(Outcome),
}

/// Where a response is published.
#[derive(Debug)]
pub(crate) enum Destination {
    /// At the key's URI; the key has no index.
    Key { if_version: IfVersion },
    /// At the URI of a variant. The variant is published first, then entered into the index.
    Variant {
        uri: ObjUri<'static>,
        index: Index,
        /// The version at the key that the new index replaces; `None` if the index needs no change.
        change: Option<IfVersion>,
    },
}

impl Destination {
    pub(crate) fn uri<'a>(&'a self, key: &'a Key) -> &'a ObjUri<'static> {
        match self {
            Self::Key { .. } => key.uri(),
            Self::Variant { uri, .. } => uri,
        }
    }
}
