//! Peers of protocol v0.1: the same guarantees without the protocol extensions.
//!
//! Such a store can neither look up without creating, nor publish atomically, nor order a publication after a purge; it
//! gives each client a writable file, and may lose files. Therefore:
//!
//! * a record is bounded, always has the checksum of its whole file, and is read and verified completely before it is
//!   used: a torn, empty or lost one is a miss;
//! * a writer holds a lock on the file (an open-file-description lock), and does not write to one that is deleted;
//! * a purge is an entry of the invalidation log, which is read anew at each look-up: a response that was requested before it is
//!   invalidated whenever it is published, and a log that was lost or torn is begun anew and invalidates everything.
//!
//! A look-up does not wait for another cache's fetch, and no body is adopted. A ban of another process is known here
//! once it is in the log, to which that process writes it at once.

mod file;
mod log;
mod publish;

use std::sync::Arc;

use objmapper_client::{Entry, EntryFlags, ObjUri, Tier};

use crate::core::Core;
use crate::counters::Counters;
use crate::invalidation::index::{Judged, Verdict};
use crate::lookup::finding::{Finding, Miss, MissReason, Stale};
use crate::lookup::hit::{Hit, ReadView, RecordFile};
use crate::lookup::request::Lookup;
use crate::publication::ticket::Ticket;
use crate::record::stored::Stored;
use crate::record::tail::{Kind, parse_whole};
use crate::record::vary::{Index, VaryKey};
use crate::store::Store;

/// A record that was read.
struct Candidate {
    stored: Stored,
    body: Box<[u8]>,
    uri: ObjUri<'static>,
    file_len: u64,
}

impl Lookup<'_> {
    /// Carries out the look-up with a v0.1 peer.
    pub(crate) fn run_v01(&self, core: &Arc<Core>, counters: &Counters) -> Result<Finding, MissReason> {
        let log = core.journal.current_v01()?;
        let view = ReadView::V01 { mark: log.mark() };
        let ticket = || Some(Ticket::without_lease(Arc::clone(core), self.key.clone(), view.clone()));
        let miss = |why| Ok(Finding::Miss(Miss { ticket: ticket(), why }));
        if self.refresh {
            return miss(MissReason::Refresh);
        }
        let record = match self.candidate_v01(&core.store)? {
            Ok(record) => record,
            Err(why) => {
                Counters::add(&counters.c_damaged, (why == MissReason::Damaged).into());
                return miss(why);
            }
        };
        let Stored { mark, mut head, vary, tags, .. } = record.stored;
        let digest = self.key.digest();
        let is_soft = match log.judge(Judged { mark: &mark, digest, tags: &tags }, &head, self.client) {
            Verdict::Valid => false,
            Verdict::Stale(at) => {
                head.end_freshness(at);
                true
            }
            Verdict::Invalid | Verdict::Ahead => {
                Counters::add(&counters.c_outlawed, 1);
                return miss(MissReason::Invalidated);
            }
        };
        if head.is_from_the_future(self.now) {
            return miss(MissReason::Expired);
        }
        let is_fresh = !is_soft && head.is_fresh(self.now);
        if !is_fresh && !head.in_grace(self.now) && !head.is_renewable(self.now) {
            return miss(MissReason::Expired);
        }
        let body_len = record.body.len() as u64;
        let entry = Entry {
            object: 0,
            version: 0,
            tier: Tier::Memory,
            flags: EntryFlags::FOREIGN,
            length: record.file_len,
            mtime: 0,
            expires: 0,
        };
        let record = RecordFile {
            uri: record.uri,
            entry,
            instance: [0; 16],
            file: None,
            bytes: Some(record.body),
            body_len,
            sum: None,
        };
        let hit = Hit { head, record, waited: false, is_fresh, digest, vary, mark, tags, view: view.clone() };
        if is_fresh {
            return Ok(Finding::Hit(hit));
        }
        let ticket = ticket().map(|ticket| ticket.replacing(&hit.head));
        Ok(Finding::Stale(Stale { hit, ticket }))
    }

    /// Reads the record that answers a request. The inner error is the reason of a miss; the outer one an outage.
    fn candidate_v01(&self, store: &Store) -> Result<Result<Candidate, MissReason>, MissReason> {
        let (key, uri) = (self.key, self.key.uri());
        let bytes = file::read_uri(store, uri)?;
        if bytes.is_empty() {
            return Ok(Err(MissReason::Absent));
        }
        let Some(kind) = kind_of(&bytes) else { return Ok(Err(MissReason::Damaged)) };
        if kind == Kind::Record {
            return Ok(candidate(&bytes, uri, key.text(), None));
        }
        let Some(index) = index_of(&bytes, key.text()) else { return Ok(Err(MissReason::Damaged)) };
        let mut why = MissReason::Absent;
        for vary in index.specs().iter().filter_map(|spec| spec.key(self.request).ok()) {
            let uri = store.space.uri(&[b"v", &index.variant(&vary)]);
            let bytes = file::read_uri(store, &uri)?;
            match candidate(&bytes, &uri, key.text(), Some(&vary)) {
                Ok(candidate) => return Ok(Ok(candidate)),
                Err(unusable) if !bytes.is_empty() => why = unusable,
                Err(_) => {}
            }
        }
        Ok(Err(why))
    }
}

fn kind_of(bytes: &[u8]) -> Option<Kind> {
    parse_whole(bytes).ok().map(|(trailer, ..)| trailer.kind)
}

/// Decodes the index of the key with this text; `None` if it is invalid or another file.
fn index_of(bytes: &[u8], text: &[u8]) -> Option<Index> {
    let (trailer, head, _) = parse_whole(bytes).ok()?;
    let index = Index::decode(head).ok()?;
    (trailer.kind == Kind::Vary && index.text == text).then_some(index)
}

/// Decodes the record of the key with this text, which must have a checksum of its body; or returns the reason of a
/// miss.
fn candidate(bytes: &[u8], uri: &ObjUri<'_>, text: &[u8], vary: Option<&VaryKey>) -> Result<Candidate, MissReason> {
    let damaged = |_| MissReason::Damaged;
    let (trailer, head, body) = parse_whole(bytes).map_err(damaged)?;
    let stored = Stored::decode(head, false).map_err(damaged)?;
    stored.head.validate_gzip(body.len() as u64, body.last_chunk().copied()).map_err(damaged)?;
    let ours =
        trailer.kind == Kind::Record && trailer.sum.is_some() && stored.text == text && stored.vary.as_ref() == vary;
    match () {
        () if !ours => Err(MissReason::Damaged),
        () if !stored.flags_known => Err(MissReason::Outdated),
        () => {
            Ok(Candidate { stored, body: body.into(), uri: uri.borrowed().into_owned(), file_len: bytes.len() as u64 })
        }
    }
}
