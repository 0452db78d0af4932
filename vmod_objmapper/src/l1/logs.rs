//! Which logs this process follows. Several second levels may have the same log (store and prefix), with other deadlines or tags: each
//! is given the entries of other processes, and each entry is applied once.
//!
//! A second level ends some time after its last director. What others append until the next one begins is made up for then: it is given
//! the entries since the end, and a little before, or is told that some are lost.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use objmapper_records::{Entry, Follower};
use parking_lot::Mutex;
use varnishd::clock;

use super::follower;
use crate::store_address::StoreAddress;

/// Store and prefix.
pub(crate) type Log = (StoreAddress, Vec<u8>);

/// Seconds before the end of a second level whose entries are given again, since its last ones may not have been given.
const MARGIN: f64 = 60.0;
/// Entries by which those of another second level of the same log are recognised.
const REMEMBERED: usize = 4096;

static LOGS: Mutex<Option<HashMap<Log, Arc<Following>>>> = Mutex::new(None);

/// Applies the entries of one log.
#[derive(Debug, Default)]
pub(crate) struct Following {
    /// Whether a director wishes that they be applied.
    wanted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    links: usize,
    /// When the last link ended, seconds since 1970.
    ended: Option<f64>,
    /// Number and time of the entries of late.
    recent: VecDeque<(u64, u64)>,
}

impl Follower for Following {
    fn apply(&self, entries: &[Entry]) {
        if !self.wanted.load(Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let State { recent, .. } = &mut *state;
        let new: Vec<Entry> = entries
            .iter()
            .filter(|entry| {
                let name = (entry.seq, entry.at.to_bits());
                let is_new = !recent.contains(&name);
                if is_new {
                    if recent.len() == REMEMBERED {
                        recent.pop_front();
                    }
                    recent.push_back(name);
                }
                is_new
            })
            .cloned()
            .collect();
        drop(state);
        follower::push(&new);
    }
}

/// A second level's use of a log. To be dropped when the second level has ended.
#[derive(Debug)]
pub(crate) struct Link {
    following: Arc<Following>,
    since: Option<f64>,
}

impl Link {
    /// Begins to follow a log.
    pub(crate) fn begin(log: &Log) -> Link {
        let following = LOGS.lock().get_or_insert_default().entry(log.clone()).or_default().clone();
        let since = {
            let mut state = following.state.lock();
            state.links += 1;
            state.ended.take().map(|ended| ended - MARGIN)
        };
        Link { following, since }
    }

    /// What the second level tells.
    pub(crate) fn follower(&self) -> Arc<dyn Follower> {
        self.following.clone()
    }

    /// Since when entries are of interest; `None`: from now on.
    pub(crate) fn since(&self) -> Option<f64> {
        self.since
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.following.state.lock();
        state.links -= 1;
        if state.links == 0 {
            state.ended = Some(clock::now());
        }
    }
}

/// Notes whether the director that is being made wishes that entries be applied. The wish of the last one holds, also when it
/// is gone: what it had cached may still be served.
pub(crate) fn wish(log: &Log, wanted: bool) {
    LOGS.lock().get_or_insert_default().entry(log.clone()).or_default().wanted.store(wanted, Release);
}
