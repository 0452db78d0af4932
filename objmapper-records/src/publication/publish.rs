//! Publishing in a store with extensions: at the key, or as a variant with an index at the key.
//!
//! A commit at the key replaces only the version that the look-up has seen; that of a refresh replaces any. A variant
//! is committed first, and then its spec is entered into the index, with as many attempts as other caches' changes
//! require; a variant that cannot be entered is removed. All commits are made under the ticket's fence.

use objmapper_client::{CommitOptions, IfVersion, ObjUri, Want};

use crate::outage::Outage;
use crate::publication::draft::{Draft, Failed, Place};
use crate::publication::outcome::Outcome;
use crate::publication::ticket::Ticket;
use crate::record::reading::{Opened, Unreadable};
use crate::record::stored::Stored;
use crate::record::tail::{Kind, tail};
use crate::record::vary::{Index, VaryKey};

/// Attempts to change an index that other caches change at the same time.
const ROUNDS: usize = 8;
impl Ticket {
    /// Returns where a response with this Vary key is published.
    pub(crate) fn place(&self, vary: Option<&VaryKey>) -> Result<Place, Outcome> {
        let Some(vary) = vary else { return Ok(Place::Key { if_version: IfVersion::from_raw(self.base) }) };
        let (found, there) = self.index()?;
        let mut index = match found {
            Some(index) => index,
            None => Index::new(self.key.text(), crate::invalidation::bans::keeper::random()?),
        };
        let change = index.add_spec_of(vary).then_some(there);
        let uri = self.core.space.uri(&[b"v", &index.variant(vary)]);
        Ok(Place::Variant { uri, index, change })
    }

    /// Returns the index at the key, and the version that is there.
    fn index(&self) -> Result<(Option<Index>, IfVersion), Outcome> {
        let uri = self.key.uri();
        for _ in 0..ROUNDS {
            let (session, _) = self.view.board()?;
            let found = self.core.client.lookup(uri, Want::ENTRY).map_err(|why| Outage::from(&why))?;
            let Some(found) = found else { return Ok((None, IfVersion::Absent)) };
            let there = IfVersion::from_raw(found.entry.version);
            match Opened::new(session, &found.entry) {
                Ok(opened) if opened.kind() == Kind::Vary => {
                    // An index that does not validate is replaced.
                    let index = Index::decode(opened.head()).ok().filter(|index| index.text == self.key.text());
                    return Ok((index, there));
                }
                Ok(_) | Err(Unreadable::Damaged(_)) => return Ok((None, there)),
                Err(Unreadable::Gone) => {}
                Err(Unreadable::Outage(outage)) => return Err(outage.into()),
            }
        }
        Err(Outcome::Overtaken)
    }

    /// Publishes a small record, under the ticket's fence.
    pub(crate) fn put(&self, uri: &ObjUri<'_>, bytes: &[u8], if_version: IfVersion, expires: i64) -> Outcome {
        let fence = match self.view.board() {
            Ok((_, fence)) => Some(fence),
            Err(outcome) => return outcome,
        };
        match self.core.put(uri, bytes, CommitOptions { expires, if_version, fence, ..CommitOptions::default() }) {
            Ok(Some(_)) => Outcome::Published,
            Ok(None) => self.view.conflict_outcome(),
            Err(outage) => outage.into(),
        }
    }

    /// Publishes a body that was written.
    pub(crate) fn publish(&mut self, draft: Draft, stored: &Stored) -> Result<Outcome, Outcome> {
        let place = self.place(stored.vary.as_ref())?;
        let (_, fence) = self.view.board()?;
        let if_version = match &place {
            Place::Key { if_version } => *if_version,
            Place::Variant { .. } => IfVersion::Any,
        };
        let expires = stored.head.expires_ms();
        let options = CommitOptions { expires, if_version, fence: Some(fence), ..CommitOptions::default() };
        match draft.commit(place.uri(&self.key), stored, options) {
            Ok(()) => self.committed(place).map(|()| Outcome::Published),
            Err(Failed::Conflict) => Err(self.view.conflict_outcome()),
            Err(Failed::Outcome(outcome)) => Err(outcome),
        }
    }

    /// Completes a publication after the commit of its body: enters a variant into the index, and ends the lease.
    pub(crate) fn committed(&mut self, place: Place) -> Result<(), Outcome> {
        match place {
            Place::Key { .. } => self.fulfilled(),
            Place::Variant { uri, index, change } => {
                self.enter(uri, index, change)?;
                self.variant_fulfilled();
            }
        }
        Ok(())
    }

    /// Enters a variant into the index at the key, unless `change` is `None`: the index has it.
    fn enter(&self, uri: ObjUri<'static>, mut index: Index, change: Option<IfVersion>) -> Result<(), Outcome> {
        let Some(mut there) = change else { return Ok(()) };
        for _ in 0..ROUNDS {
            let bytes = tail(Kind::Vary, index.encode(), 0, None).ok_or(Outcome::TooLarge)?;
            match self.put(self.key.uri(), &bytes, there, 0) {
                Outcome::Published => return Ok(()),
                Outcome::Overtaken => {}
                outcome => return Err(self.orphaned(&uri, outcome)),
            }
            // Another cache has changed the index at the key.
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

    /// Removes a variant that could not be entered, to save room. Returns `outcome`.
    fn orphaned(&self, uri: &ObjUri<'_>, outcome: Outcome) -> Outcome {
        // If this fails, the store drops it when it needs the room.
        let _ = self.core.client.evict(uri, IfVersion::Any);
        outcome
    }
}
