//! Following the log: a thread gives the entries of other instances to a [`Follower`], in order and each once.
//!
//! It waits on the board, which tells of an append at once. What it cannot know entry by entry, because the log was lost
//! or has dropped entries that it had not read, it reports as [`Invalidation::All`].
//!
//! A log that is begun anew is a loss, unless nothing can have been missed: the board of the former log says so, which
//! stays readable after its store has ended.

use std::sync::Arc;
use std::time::Duration;

use objmapper_client::{ConnectionState, Session};

use super::{Journal, now};
use crate::invalidation::entry::{Entry, Follower, Invalidation};
use crate::invalidation::index::Index;
use crate::outage::Outage;

/// The longest wait for an append, after which the thread looks whether the store is another one, or it is to end.
const MAX_IDLE: Duration = Duration::from_millis(200);
/// The wait before the log is read again in a store without a board, and after a failure.
const RETRY: Duration = Duration::from_millis(100);

/// Up to where the log was followed.
struct Followed {
    nonce: [u8; 16],
    seq: u64,
    /// The session whose board said so, and its number of recorded announcements; `None` without a board.
    board: Option<(Arc<Session>, u64)>,
}

impl Journal {
    /// The follower's thread. `since`: what was invalidated earlier, seconds since 1970, is not of interest, because the
    /// follower had nothing then.
    pub(crate) fn run_follower(&self, follower: &dyn Follower, since: f64) {
        let mut followed = None;
        while !self.is_stopped() {
            if self.follow(follower, since, &mut followed).is_err() {
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Gives the follower what is new, and waits for more.
    fn follow(&self, follower: &dyn Follower, since: f64, followed: &mut Option<Followed>) -> Result<(), Outage> {
        if let ConnectionState::V01 { .. } = self.store.client.state() {
            let Ok(index) = self.current_v01() else { return Err(Outage::Timeout) };
            let (entries, now) = self.entries_of_others(&index, followed.as_ref(), since, None);
            give(follower, &entries);
            *followed = Some(now);
            std::thread::sleep(RETRY);
            return Ok(());
        }
        let session = self.store.session()?;
        let board = session.board().ok_or(Outage::Protocol)?;
        let Ok(position) = self.current(&session) else { return Err(Outage::Timeout) };
        let (entries, now) = {
            let read = self.read.read();
            let Some(read) = &*read else { return Err(Outage::Io) };
            self.entries_of_others(&read.index, followed.as_ref(), since, Some((&session, position.recorded)))
        };
        give(follower, &entries);
        *followed = Some(now);
        board.wait_recorded(self.slot, position.recorded, MAX_IDLE);
        Ok(())
    }

    /// Returns the entries of other instances behind those that were followed, and up to where these go.
    fn entries_of_others(
        &self,
        index: &Index,
        followed: Option<&Followed>,
        since: f64,
        board: Option<(&Arc<Session>, u64)>,
    ) -> (Vec<Entry>, Followed) {
        let mut entries = Vec::new();
        let mut all = |seq, at| entries.push(Entry { seq, at, what: Invalidation::All });
        let after = match followed {
            Some(followed) if followed.nonce == index.nonce => {
                if index.floor > followed.seq {
                    all(index.floor, index.floor_at);
                }
                followed.seq
            }
            Some(followed) => {
                if !self.has_missed_nothing(followed, board.map(|(session, _)| session)) {
                    all(0, index.began.max(index.floor_at));
                } else if index.floor > 0 {
                    all(index.floor, index.floor_at);
                }
                0
            }
            None => {
                // A log that was begun meanwhile because there was none is no loss: this instance has reached no other
                // one. A healed log stands for entries that may be newer than its start.
                let lost_at = if index.is_healed { index.began.max(index.floor_at) } else { index.floor_at };
                if lost_at >= since {
                    all(index.floor, lost_at);
                }
                0
            }
        };
        let is_first = followed.is_none();
        let of_others = index
            .entries_after(after)
            .filter(|entry| entry.origin != self.origin && (!is_first || entry.at >= since))
            .map(|entry| Entry {
                seq: entry.seq,
                // An unknown entry may have no time.
                at: if entry.at > 0.0 { entry.at } else { now() },
                what: entry.what.clone(),
            });
        entries.extend(of_others);
        let board = board.map(|(session, recorded)| (Arc::clone(session), recorded));
        (entries, Followed { nonce: index.nonce, seq: index.last, board })
    }

    /// Returns true if nothing was acknowledged on a former board that was not followed: all of it was recorded, and
    /// followed. What was announced there and not recorded is recorded by its process in the new log.
    fn has_missed_nothing(&self, followed: &Followed, session: Option<&Arc<Session>>) -> bool {
        let (Some((former, recorded)), Some(session)) = (&followed.board, session) else { return false };
        let (Some(former), Some(board)) = (former.board(), session.board()) else { return false };
        // On the same board the log itself was lost, or healed.
        former.id() != board.id() && former.recorded(self.slot) == *recorded && former.announced(self.slot) == *recorded
    }
}

fn give(follower: &dyn Follower, entries: &[Entry]) {
    if !entries.is_empty() {
        follower.apply(entries);
    }
}
