//! Publishing in a store with extensions: at the key, or as a variant with an index at the key.
//!
//! A commit at the key replaces only the version that the look-up has seen; that of a refresh replaces any. A variant
//! is committed first, and then its spec is entered into the index, with as many attempts as other caches' changes
//! require; a variant that cannot be entered is removed. All commits are made under the ticket's fence.

use objmapper_client::{CommitOptions, IfVersion, ObjUri, Want};

use crate::invalidation::index::{Judged, Verdict};
use crate::lookup::hit::ReadView;
use crate::outage::Outage;
use crate::publication::draft::{Destination, Draft, Failed};
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
    pub(crate) fn destination(&self, vary: Option<&VaryKey>) -> Result<Destination, Outcome> {
        let Some(vary) = vary else { return Ok(Destination::Key { if_version: IfVersion::from_raw(self.base) }) };
        let (found, there) = self.index()?;
        let mut index = match found {
            Some(index) => index,
            None => Index::new(self.key.text(), crate::invalidation::journal::random()?),
        };
        let change = index.add_spec_of(vary).then_some(there);
        let uri = self.core.store.space.uri(&[b"v", &index.variant(vary)]);
        Ok(Destination::Variant { uri, index, change })
    }

    /// Fails if a purge of the key or of a tag has come since the ticket was granted. A record that is published in spite of
    /// one that comes right afterwards is found by no reader, because its mark is older; but the response must not be
    /// cached elsewhere either.
    pub(crate) fn check_purges(&self, stored: &Stored) -> Result<(), Outcome> {
        let ReadView::Board { session, position, .. } = &self.view else { return Ok(()) };
        let journal = &self.core.journal;
        if journal.is_newest(session, position) || journal.current(session).is_err() {
            return Ok(());
        }
        let judged = Judged { mark: &stored.mark, digest: self.key.digest(), tags: &stored.tags };
        match journal.judge_purges(judged) {
            Verdict::Valid => Ok(()),
            Verdict::Stale(_) | Verdict::Invalid | Verdict::Ahead => Err(Outcome::Conflict),
        }
    }

    /// Returns the index at the key, and the version that is there.
    fn index(&self) -> Result<(Option<Index>, IfVersion), Outcome> {
        let uri = self.key.uri();
        for _ in 0..ROUNDS {
            let (session, _) = self.view.board()?;
            let found = self.core.store.client.lookup(uri, Want::ENTRY).map_err(|why| Outage::from(&why))?;
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
        match self.core.store.put(uri, bytes, CommitOptions { expires, if_version, fence, ..CommitOptions::default() })
        {
            Ok(Some(_)) => Outcome::Published,
            Ok(None) => self.view.conflict_outcome(),
            Err(outage) => outage.into(),
        }
    }

    /// Publishes a body that was written.
    pub(crate) fn publish(&mut self, draft: Draft, stored: &Stored) -> Result<Outcome, Outcome> {
        self.check_purges(stored)?;
        let destination = self.destination(stored.vary.as_ref())?;
        let (_, fence) = self.view.board()?;
        let if_version = match &destination {
            Destination::Key { if_version } => *if_version,
            Destination::Variant { .. } => IfVersion::Any,
        };
        let expires = stored.head.expires_ms();
        let options = CommitOptions { expires, if_version, fence: Some(fence), ..CommitOptions::default() };
        match draft.commit(destination.uri(&self.key), stored, options) {
            Ok(()) => self.committed(destination).map(|()| Outcome::Published),
            Err(Failed::Conflict) => Err(self.view.conflict_outcome()),
            Err(Failed::Outcome(outcome)) => Err(outcome),
        }
    }

    /// Completes a publication after the commit of its body: enters a variant into the index, and ends the lease.
    pub(crate) fn committed(&mut self, destination: Destination) -> Result<(), Outcome> {
        match destination {
            Destination::Key { .. } => self.fulfilled(),
            Destination::Variant { uri, index, change } => {
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
        let _ = self.core.store.client.evict(uri, IfVersion::Any);
        outcome
    }
}
