//! A body that is being written to a store with extensions, and where it goes.

use std::os::fd::{AsFd, OwnedFd};

use objmapper_client::{Client, CommitOptions, Error, Fence, IfVersion, ObjUri, PrivateObject, Session, Status, Tier};

use crate::core::Core;
use crate::head::{BodySum, Summer};
use crate::hit::ReadView;
use crate::key::Key;
use crate::outage::Outage;
use crate::outcome::Outcome;
use crate::record::{Kind, tail};
use crate::stored::{Mark, Stored};
use crate::vary::Index;
use crate::writing::write_all_at;

/// Reserved at first for a body of unknown length.
const FIRST_RESERVATION: u64 = 64 << 10;
/// Most that is reserved beyond what has come.
const MAX_STEP: u64 = 64 << 20;

impl Stored {
    /// The tail of a body with this head.
    pub(crate) fn tail(&self, body_len: u64, sum: Option<BodySum>) -> Option<Vec<u8>> {
        let kind = if self.target.is_some() { Kind::Renewal } else { Kind::Record };
        tail(kind, self.encode(), body_len, sum)
    }
}

impl ReadView {
    /// Which bans a response is newer than that is asked for now.
    pub(crate) fn mark(&self) -> Mark {
        match self {
            Self::Board { bans, .. } => bans.log.mark(),
            Self::V01 { mark } => *mark,
        }
    }

    pub(crate) fn board(&self) -> Result<(&Session, Fence), Outcome> {
        match self {
            Self::Board { session, fence, .. } => Ok((session, *fence)),
            Self::V01 { .. } => Err(Outcome::Outage(Outage::Protocol)),
        }
    }

    /// Why a commit met a conflict.
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

/// A body that is being written.
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
        let now = core.session()?;
        if now.board().map(|board| board.id()) != session.board().map(|board| board.id()) {
            // The store has started again since: its fences say nothing about ours.
            return Err(Outcome::Outage(Outage::Down));
        }
        let reserved = expected.unwrap_or(FIRST_RESERVATION);
        let mut object = core.client.create(reserved, None, None).map_err(|why| Outage::from(&why))?;
        let file = object.take_fd().ok_or(Outage::Protocol)?;
        Ok(Self { client: core.client.clone(), object, file, len: 0, reserved, sum: Summer::new() })
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

    /// Sets the reservation; where the memory tier is full, goes on in the disk tier, if there is one.
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
            // The store may have room for what is needed all the same.
            self.reserve_in_place(ample).or_else(|_| self.reserve(needed))?;
        }
        write_all_at(&self.file, bytes, self.len)?;
        self.sum.update(bytes);
        self.len = needed;
        Ok(())
    }

    /// Appends the tail and publishes.
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

/// Why it was not published.
pub(crate) enum Failed {
    /// The store refused: the fence, or what is there.
    Conflict,
    Outcome(Outcome),
}

/// Where a response goes.
#[derive(Debug)]
pub(crate) enum Place {
    /// To the key, which has no index.
    Key { if_version: IfVersion },
    /// Beside others: under the variant's URI first, then into the index.
    Variant {
        uri: ObjUri<'static>,
        index: Index,
        /// Whether the index at the key must be changed, and what is there.
        change: Option<IfVersion>,
    },
}

impl Place {
    pub(crate) fn uri<'a>(&'a self, key: &'a Key) -> &'a ObjUri<'static> {
        match self {
            Self::Key { .. } => key.uri(),
            Self::Variant { uri, .. } => uri,
        }
    }
}
