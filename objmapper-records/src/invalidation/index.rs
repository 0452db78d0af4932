//! The invalidation log in memory: its entries, what supersedes what, and whether they let a record be used.
//!
//! A record has a *mark*, the nonce and the last sequence number of the log when its fetch began. It may be used if the
//! nonce is the log's, the number is at least the floor, and no later entry invalidates it. Anything that the log cannot
//! decide invalidates the record.
//!
//! A purge of a key or a tag supersedes an older one of the same, unless it is soft and the older one is hard; a ban
//! supersedes an older one with the same tests, if neither depends on its time. So a look-up costs one search for the
//! key, one for each tag of the record, and one test for each ban that is newer than the record.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::invalidation::ban::CompiledBan;
use crate::invalidation::codec::{LogEntry, put_tests};
use crate::invalidation::entry::Invalidation;
use crate::invalidation::file::LogFile;
use crate::lookup::request::RequestView;
use crate::record::head::Head;
use crate::record::stored::Mark;
use crate::regex::Regexes;

/// The newest purges of a key or a tag; 0: there is none.
#[derive(Debug, Clone, Copy, Default)]
struct Purged {
    hard: u64,
    soft: u64,
    /// The time of the soft one, seconds since 1970.
    soft_at: f64,
}

/// What a log says of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    Valid,
    /// A soft purge has made it stale at this time, seconds since 1970.
    Stale(f64),
    Invalid,
    /// The record is newer than the log that was read.
    Ahead,
}

/// The part of a record that the log judges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged<'a> {
    pub(crate) mark: &'a Mark,
    /// The digest of the record's key.
    pub(crate) digest: [u8; 32],
    pub(crate) tags: &'a [Box<[u8]>],
}

/// The entries of a log that are not superseded.
pub(crate) struct Index {
    pub(crate) nonce: [u8; 16],
    /// When the log was begun, seconds since 1970, and whether it stands for entries that were lost.
    pub(crate) began: f64,
    pub(crate) is_healed: bool,
    /// The sequence number of the newest entry that was dropped, and its time.
    pub(crate) floor: u64,
    pub(crate) floor_at: f64,
    /// The sequence number of the newest entry.
    pub(crate) last: u64,
    entries: BTreeMap<u64, Arc<LogEntry>>,
    /// The bytes that the entries take in a log.
    bytes: u64,
    keys: HashMap<[u8; 32], Purged>,
    tags: HashMap<Box<[u8]>, Purged>,
    /// The bans; `None` for an entry that invalidates everything older.
    bans: BTreeMap<u64, Option<CompiledBan>>,
    /// The sequence numbers of bans that do not depend on their time, by their encoded tests.
    timeless: HashMap<Vec<u8>, u64>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("floor", &self.floor).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Index {
    /// Makes the index of a log without entries.
    pub(crate) fn new(file: &LogFile) -> Self {
        Self {
            nonce: file.nonce,
            began: file.began,
            is_healed: file.healed.is_some(),
            floor: 0,
            floor_at: 0.0,
            last: 0,
            entries: BTreeMap::new(),
            bytes: 0,
            keys: HashMap::new(),
            tags: HashMap::new(),
            bans: BTreeMap::new(),
            timeless: HashMap::new(),
        }
    }

    /// Makes the index of a log all of whose entries are in its head.
    pub(crate) fn of(file: &LogFile, regexes: &dyn Regexes) -> Self {
        let mut index = Self::new(file);
        for entry in &file.entries {
            index.insert(Arc::clone(entry), regexes);
        }
        index.raise_floor(file.floor, file.floor_at);
        index.last = file.last;
        index
    }

    /// Returns the mark of a response that is requested from the origin now.
    pub(crate) fn mark(&self) -> Mark {
        Mark { nonce: self.nonce, seq: self.last }
    }

    /// Returns the bytes that its entries take in a log.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the entries behind a sequence number, in order.
    pub(crate) fn entries_after(&self, seq: u64) -> impl Iterator<Item = &Arc<LogEntry>> {
        self.entries.range(seq.saturating_add(1)..).map(|(_, entry)| entry)
    }

    /// Adds an entry that is newer than all others.
    pub(crate) fn insert(&mut self, entry: Arc<LogEntry>, regexes: &dyn Regexes) {
        let seq = entry.seq;
        let superseded = match &entry.what {
            Invalidation::Purge { digest, soft } => self.keys.entry(*digest).or_default().renew(&entry, *soft),
            Invalidation::Tag { tag, soft } => self.tags.entry(tag.clone()).or_default().renew(&entry, *soft),
            Invalidation::Ban(ban) => {
                self.bans.insert(seq, Some(CompiledBan::new(ban, regexes)));
                let former = ban.timeless.then(|| self.timeless.insert(tests_of(ban), seq)).flatten();
                [former, None]
            }
            Invalidation::All => {
                self.bans.insert(seq, None);
                [None, None]
            }
        };
        for superseded in superseded.into_iter().flatten() {
            self.bans.remove(&superseded);
            if let Some(entry) = self.entries.remove(&superseded) {
                self.bytes -= entry.size as u64;
            }
        }
        self.bytes += entry.size as u64;
        self.last = self.last.max(seq);
        self.entries.insert(seq, entry);
    }

    /// Drops the entries up to `floor`, the newest of which was of the time `at`.
    pub(crate) fn raise_floor(&mut self, floor: u64, at: f64) {
        if floor <= self.floor {
            return;
        }
        (self.floor, self.floor_at) = (floor, at);
        let kept = self.entries.split_off(&(floor + 1));
        for (seq, entry) in std::mem::replace(&mut self.entries, kept) {
            self.bytes -= entry.size as u64;
            match &entry.what {
                Invalidation::Purge { digest, .. } => forget(&mut self.keys, digest, seq),
                Invalidation::Tag { tag, .. } => forget(&mut self.tags, tag, seq),
                Invalidation::Ban(ban) => {
                    self.bans.remove(&seq);
                    if ban.timeless {
                        let tests = tests_of(ban);
                        if self.timeless.get(&tests) == Some(&seq) {
                            self.timeless.remove(&tests);
                        }
                    }
                }
                Invalidation::All => {
                    self.bans.remove(&seq);
                }
            }
        }
        self.last = self.last.max(floor);
    }

    /// Returns what the floor is to be, so that the entries take at most `bytes`, and its time; `None` if they do.
    pub(crate) fn floor_for(&self, bytes: u64) -> Option<(u64, f64)> {
        let mut left = self.bytes;
        let mut floor = None;
        for (seq, entry) in &self.entries {
            if left <= bytes {
                break;
            }
            left -= entry.size as u64;
            floor = Some((*seq, entry.at));
        }
        floor
    }

    /// Returns what the floor is to be, so that the oldest entry is not older than `at`, and its time; `None` if it is
    /// not.
    pub(crate) fn floor_before(&self, at: f64) -> Option<(u64, f64)> {
        self.entries.values().take_while(|entry| entry.at < at).last().map(|entry| (entry.seq, entry.at))
    }

    /// Judges a record with this head for a request.
    pub(crate) fn judge(&self, judged: Judged<'_>, head: &Head, request: &dyn RequestView) -> Verdict {
        let verdict = self.judge_purges(judged);
        if matches!(verdict, Verdict::Invalid | Verdict::Ahead) {
            return verdict;
        }
        let is_match = |ban: &Option<CompiledBan>| ban.as_ref().is_none_or(|ban| ban.matches(head, request));
        let mut newer = self.bans.range(judged.mark.seq.saturating_add(1)..).rev();
        if newer.any(|(_, ban)| is_match(ban)) { Verdict::Invalid } else { verdict }
    }

    /// Judges a record by the purges of its key and its tags, and not by bans.
    pub(crate) fn judge_purges(&self, judged: Judged<'_>) -> Verdict {
        let mark = judged.mark;
        if mark.nonce != self.nonce || mark.seq < self.floor {
            return Verdict::Invalid;
        }
        if mark.seq > self.last {
            return Verdict::Ahead;
        }
        let by_tags = judged.tags.iter().filter_map(|tag| self.tags.get(tag));
        let mut stale: Option<f64> = None;
        for purged in self.keys.get(&judged.digest).into_iter().chain(by_tags) {
            if purged.hard > mark.seq {
                return Verdict::Invalid;
            }
            if purged.soft > mark.seq {
                stale = Some(stale.map_or(purged.soft_at, |at| at.min(purged.soft_at)));
            }
        }
        stale.map_or(Verdict::Valid, Verdict::Stale)
    }
}

impl Purged {
    /// Notes a newer purge. Returns the sequence numbers of those that it supersedes.
    fn renew(&mut self, entry: &LogEntry, soft: bool) -> [Option<u64>; 2] {
        let former = |seq: u64| (seq > 0).then_some(seq);
        if soft {
            self.soft_at = entry.at;
            return [former(std::mem::replace(&mut self.soft, entry.seq)), None];
        }
        [former(std::mem::replace(&mut self.hard, entry.seq)), former(std::mem::take(&mut self.soft))]
    }
}

/// Forgets a dropped purge.
fn forget<K: std::hash::Hash + Eq + std::borrow::Borrow<Q>, Q: std::hash::Hash + Eq + ?Sized>(
    purges: &mut HashMap<K, Purged>,
    key: &Q,
    seq: u64,
) {
    let Some(purged) = purges.get_mut(key) else { return };
    for kept in [&mut purged.hard, &mut purged.soft] {
        if *kept == seq {
            *kept = 0;
        }
    }
    if purged.hard == 0 && purged.soft == 0 {
        purges.remove(key);
    }
}

fn tests_of(ban: &objmapper_ban::Ban) -> Vec<u8> {
    let mut tests = Vec::new();
    put_tests(&mut tests, &ban.tests);
    tests
}
