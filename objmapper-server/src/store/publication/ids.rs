//! Object ids, which are also the versions. They grow, and none is given out twice by one store instance.
//!
//! Ids are reserved in blocks in every journal, so that a restart begins behind them. A file that has an id without a row is of a
//! run whose journal is lost: it goes, and its id is not used, because a client may still know it.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use crate::store::object::ObjectId;
use crate::store::tier::Tier;
use crate::store::tier::journal::{MAX_ID, Op};
use crate::store::{Inner, StoreError};

/// Number of ids that one transaction reserves.
pub(in crate::store) const ID_BLOCK: u64 = 1 << 16;

/// The source of ids.
#[derive(Debug)]
pub(in crate::store) struct Ids {
    /// Ids below this one are of former runs.
    first: ObjectId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: ObjectId,
    /// Ids below this one are reserved in the journals.
    until: ObjectId,
    /// Ids that are not given out because files have them, until the files are removed.
    skipped: Vec<Range<ObjectId>>,
}

impl Ids {
    pub(in crate::store) fn new(first: ObjectId) -> Self {
        Ids { first, state: Mutex::new(State { next: first, until: 0, skipped: Vec::new() }) }
    }

    /// Returns the last id that was given out.
    pub(in crate::store) fn last(&self) -> ObjectId {
        self.state.lock().next.saturating_sub(1)
    }

    /// Returns an id. `reserve` records that the ids below its argument may be in use.
    fn next(&self, reserve: impl FnOnce(ObjectId) -> Result<(), StoreError>) -> Result<ObjectId, StoreError> {
        let mut state = self.state.lock();
        if state.next >= state.until {
            let until = state.next.saturating_add(ID_BLOCK);
            reserve(until)?;
            state.until = until;
        }
        let id = state.next;
        state.next = id.saturating_add(1);
        Ok(id)
    }

    /// Skips the next block of ids, because files of another run have them.
    fn skip_block(&self) {
        let mut state = self.state.lock();
        let from = state.next;
        state.next = from.saturating_add(ID_BLOCK);
        let skipped = from..state.next;
        state.skipped.push(skipped);
    }

    /// Returns true if this run has not given out `id`, which a file has, and excludes the id from use.
    pub(in crate::store) fn is_former(&self, id: ObjectId) -> bool {
        // No run gives out one above the maximum: such a name is not the store's.
        if id < self.first || id > MAX_ID {
            return true;
        }
        let mut state = self.state.lock();
        if id < state.next {
            return state.skipped.iter().any(|range| range.contains(&id));
        }
        let skipped = state.next..id.saturating_add(1);
        state.next = skipped.end;
        state.skipped.push(skipped);
        true
    }

    /// Returns the ids that were skipped, for the removal of their files.
    pub(in crate::store) fn take_skipped(&self) -> Vec<Range<ObjectId>> {
        std::mem::take(&mut self.state.lock().skipped)
    }
}

impl Inner {
    /// Gives the file an id and the id's name.
    pub(super) fn link_new(&self, tier: &Tier, file: BorrowedFd<'_>) -> Result<ObjectId, StoreError> {
        /// Number of existing files in a row after which the rest of the block is skipped: more are likely to follow.
        const MAX_STEPS: u32 = 64;
        let mut met = 0;
        loop {
            let id = self.ids.next(|until| self.tiers.record_everywhere(|| vec![Op::ReserveIds(until)]))?;
            match tier.files.publish(file, id) {
                Ok(()) => return Ok(id),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    self.diagnostics.orphan_names.fetch_add(1, Relaxed);
                    if let Err(e) = tier.files.unlink(id) {
                        log::debug!("removing a file without a row: {e}");
                    }
                    met += 1;
                    if met % MAX_STEPS == 0 {
                        self.ids.skip_block();
                        // It removes those files.
                        self.disk_wake.notify();
                    }
                }
                Err(e) => return Err(StoreError::io("linking a body")(e)),
            }
        }
    }
}
