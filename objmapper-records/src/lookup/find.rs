//! Looking up in a store with extensions.
//!
//! In this order: the key's fence is loaded, the invalidation log is read, the key is looked up with a request for a
//! lease, an index leads to a variant, and the record is opened and validated. A fresh record that the log allows is a
//! hit. One that is stale, by its age or by a soft purge, leads to its renewal, which has a lease of its own. A record
//! that is damaged, expired or invalidated is removed, and the look-up begins again.
//!
//! Because the fence and the log are older than the record, a purge or a ban that comes later is noticed: by
//! `Hit::still_valid` before the delivery, and by the commit of what the ticket publishes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use objmapper_client::{ConnectionState, Entry, Fence, Lease, Leased, ObjUri, Session, Want};

use crate::core::Core;
use crate::counters::Counters;
use crate::invalidation::index::{Judged, Verdict};
use crate::invalidation::journal::{Position, Unknown};
use crate::lookup::fetch_token;
use crate::lookup::finding::{Finding, Miss, MissReason, Stale};
use crate::lookup::hit::{Hit, ReadView, RecordFile};
use crate::lookup::request::Lookup;
use crate::outage::Outage;
use crate::publication::ticket::{RECORD_GONE, Renews, Ticket};
use crate::record::bytes::Malformed;
use crate::record::head::Head;
use crate::record::reading::{Opened, Unreadable};
use crate::record::stored::{Mark, Stored, Target};
use crate::record::tail::Kind;
use crate::record::vary::{Index, VaryKey};

/// Attempts of a look-up: it begins again when a record that it found is gone.
const ROUNDS: usize = 8;

/// A look-up under way.
struct Search<'a> {
    core: &'a Arc<Core>,
    lookup: &'a Lookup<'a>,
    counters: &'a Counters,
    session: Arc<Session>,
    /// The key's fence, loaded before anything was looked up.
    fence: Fence,
    position: Position,
    /// Until when to wait for another cache's fetch; `None`: not at all.
    wait_until: Option<Instant>,
    /// True if the look-up waited for another cache's fetch; `waited_last`: in the last call, so that what was read
    /// before it may have changed.
    waited: bool,
    waited_last: bool,
    /// The reason, if the look-up ends as a miss.
    why: MissReason,
}

#[expect(clippy::large_enum_variant, reason = "one for a request, for a moment")]
enum Step {
    Done(Finding),
    /// A record was removed or replaced: look up again.
    Again,
}

/// A record that was found.
struct Candidate<'a> {
    uri: &'a ObjUri<'static>,
    entry: Entry,
    opened: Opened,
    stored: Stored,
    /// True if the key has an index.
    indexed: bool,
}

/// The state of a record that the invalidation log judges: the record's own, or that of its renewal.
struct State {
    head: Head,
    mark: Mark,
    tags: Vec<Box<[u8]>>,
}

/// Whether a record may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freshness {
    Fresh,
    Stale,
    Invalid,
}

impl From<Outage> for MissReason {
    fn from(outage: Outage) -> Self {
        Self::Outage(outage)
    }
}

fn miss(why: MissReason) -> Step {
    Step::Done(Finding::Miss(Miss { ticket: None, why }))
}

impl From<Unknown> for MissReason {
    fn from(why: Unknown) -> Self {
        match why {
            Unknown::Pending => Self::BansPending,
            Unknown::Outage(outage) => Self::Outage(outage),
        }
    }
}

impl Lookup<'_> {
    /// Carries out the look-up.
    pub(crate) fn run(&self, core: &Arc<Core>, counters: &Counters) -> Finding {
        let finding = if !core.store.client.is_up() {
            Err(MissReason::Outage(Outage::Down))
        } else if let ConnectionState::V01 { .. } = core.store.client.state() {
            self.run_v01(core, counters)
        } else {
            Search::run(core, self, counters)
        };
        let finding = finding.unwrap_or_else(|why| Finding::Miss(Miss { ticket: None, why }));
        match &finding {
            Finding::Hit(hit) => {
                Counters::add(&counters.c_hits, 1);
                Counters::add(&counters.c_waited, hit.waited.into());
            }
            Finding::Stale(_) => {}
            Finding::Miss(miss) => {
                Counters::add(&counters.c_misses, 1);
                match miss.why {
                    MissReason::Uncacheable(_) => Counters::add(&counters.c_refused, 1),
                    MissReason::Waited => Counters::add(&counters.c_wait_timeout, 1),
                    MissReason::Held => Counters::add(&counters.c_not_waited, 1),
                    MissReason::BansPending => Counters::add(&counters.c_bans_pending, 1),
                    MissReason::Outage(outage) => counters.outage(outage),
                    _ => {}
                }
            }
        }
        finding
    }
}

impl<'a> Search<'a> {
    fn run(core: &'a Arc<Core>, lookup: &'a Lookup<'a>, counters: &'a Counters) -> Result<Finding, MissReason> {
        let session = core.store.session()?;
        let fence = session.board().ok_or(Outage::Protocol)?.fence(lookup.key.uri());
        let position = core.journal.current(&session)?;
        // The fetch of another cache: its look-up holds the lease that this one would wait for, or has waited for it.
        let is_fetch = lookup.token.is_some_and(|token| {
            let host = lookup.client.header(b"Host").unwrap_or_default();
            fetch_token::verify(&position.mark.nonce, token, host, lookup.client.url(), lookup.now)
        });
        let wait_until = (!is_fetch && !lookup.wait.is_zero()).then(|| Instant::now() + lookup.wait);
        let mut search = Search {
            core,
            lookup,
            counters,
            session,
            fence,
            position,
            wait_until,
            waited: false,
            waited_last: false,
            why: if lookup.refresh { MissReason::Refresh } else { MissReason::Absent },
        };
        for _ in 0..ROUNDS {
            if let Step::Done(finding) = search.look_at_key()? {
                return Ok(finding);
            }
        }
        Err(MissReason::Busy)
    }
}

impl Search<'_> {
    /// Requests a lease, first without waiting, so that a store that does not answer costs the deadline of a call and
    /// not the time to wait too.
    fn lease(&mut self, uri: &ObjUri<'_>) -> Result<Leased, MissReason> {
        let lease = |wait| {
            let leased = self.core.store.client.lease(uri, wait, self.lookup.hold, Want::ENTRY);
            leased.map_err(|why| MissReason::from(Outage::from(&why)))
        };
        let leased = lease(Duration::ZERO)?;
        let began = Instant::now();
        let wait = self.wait_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(began));
        self.waited_last = matches!(leased, Leased::TimedOut) && !wait.is_zero() && !self.lookup.refresh;
        if !self.waited_last {
            return Ok(leased);
        }
        Counters::add(&self.counters.g_waiting, 1);
        let leased = lease(wait);
        Counters::sub(&self.counters.g_waiting, 1);
        // A grant and a refusal count as well: a record that replaces the one to be renewed is at another URI.
        self.waited |= matches!(leased, Ok(Leased::Present(_) | Leased::Granted(_) | Leased::Refused { .. }));
        Counters::add(&self.counters.t_wait_us, began.elapsed().as_micros() as u64);
        leased
    }

    /// Returns the reason of a miss without a lease.
    fn why_not_granted(&self) -> MissReason {
        if self.wait_until.is_some() { MissReason::Waited } else { MissReason::Held }
    }

    /// Opens a record. `None`: it was gone, or was damaged and has been removed.
    fn open(&mut self, uri: &ObjUri<'_>, entry: &Entry) -> Result<Option<Opened>, MissReason> {
        match Opened::new(&self.session, entry) {
            Ok(opened) => Ok(Some(opened)),
            Err(why) => self.unreadable(uri, entry, why).map(|()| None),
        }
    }

    fn unreadable(&mut self, uri: &ObjUri<'_>, entry: &Entry, why: Unreadable) -> Result<(), MissReason> {
        match why {
            Unreadable::Gone => Ok(()),
            Unreadable::Damaged(why) => self.damaged(uri, entry, why),
            Unreadable::Outage(outage) => Err(outage.into()),
        }
    }

    fn damaged(&mut self, uri: &ObjUri<'_>, entry: &Entry, why: Malformed) -> Result<(), MissReason> {
        self.why = MissReason::Damaged;
        Ok(self.core.store.discard(uri, entry.version, why, self.counters)?)
    }

    fn remove(&mut self, uri: &ObjUri<'_>, entry: &Entry, why: MissReason) -> Result<Step, MissReason> {
        if why == MissReason::Invalidated {
            Counters::add(&self.counters.c_outlawed, 1);
        }
        self.why = why;
        self.core.store.evict(uri, entry.version)?;
        Ok(Step::Again)
    }

    fn ticket(&self, lease: Lease, indexed: bool, base: u64, renews: Option<Renews>) -> Result<Ticket, MissReason> {
        // The origin has not been asked yet, so that the present fence is valid. It is newer than the first one, and
        // meets fewer conflicts.
        let fence = self.session.board().ok_or(Outage::Protocol)?.fence(self.lookup.key.uri());
        Ok(Ticket::new(Arc::clone(self.core), self.lookup.key.clone(), lease, self.view(fence), indexed, base, renews))
    }

    /// Ends a refresh as a miss. `record` is the record that was found, if any.
    fn refresh(
        &self,
        lease: Option<Lease>,
        indexed: bool,
        record: Option<(&ObjUri<'static>, &Entry, &Head)>,
    ) -> Result<Step, MissReason> {
        let fence = self.session.board().ok_or(Outage::Protocol)?.fence(self.lookup.key.uri());
        let ticket = Ticket::without_lease(Arc::clone(self.core), self.lookup.key.clone(), self.view(fence));
        let found = record.map(|(uri, entry, _)| (uri.clone(), entry.version));
        let mut ticket = ticket.for_refresh(lease, indexed, found);
        if let Some((.., head)) = record {
            ticket = ticket.replacing(head);
        }
        Ok(Step::Done(Finding::Miss(Miss { ticket: Some(ticket), why: self.why })))
    }

    fn view(&self, fence: Fence) -> ReadView {
        ReadView::Board { session: Arc::clone(&self.session), fence, position: self.position }
    }

    /// Judges a record by the invalidation log and by its age. A soft purge shortens the head's ttl.
    fn judge(&mut self, judged: &mut State) -> Result<Freshness, MissReason> {
        let by_log = |judged: &State| {
            let State { mark, tags, head } = judged;
            let judged = Judged { mark, digest: self.lookup.key.digest(), tags };
            self.core.journal.judge(judged, head, self.lookup.client)
        };
        let mut verdict = by_log(judged);
        if verdict == Verdict::Ahead {
            // The look-up has waited for a response that was requested after the log was read.
            self.position = self.core.journal.current(&self.session)?;
            verdict = by_log(judged);
        }
        Ok(match verdict {
            Verdict::Valid if judged.head.is_fresh(self.lookup.now) => Freshness::Fresh,
            Verdict::Valid => Freshness::Stale,
            Verdict::Stale(at) => {
                judged.head.end_freshness(at);
                Freshness::Stale
            }
            Verdict::Invalid | Verdict::Ahead => Freshness::Invalid,
        })
    }

    fn look_at_key(&mut self) -> Result<Step, MissReason> {
        let uri = self.lookup.key.uri();
        match self.lease(uri)? {
            Leased::Granted(lease) if self.lookup.refresh => self.refresh(Some(lease), false, None),
            Leased::Refused { .. } | Leased::TimedOut if self.lookup.refresh => self.refresh(None, false, None),
            Leased::Granted(lease) => {
                let ticket = Some(self.ticket(lease, false, 0, None)?);
                Ok(Step::Done(Finding::Miss(Miss { ticket, why: self.why })))
            }
            Leased::Refused { retry } => Ok(miss(MissReason::Uncacheable(retry))),
            Leased::TimedOut => Ok(miss(self.why_not_granted())),
            Leased::Present(found) => {
                let entry = found.entry;
                let Some(opened) = self.open(uri, &entry)? else { return Ok(Step::Again) };
                match opened.kind() {
                    Kind::Record => self.look_at_record(uri, entry, opened, None),
                    Kind::Vary => self.look_at_index(entry, &opened),
                    _ => self.damaged(uri, &entry, Malformed("kind")).map(|()| Step::Again),
                }
            }
        }
    }

    fn look_at_index(&mut self, at_key: Entry, opened: &Opened) -> Result<Step, MissReason> {
        let key = self.lookup.key;
        let index = match Index::decode(opened.head()) {
            Ok(index) if index.text == key.text() => index,
            other => {
                let why = other.err().unwrap_or(Malformed("text"));
                return self.damaged(key.uri(), &at_key, why).map(|()| Step::Again);
            }
        };
        // A request whose headers exceed the limits has no variant.
        let keys: Vec<VaryKey> = index.specs().iter().filter_map(|spec| spec.key(self.lookup.request).ok()).collect();
        let variants: Vec<_> = keys.iter().map(|key| self.core.store.space.uri(&[b"v", &index.variant(key)])).collect();
        let mut chosen = 0;
        if variants.len() > 1 {
            for (i, uri) in variants.iter().enumerate() {
                let found = self.core.store.client.lookup(uri, Want::ENTRY).map_err(|why| Outage::from(&why))?;
                if found.is_some() {
                    chosen = i;
                    break;
                }
            }
        }
        let (Some(uri), Some(vary)) = (variants.get(chosen), keys.get(chosen)) else {
            return Ok(miss(MissReason::Absent));
        };
        match self.lease(uri)? {
            Leased::Granted(lease) if self.lookup.refresh => self.refresh(Some(lease), true, None),
            Leased::Refused { .. } | Leased::TimedOut if self.lookup.refresh => self.refresh(None, true, None),
            Leased::Granted(lease) => {
                if self.waited_last && !self.is_there(key.uri(), &at_key)? {
                    // The former holder of the lease has published something else.
                    return Ok(Step::Again);
                }
                let ticket = Some(self.ticket(lease, true, at_key.version, None)?);
                Ok(Step::Done(Finding::Miss(Miss { ticket, why: self.why })))
            }
            Leased::Refused { retry } => Ok(miss(MissReason::Uncacheable(retry))),
            Leased::TimedOut => Ok(miss(self.why_not_granted())),
            Leased::Present(found) => {
                let entry = found.entry;
                let Some(opened) = self.open(uri, &entry)? else { return Ok(Step::Again) };
                if opened.kind() != Kind::Record {
                    return self.damaged(uri, &entry, Malformed("kind")).map(|()| Step::Again);
                }
                self.look_at_record(uri, entry, opened, Some(vary))
            }
        }
    }

    fn is_there(&self, uri: &ObjUri<'_>, entry: &Entry) -> Result<bool, MissReason> {
        let found = self.core.store.client.lookup(uri, Want::ENTRY).map_err(|why| Outage::from(&why))?;
        Ok(found.is_some_and(|found| found.entry.version == entry.version))
    }

    fn look_at_record(
        &mut self,
        uri: &ObjUri<'static>,
        entry: Entry,
        opened: Opened,
        vary: Option<&VaryKey>,
    ) -> Result<Step, MissReason> {
        let stored = match Stored::decode(opened.head(), false) {
            Ok(stored) if stored.text == self.lookup.key.text() && stored.vary.as_ref() == vary => stored,
            other => {
                let why = other.err().unwrap_or(Malformed("text"));
                return self.damaged(uri, &entry, why).map(|()| Step::Again);
            }
        };
        if self.lookup.refresh {
            return self.refresh(None, vary.is_some(), Some((uri, &entry, &stored.head)));
        }
        if !stored.flags_known {
            return self.remove(uri, &entry, MissReason::Outdated);
        }
        if stored.head.is_from_the_future(self.lookup.now) {
            return self.remove(uri, &entry, MissReason::Expired);
        }
        let mut state = State { head: stored.head.clone(), mark: stored.mark, tags: stored.tags.clone() };
        let candidate = Candidate { uri, entry, opened, stored, indexed: vary.is_some() };
        match self.judge(&mut state)? {
            Freshness::Fresh => {
                let hit = self.hit(candidate, state, true)?;
                Ok(hit.map_or(Step::Again, |hit| Step::Done(Finding::Hit(hit))))
            }
            // Its renewal may be newer than what has invalidated it.
            Freshness::Invalid if candidate.stored.head.is_fresh(self.lookup.now) => {
                self.remove(uri, &entry, MissReason::Invalidated)
            }
            freshness => self.look_at_renewal(candidate, state, freshness),
        }
    }

    fn is_usable_stale(&self, head: &Head) -> bool {
        head.in_grace(self.lookup.now) || head.is_renewable(self.lookup.now)
    }

    /// Continues with a record that is not fresh: uses its renewal, waits for one, or returns the ticket to renew it.
    fn look_at_renewal(
        &mut self,
        record: Candidate<'_>,
        mut state: State,
        mut freshness: Freshness,
    ) -> Result<Step, MissReason> {
        let (uri, entry) = (record.uri, record.entry);
        let target = Target { object: entry.object, version: entry.version };
        let renewal_uri = target.renewal_uri(&self.core.store.space, uri);
        for _ in 0..ROUNDS {
            match self.lease(&renewal_uri)? {
                Leased::Present(found) => {
                    let Some(opened) = self.open(&renewal_uri, &found.entry)? else { continue };
                    let renewed = match Stored::decode(opened.head(), true) {
                        Ok(renewed) if !renewed.flags_known => {
                            self.core.store.evict(&renewal_uri, found.entry.version)?;
                            continue;
                        }
                        Ok(renewed)
                            if opened.kind() == Kind::Renewal
                                && renewed.target == Some(target)
                                && renewed.text == record.stored.text
                                && renewed.vary == record.stored.vary =>
                        {
                            renewed
                        }
                        other => {
                            let why = other.err().unwrap_or(Malformed("target"));
                            self.damaged(&renewal_uri, &found.entry, why)?;
                            continue;
                        }
                    };
                    if renewed.head.is_from_the_future(self.lookup.now) {
                        self.core.store.evict(&renewal_uri, found.entry.version)?;
                        continue;
                    }
                    state = State { head: renewed.head, mark: renewed.mark, tags: renewed.tags };
                    freshness = self.judge(&mut state)?;
                    if freshness == Freshness::Fresh {
                        let hit = self.hit(record, state, true)?;
                        return Ok(hit.map_or(Step::Again, |hit| Step::Done(Finding::Hit(hit))));
                    }
                    // The renewal's head is read, and cannot be used as fresh either. Once it is removed, a look-up can be granted
                    // the lease for the next one.
                    self.core.store.evict(&renewal_uri, found.entry.version)?;
                }
                Leased::Granted(lease) => {
                    if self.waited_last && !self.is_there(uri, &entry)? {
                        return Ok(Step::Again);
                    }
                    if freshness == Freshness::Invalid {
                        return self.remove(uri, &entry, MissReason::Invalidated);
                    }
                    if !self.is_usable_stale(&state.head) {
                        return self.remove(uri, &entry, MissReason::Expired);
                    }
                    let vary = record.stored.vary.clone();
                    let (base, indexed) = (entry.version, record.indexed);
                    let Some(hit) = self.hit(record, state, false)? else { return Ok(Step::Again) };
                    let renews = Renews { target, vary, record_uri: uri.clone(), uri: renewal_uri };
                    let ticket = self.ticket(lease, indexed, base, Some(renews))?.replacing(&hit.head);
                    return Ok(Step::Done(Finding::Stale(Stale { hit, ticket: Some(ticket) })));
                }
                not_granted => {
                    let why = match not_granted {
                        Leased::Refused { retry } if retry <= RECORD_GONE => return Ok(Step::Again),
                        Leased::Refused { retry } => MissReason::Uncacheable(retry),
                        _ => self.why_not_granted(),
                    };
                    if freshness == Freshness::Invalid || !self.is_usable_stale(&state.head) {
                        return Ok(miss(why));
                    }
                    let hit = self.hit(record, state, false)?;
                    return Ok(hit.map_or(Step::Again, |hit| Step::Done(Finding::Stale(Stale { hit, ticket: None }))));
                }
            }
        }
        Err(MissReason::Busy)
    }

    /// Makes a hit of a record. `None`: its body does not validate, and the record was removed.
    fn hit(&mut self, record: Candidate<'_>, state: State, is_fresh: bool) -> Result<Option<Hit>, MissReason> {
        let Candidate { uri, entry, opened, stored: Stored { vary, .. }, .. } = record;
        let State { head, mark, tags } = state;
        let instance = self.session.instance().0;
        let body_len = opened.trailer.body_len;
        let checked = match &head.gzip_bits {
            Some(_) => opened.last_bytes().and_then(|last| Ok(head.validate_gzip(body_len, last)?)),
            None => Ok(()),
        };
        if let Err(why) = checked {
            return self.unreadable(uri, &entry, why).map(|()| None);
        }
        let adopted = self.lookup.adopts.is_some_and(|a| a.instance == instance && body_len >= a.from);
        if adopted && self.lookup.adopts.is_some_and(|a| (a.is_unreadable)(instance, entry.object)) {
            return self.damaged(uri, &entry, Malformed("file: it cannot be read")).map(|()| None);
        }
        let bytes = if adopted || body_len > RecordFile::READ_LIMIT {
            None
        } else {
            match opened.body() {
                Ok(body) => Some(body),
                Err(why) => return self.unreadable(uri, &entry, why).map(|()| None),
            }
        };
        let sum = opened.trailer.sum;
        let file = if bytes.is_some() { None } else { Some(opened.file) };
        let record = RecordFile { uri: uri.clone(), entry, instance, file, bytes, body_len, sum };
        let (waited, digest, view) = (self.waited, self.lookup.key.digest(), self.view(self.fence));
        Ok(Some(Hit { head, record, waited, is_fresh, digest, vary, mark, tags, view }))
    }
}
