//! The bounds of the log.
//!
//! New entries are in the log's head, which is rewritten at each append, and so kept short: from [`MAX_INLINE`] bytes on
//! they are moved into a part, which never changes. When all entries reach the limit, the log is rewritten without
//! those that are superseded, and without those that no record in the store can be older than. If that does not bring it
//! below three quarters of the limit, the oldest entries are dropped, and the *floor* rises: every record that is older
//! is invalidated. The operator is told when half of the limit is in use, and when entries are dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use objmapper_client::{CommitOptions, IfVersion, ObjUri, Session, Want};

use super::read::Files;
use super::{Journal, Queued, random};
use crate::config::Notice;
use crate::invalidation::codec::LogEntry;
use crate::invalidation::entry::Invalidation;
use crate::invalidation::file::{LogFile, Part};
use crate::outage::Outage;
use crate::record::tail::{Kind, tail};

/// The most bytes of entries in the head.
const MAX_INLINE: usize = 32 << 10;
/// The bytes of entries of a part, when the log is rewritten.
const PART_LEN: usize = 512 << 10;
/// The longest time between the look-up before a fetch and the publication of its response, in seconds: a record that
/// was committed at some time is newer than the entries of so long before. A slower response is found invalidated.
const MAX_FETCH: f64 = 3600.0;
/// The least time between two walks through the records.
const SCAN_EVERY: Duration = Duration::from_secs(60);
/// Records of one step of a walk.
const SCAN_STEP: u16 = 1000;

/// A walk through the records in the store, for the oldest one.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Where the walk goes on; `None`: none is under way.
    cursor: Option<Vec<u8>>,
    /// When the walk began, seconds since 1970, or the oldest commit that it has found.
    oldest: f64,
    began: Option<Instant>,
    /// The result of the last walk: no record was committed before, seconds since 1970.
    result: Option<f64>,
}

impl Journal {
    /// Makes room for entries that will be appended to a head.
    pub(super) fn make_room(
        &self,
        files: &mut Files,
        session: &Session,
        file: &mut LogFile,
        work: &[Queued],
    ) -> Result<(), Outage> {
        let more: usize = work.iter().filter_map(|queued| queued.what.as_deref()).map(Invalidation::size_hint).sum();
        if file.len() + more as u64 > self.limit {
            self.load(files, session, file)?;
            self.rewrite(files, file)?;
        } else if file.inline_len() > MAX_INLINE {
            let entries = std::mem::take(&mut file.entries);
            self.write_part(files, file, &entries)?;
        }
        Ok(())
    }

    /// Rewrites the log without entries that are superseded, and below three quarters of its limit.
    fn rewrite(&self, files: &mut Files, file: &mut LogFile) -> Result<(), Outage> {
        let target = self.limit / 4 * 3;
        let (entries, floor) = {
            let read = self.read.read();
            let Some(read) = &*read else { return Ok(()) };
            let oldest = files.scan.result.take();
            let needless = oldest.and_then(|oldest| read.index.floor_before(oldest - MAX_FETCH));
            // The log in memory has another floor if a part was lost.
            let present = if read.index.floor > file.floor {
                (read.index.floor, read.index.floor_at)
            } else {
                (file.floor, file.floor_at)
            };
            let mut floor = needless.filter(|(seq, _)| *seq > present.0).unwrap_or(present);
            if let Some(dropped) = read.index.floor_for(target).filter(|(seq, _)| *seq > floor.0) {
                let count = read.index.entries_after(floor.0).take_while(|entry| entry.seq <= dropped.0).count() as u64;
                self.has_trimmed(count, self.limit);
                floor = dropped;
            }
            (read.index.entries_after(floor.0).cloned().collect::<Vec<_>>(), floor)
        };
        (file.floor, file.floor_at) = floor;
        file.parts.clear();
        file.entries.clear();
        let mut part = Vec::new();
        let mut len = 0;
        for entry in entries {
            len += entry.size;
            part.push(entry);
            if len >= PART_LEN {
                self.write_part(files, file, &std::mem::take(&mut part))?;
                len = 0;
            }
        }
        file.entries = part;
        if len > MAX_INLINE {
            let entries = std::mem::take(&mut file.entries);
            self.write_part(files, file, &entries)?;
        }
        Ok(())
    }

    /// Writes a part with these entries, and appends it to a head.
    fn write_part(&self, files: &mut Files, file: &mut LogFile, entries: &[Arc<LogEntry>]) -> Result<(), Outage> {
        let Some(newest) = entries.last() else { return Ok(()) };
        let len = entries.iter().map(|entry| entry.size).sum::<usize>();
        let part =
            Part { id: random()?, last: newest.seq, at: newest.at, len: u32::try_from(len).map_err(|_| Outage::Io)? };
        let bytes = tail(Kind::LogPart, part.encode(file.nonce, entries), 0, None).ok_or(Outage::Io)?;
        let options = CommitOptions { if_version: IfVersion::Any, want: Want::PIN, ..CommitOptions::default() };
        let written = self.store.put(&self.part_uri(&part), &bytes, options)?.ok_or(Outage::Io)?;
        Self::has_pinned_part(files, &part, &written);
        file.parts.push(part);
        Ok(())
    }

    pub(super) fn part_uri(&self, part: &Part) -> ObjUri<'static> {
        part.uri(&self.store.space)
    }

    /// Removes the parts that are not in `kept`.
    pub(super) fn remove_parts(&self, parts: &[Part], kept: &[Part]) {
        for part in parts.iter().filter(|part| !kept.contains(part)) {
            // If this fails, the store drops it when it needs the room and no process pins it any more.
            let _ = self.store.client.evict(&self.part_uri(part), IfVersion::Any);
        }
    }

    /// Goes on with a walk through the records, if half of the limit is in use; tells the operator when that begins.
    pub(super) fn scan_records(&self) {
        let mut files = self.file.lock();
        let len = files.known.as_ref().map_or(0, |(known, ..)| known.file.len());
        if len <= self.limit / 2 {
            self.is_filling.store(false, Ordering::Relaxed);
            files.scan.cursor = None;
            return;
        }
        // Superseded entries do not count: the next rewriting drops them.
        let live = self.read.read().as_ref().map_or(0, |read| read.index.bytes());
        if live > self.limit / 2 && !self.is_filling.swap(true, Ordering::Relaxed) && self.limit_lines.admit().is_some()
        {
            (self.store.log)(&Notice::LogFilling { bytes: live, limit: self.limit });
        }
        let scan = &mut files.scan;
        if scan.cursor.is_none() {
            if scan.began.is_some_and(|began| began.elapsed() < SCAN_EVERY) {
                return;
            }
            *scan = Scan { cursor: Some(Vec::new()), oldest: super::now(), began: Some(Instant::now()), result: None };
        }
        let Some(cursor) = &scan.cursor else { return };
        let prefix = self.store.space.prefix();
        let Ok(page) = self.store.client.list_page(&prefix, cursor, SCAN_STEP) else {
            // Without a result nothing is dropped that could be kept.
            scan.cursor = None;
            return;
        };
        let of_log = [self.uri.as_bytes().to_vec(), [&prefix[..], b"l/"].concat()];
        for (uri, entry) in &page.items {
            if !of_log.iter().any(|of_log| uri.as_bytes().starts_with(of_log)) {
                scan.oldest = scan.oldest.min(entry.mtime as f64 / 1000.0);
            }
        }
        if page.cursor.is_empty() {
            scan.cursor = None;
            scan.result = Some(scan.oldest);
        } else {
            scan.cursor = Some(page.cursor);
        }
    }
}
