//! Publishing in a store with extensions: where a response goes, and that nobody finds it who must not.

use std::os::fd::OwnedFd;

use objmapper_client::{CommitOptions, Fence, Found, IfVersion, ObjUri, PrivateObject, Session, Status, Want};
use rustix::io::Errno;

use crate::core::Core;
use crate::head::{BodySum, Summer};
use crate::hit::Grounds;
use crate::key::Key;
use crate::outage::Outage;
use crate::reading::{Opened, Unreadable};
use crate::record::{Kind, tail};
use crate::stored::{Mark, Stored};
use crate::ticket::{Outcome, Ticket};
use crate::vary::{Index, VaryKey};

/// How often an index that others change at the same time is tried to be changed.
const ROUNDS: usize = 8;
/// Reserved at first for a body of unknown length.
const FIRST_RESERVATION: u64 = 64 << 10;
/// Most that is reserved beyond what has come.
const MAX_STEP: u64 = 64 << 20;

impl Core {
    /// Publishes a small object; `None`: `options` do not allow it.
    pub(crate) fn put(&self, uri: &ObjUri<'_>, bytes: &[u8], options: CommitOptions) -> Result<Option<Found>, Outage> {
        let mut object = self.client.create(bytes.len() as u64, None, None).map_err(|why| Outage::from(&why))?;
        {
            let file = object.take_fd().ok_or(Outage::Protocol)?;
            write_all_at(&file, bytes, 0)?;
        }
        match object.commit(uri, bytes.len() as u64, options) {
            Ok(found) => Ok(Some(found)),
            Err(why) if why.status() == Some(Status::Conflict) => Ok(None),
            Err(why) => Err(Outage::from(&why)),
        }
    }
}

/// Writes all of `bytes` at an offset.
pub(crate) fn write_all_at(file: impl std::os::fd::AsFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Outage> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, bytes, offset) {
            Ok(0) | Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => return Err(Outage::Full),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(_) => return Err(Outage::Io),
        }
    }
    Ok(())
}

impl Stored {
    /// The tail of a body with this head.
    pub(crate) fn tail(&self, body_len: u64, sum: Option<BodySum>) -> Option<Vec<u8>> {
        let kind = if self.target.is_some() { Kind::Renewal } else { Kind::Record };
        tail(kind, self.encode(), body_len, sum)
    }
}

impl Grounds {
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
    pub(crate) fn why_not(&self) -> Outcome {
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
    object: PrivateObject,
    file: OwnedFd,
    len: u64,
    reserved: u64,
    sum: Summer,
}

impl Draft {
    pub(crate) fn new(core: &Core, grounds: &Grounds, expected: Option<u64>) -> Result<Self, Outcome> {
        let (session, _) = grounds.board()?;
        let now = core.session()?;
        if now.board().map(|board| board.id()) != session.board().map(|board| board.id()) {
            // The store has started again since: its fences say nothing about ours.
            return Err(Outcome::Outage(Outage::Down));
        }
        let reserved = expected.unwrap_or(FIRST_RESERVATION);
        let mut object = core.client.create(reserved, None, None).map_err(|why| Outage::from(&why))?;
        let file = object.take_fd().ok_or(Outage::Protocol)?;
        Ok(Self { object, file, len: 0, reserved, sum: Summer::new() })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn reserve(&mut self, needed: u64) -> Result<(), Outcome> {
        if needed > self.reserved {
            self.object.reserve(needed).map_err(|why| Outage::from(&why))?;
            self.reserved = needed;
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Outcome> {
        let needed = self.len + bytes.len() as u64;
        if needed > self.reserved {
            let ample = needed.saturating_add(needed.min(MAX_STEP));
            // The store may have room for what is needed all the same.
            self.reserve(ample).or_else(|_| self.reserve(needed))?;
        }
        write_all_at(&self.file, bytes, self.len)?;
        self.sum.update(bytes);
        self.len = needed;
        Ok(())
    }

    /// Appends the tail and publishes.
    fn commit(mut self, uri: &ObjUri<'_>, stored: &Stored, options: CommitOptions) -> Result<(), Failed> {
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

enum Failed {
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

impl Ticket {
    /// Where a response goes that varies like this.
    pub(crate) fn place(&self, vary: Option<&VaryKey>) -> Result<Place, Outcome> {
        let Some(vary) = vary else { return Ok(Place::Key { if_version: IfVersion::from_raw(self.base) }) };
        let (found, there) = self.index()?;
        let mut index = match found {
            Some(index) => index,
            None => Index::new(self.key.text(), crate::bans::keeper::random()?),
        };
        let change = index.add_spec_of(vary).then_some(there);
        let uri = self.core.space.uri(&[b"v", &index.variant(vary)]);
        Ok(Place::Variant { uri, index, change })
    }

    /// The index at the key, and what is there.
    fn index(&self) -> Result<(Option<Index>, IfVersion), Outcome> {
        let uri = self.key.uri();
        for _ in 0..ROUNDS {
            let (session, _) = self.grounds.board()?;
            let found = self.core.client.lookup(uri, Want::ENTRY).map_err(|why| Outage::from(&why))?;
            let Some(found) = found else { return Ok((None, IfVersion::Absent)) };
            let there = IfVersion::from_raw(found.entry.version);
            match Opened::new(session, &found.entry) {
                Ok(opened) if opened.kind() == Kind::Vary => {
                    // One that does not validate is replaced.
                    let index = Index::decode(opened.head()).ok().filter(|index| index.text == self.key.text());
                    return Ok((index, there));
                }
                Ok(_) | Err(Unreadable::Damaged) => return Ok((None, there)),
                Err(Unreadable::Gone) => {}
                Err(Unreadable::Outage(outage)) => return Err(outage.into()),
            }
        }
        Err(Outcome::Overtaken)
    }

    /// Publishes a small record, under the ticket's fence.
    pub(crate) fn put(&self, uri: &ObjUri<'_>, bytes: &[u8], if_version: IfVersion, expires: i64) -> Outcome {
        let fence = match self.grounds.board() {
            Ok((_, fence)) => Some(fence),
            Err(outcome) => return outcome,
        };
        match self.core.put(uri, bytes, CommitOptions { expires, if_version, fence, ..CommitOptions::default() }) {
            Ok(Some(_)) => Outcome::Published,
            Ok(None) => self.grounds.why_not(),
            Err(outage) => outage.into(),
        }
    }

    /// Publishes a body that was written.
    pub(crate) fn publish(&mut self, draft: Draft, stored: &Stored) -> Result<Outcome, Outcome> {
        let place = self.place(stored.vary.as_ref())?;
        let (_, fence) = self.grounds.board()?;
        let if_version = match &place {
            Place::Key { if_version } => *if_version,
            Place::Variant { .. } => IfVersion::Any,
        };
        let expires = stored.head.expires_ms();
        let options = CommitOptions { expires, if_version, fence: Some(fence), ..CommitOptions::default() };
        match draft.commit(place.uri(&self.key), stored, options) {
            Ok(()) => self.committed(place).map(|()| Outcome::Published),
            Err(Failed::Conflict) => Err(self.grounds.why_not()),
            Err(Failed::Outcome(outcome)) => Err(outcome),
        }
    }

    /// A body was committed: makes sure that it is found.
    pub(crate) fn committed(&mut self, place: Place) -> Result<(), Outcome> {
        let Place::Variant { uri, mut index, change } = place else {
            self.fulfilled();
            return Ok(());
        };
        let Some(mut there) = change else { return Ok(()) };
        for _ in 0..ROUNDS {
            let bytes = tail(Kind::Vary, index.encode(), 0, None).ok_or(Outcome::TooLarge)?;
            match self.put(self.key.uri(), &bytes, there, 0) {
                Outcome::Published => return Ok(()),
                Outcome::Overtaken => {}
                outcome => return Err(self.orphaned(&uri, outcome)),
            }
            // Somebody else has changed what is at the key.
            match self.index() {
                Ok((Some(mut other), now)) if other.generation == index.generation => {
                    if !other.merge(&index) {
                        return Ok(());
                    }
                    (index, there) = (other, now);
                }
                _ => break,
            }
        }
        Err(self.orphaned(&uri, Outcome::Overtaken))
    }

    /// The variant cannot be found: it goes, to save room.
    fn orphaned(&self, uri: &ObjUri<'_>, outcome: Outcome) -> Outcome {
        // Should that fail, the store drops it when it needs its room.
        let _ = self.core.client.evict(uri, IfVersion::Any);
        outcome
    }
}
