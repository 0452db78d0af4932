//! The invalidation log as a program reads it that only looks: what it says of a record, and which entry says so.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::invalidation::codec::LogEntry;
use crate::invalidation::entry::Invalidation;
use crate::invalidation::file::LogFile;
use crate::invalidation::index::{Index, Judged, Verdict};
use crate::lookup::request::RequestView;
use crate::record::head::Head;
use crate::regex::Regexes;

/// A log that has been read.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) head: LogFile,
    /// All entries, those of the parts included, in order.
    pub(crate) entries: Vec<Arc<LogEntry>>,
    /// The floor, above which all entries are there, and its time.
    pub(crate) floor: (u64, f64),
}

/// What a log says of a record.
#[derive(Debug, PartialEq)]
pub(crate) enum Statement {
    Valid,
    /// Soft purges have ended its freshness at this time, seconds since 1970. The text says which entry did.
    Stale(f64, String),
    /// It is invalidated. The text says why.
    Invalid(String),
}

impl Snapshot {
    /// Makes the index of these entries.
    fn index<'a>(&self, entries: impl Iterator<Item = &'a Arc<LogEntry>>, regexes: &dyn Regexes) -> Index {
        let mut index = Index::new(&self.head);
        for entry in entries {
            index.insert(Arc::clone(entry), regexes);
        }
        index.raise_floor(self.floor.0, self.floor.1);
        index.last = index.last.max(self.head.last);
        index
    }

    /// Returns what it says of a record for a request.
    pub(crate) fn judge(
        &self,
        judged: Judged<'_>,
        head: &Head,
        request: &dyn RequestView,
        regexes: &dyn Regexes,
    ) -> Statement {
        let verdict = self.index(self.entries.iter(), regexes).judge(judged, head, request);
        if verdict == Verdict::Valid {
            return Statement::Valid;
        }
        if judged.mark.nonce != self.head.nonce {
            return Statement::Invalid(
                "the invalidation log was lost and begun anew after it was published".to_owned(),
            );
        }
        if judged.mark.seq < self.floor.0 {
            return Statement::Invalid("it is older than invalidations that are no longer in the log".to_owned());
        }
        // The same verdict with one entry alone is that entry's.
        let is_the_cause = |entry: &&Arc<LogEntry>| {
            entry.seq > judged.mark.seq
                && self.index(std::iter::once(*entry), regexes).judge(judged, head, request) == verdict
        };
        let cause = self.entries.iter().rev().find(is_the_cause).map(|entry| describe(entry));
        match verdict {
            Verdict::Stale(at) => Statement::Stale(at, cause.unwrap_or_else(|| "soft purges".to_owned())),
            Verdict::Ahead => Statement::Invalid("it is newer than the invalidation log".to_owned()),
            _ => Statement::Invalid(cause.unwrap_or_else(|| "the invalidation log".to_owned())),
        }
    }
}

/// Names an entry, with its time.
fn describe(entry: &LogEntry) -> String {
    let kind = |soft: bool| if soft { "soft purge" } else { "purge" };
    let what = match &entry.what {
        Invalidation::Ban(ban) => format!("ban {ban}"),
        Invalidation::Purge { soft, .. } => format!("{} of its key", kind(*soft)),
        Invalidation::Tag { tag, soft } => format!("{} of its tag {}", kind(*soft), tag.escape_ascii()),
        Invalidation::All => "an entry of a newer version".to_owned(),
    };
    // The cast saturates, and 9999 is the last year that a date expresses.
    let time = UNIX_EPOCH + Duration::from_secs((entry.at as u64).min(253_402_300_799));
    format!("{what}, made {}", httpdate::fmt_http_date(time))
}
