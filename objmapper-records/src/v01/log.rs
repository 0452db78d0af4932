//! The invalidation log in a v0.1 store: one file, rewritten in place under its lock, read anew each time.

use std::sync::Arc;
use std::time::Instant;

use super::file::{Locked, get, read};
use crate::config::Notice;
use crate::invalidation::codec::LogEntry;
use crate::invalidation::entry::Invalidation;
use crate::invalidation::file::{LogFile, Unusable};
use crate::invalidation::index::Index;
use crate::invalidation::journal::{Journal, Unknown};
use crate::outage::Outage;
use crate::record::head::Summer;
use crate::record::tail::{Kind, MAX_TAIL, TRAILER_LEN, parse_whole, tail};

/// Attempts to change the log while its file is deleted or replaced.
const ROUNDS: usize = 8;
/// The most bytes of entries: the log is one file.
const MAX_LEN: u64 = (MAX_TAIL - TRAILER_LEN - (128 << 10)) as u64;

impl Journal {
    /// `None`: it is damaged or absent.
    fn parse_v01(&self, bytes: &[u8]) -> Result<Option<LogFile>, Outage> {
        let Ok((trailer, head, _)) = parse_whole(bytes) else { return Ok(None) };
        if trailer.kind != Kind::Log {
            return Ok(None);
        }
        match LogFile::decode(head, &self.store.space.prefix()) {
            Ok(file) => Ok(Some(file)),
            Err(Unusable::Damaged(_)) => Ok(None),
            Err(Unusable::Newer(version)) => {
                self.log_newer(version);
                Err(Outage::Protocol)
            }
        }
    }

    /// Returns the log, with all that this process has appended.
    pub(crate) fn current_v01(&self) -> Result<Index, Unknown> {
        let deadline = Instant::now() + self.store.call_timeout;
        self.wait_own(deadline)?;
        let bytes = read(&get(&self.store, &self.uri)?)?;
        let file = match self.parse_v01(&bytes)? {
            Some(file) => file,
            // Another process may be writing it: it is read again under the lock.
            None => self.change_v01(deadline, |_| ())?,
        };
        Ok(Index::of(&file, &*self.regexes))
    }

    /// Appends entries, each with its time, to the log, which is begun anew if it was lost.
    pub(crate) fn append_v01(&self, entries: &[(f64, Arc<Invalidation>)]) -> Result<(), Outage> {
        let deadline = Instant::now() + self.store.call_timeout;
        let append = |file: &mut LogFile| {
            let mut index = Index::of(file, &*self.regexes);
            for (at, what) in entries {
                let entry = LogEntry::new(index.last + 1, *at, self.origin, (**what).clone());
                index.insert(Arc::new(entry), &*self.regexes);
            }
            if let Some((floor, at)) = index.floor_for(self.limit.min(MAX_LEN)) {
                let dropped = index.entries_after(0).take_while(|entry| entry.seq <= floor).count() as u64;
                self.has_trimmed(dropped, self.limit.min(MAX_LEN));
                index.raise_floor(floor, at);
            }
            (file.floor, file.floor_at, file.last) = (index.floor, index.floor_at, index.last);
            file.entries = index.entries_after(0).cloned().collect();
        };
        self.change_v01(deadline, append).map(|_| ())
    }

    fn change_v01(&self, deadline: Instant, change: impl Fn(&mut LogFile)) -> Result<LogFile, Outage> {
        // A log that was written, and lost before another process could read it, is written again unchanged.
        let mut lost = None;
        for _ in 0..ROUNDS {
            let object = get(&self.store, &self.uri)?;
            let Some(locked) = Locked::new(&object, deadline)? else { continue };
            let former = self.parse_v01(&locked.read()?)?;
            let file = match (former.clone(), lost.take()) {
                (None, Some(file)) => file,
                (there, _) => {
                    let is_new = there.is_none();
                    let mut file = match there {
                        Some(file) => file,
                        None => self.new_file()?,
                    };
                    if is_new {
                        (self.store.log)(&Notice::LogReset("there was no invalidation log".into()));
                    }
                    change(&mut file);
                    file
                }
            };
            if former.as_ref() == Some(&file) {
                return Ok(file);
            }
            let bytes = tail(Kind::Log, file.encode(), 0, Some(Summer::new().sum())).ok_or(Outage::Io)?;
            locked.write(&bytes)?;
            if locked.is_found(&self.store, &self.uri, bytes.len())? {
                return Ok(file);
            }
            lost = Some(file);
        }
        Err(Outage::Io)
    }
}
