//! The right to fetch from the origin and to publish the response.
//!
//! A ticket holds a lease on the URI that other look-ups wait for: the key's, a variant's, or a renewal's. It has none
//! with a v0.1 peer, and may have none for a refresh. It ends in one way: published ([`Ticket::writer`],
//! [`Ticket::seal`], [`Ticket::renew`]), refused ([`Ticket::refuse`], [`Ticket::refuse_error`]), or dropped, after
//! which the next waiting look-up is granted the lease. Each publication is committed under the fence (v0.1: the mark
//! in the invalidation log) that was read before the fetch, so that a response which was requested before a purge is
//! never published after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use objmapper_client::{IfVersion, Lease, Leased, ObjUri, Published, Want};

use crate::core::Core;
use crate::counters::Counters;
use crate::invalidation::tags::tags_of;
use crate::lookup::hit::{Hit, ReadView};
use crate::lookup::request::RequestView;
use crate::outage::Outage;
use crate::publication::draft::{Destination, Draft};
use crate::publication::outcome::Outcome;
use crate::record::head::{BodySum, Head};
use crate::record::key::Key;
use crate::record::origin::OriginHead;
use crate::record::stored::{Stored, Target};
use crate::record::tail::MAX_V01_BODY;
use crate::record::vary::{Spec, VaryKey};

/// How long the lease on a renewal is refused when its record is gone or was replaced. This wakes all callers that wait
/// for the renewal; they look up the key again, and so do callers that request the lease within that time.
pub(crate) const RECORD_GONE: Duration = Duration::from_millis(1);

/// The record that a ticket may renew. The ticket's lease is on the renewal's URI.
#[derive(Debug)]
pub(crate) struct Renews {
    pub(crate) target: Target,
    pub(crate) vary: Option<VaryKey>,
    pub(crate) record_uri: ObjUri<'static>,
    /// The URI of the renewal.
    pub(crate) uri: ObjUri<'static>,
}

/// The right to fetch from the origin and to publish the response, while other look-ups of the key wait. If it is
/// dropped, the next waiting look-up is granted it.
#[derive(Debug)]
pub struct Ticket {
    pub(crate) core: Arc<Core>,
    pub(crate) key: Key,
    /// The lease; `None` with a v0.1 peer, and for a refresh that was granted none.
    lease: Option<Lease>,
    pub(crate) view: ReadView,
    /// True if the key has an index.
    pub(crate) indexed: bool,
    /// The version of the object at the key, or of the variant to renew; 0: there was none.
    pub(crate) base: u64,
    renews: Option<Renews>,
    /// The end of grace of the record that the response would replace; 0 without one.
    grace_end: f64,
    /// The record that a refresh replaces, and its version; `None` if there is none.
    refreshes: Option<(ObjUri<'static>, u64)>,
}

impl Ticket {
    pub(crate) fn new(
        core: Arc<Core>,
        key: Key,
        lease: Lease,
        view: ReadView,
        indexed: bool,
        base: u64,
        renews: Option<Renews>,
    ) -> Self {
        Self { core, key, lease: Some(lease), view, indexed, base, renews, grace_end: 0.0, refreshes: None }
    }

    /// Makes a ticket for a v0.1 peer, which has no leases, or for a refresh.
    pub(crate) fn without_lease(core: Arc<Core>, key: Key, view: ReadView) -> Self {
        let (lease, renews, refreshes) = (None, None, None);
        Self { core, key, lease, view, indexed: false, base: 0, renews, grace_end: 0.0, refreshes }
    }

    /// Makes it the ticket of a refresh: the response replaces whatever is at the key by then.
    pub(crate) fn for_refresh(
        mut self,
        lease: Option<Lease>,
        indexed: bool,
        record: Option<(ObjUri<'static>, u64)>,
    ) -> Self {
        (self.lease, self.indexed, self.refreshes) = (lease, indexed, record);
        self.base = IfVersion::Any.raw();
        self
    }

    /// Notes that the response would replace the record with this head.
    pub(crate) fn replacing(mut self, head: &Head) -> Self {
        self.grace_end = head.grace_end();
        self
    }

    /// Returns true if and only if there is a record that is fresh or in grace at this time. An error response must not
    /// replace it.
    #[must_use]
    pub fn replaces_graced(&self, now: f64) -> bool {
        now < self.grace_end
    }

    /// Makes the head of a record. A head that no reader would accept is [`Outcome::Unmatchable`].
    fn stored(&self, head: Head, vary: Option<VaryKey>, target: Option<Target>) -> Result<Stored, Outcome> {
        let mut head = head.clamped();
        // A second head that says the same as the first one is left out.
        let is_same = |o: &OriginHead| o.status == head.status && o.reason == head.reason && o.headers == head.headers;
        if head.origin.as_ref().is_some_and(is_same) {
            head.origin = None;
        }
        head.validate(vary.as_ref()).map_err(|_| Outcome::Unmatchable)?;
        let (text, mark, tags) = (self.key.text().to_vec(), self.view.mark(), tags_of(&head.headers, &self.core.tags));
        Ok(Stored { target, text, vary, mark, head, flags_known: true, tags })
    }

    fn vary(&self, head: &Head, request: &dyn RequestView) -> Result<Option<VaryKey>, Outcome> {
        let unmatchable = |_| Outcome::Unmatchable;
        let spec = Spec::of_response(&head.headers).map_err(unmatchable)?;
        let vary = spec.key(request).map_err(unmatchable)?;
        // If the key has an index, a response that does not vary is a variant too.
        Ok(if spec.is_empty() && !self.indexed { None } else { Some(vary) })
    }

    /// Begins to publish a copy of a body that is not in the store. `request` is the request to the origin, for Vary.
    /// `expected` is the body's length, if it is known.
    ///
    /// # Errors
    /// Why it cannot be published; the ticket is dropped.
    pub fn writer(
        self,
        head: Head,
        request: &dyn RequestView,
        expected: Option<u64>,
        counters: &Counters,
    ) -> Result<Writer, Outcome> {
        let began = Instant::now();
        let begun = self.vary(&head, request).and_then(|vary| {
            let stored = self.stored(head, vary, None)?;
            let body = match &self.view {
                ReadView::Board { .. } => Body::Draft(Draft::new(&self.core, &self.view, expected)?),
                ReadView::V01 { .. } if expected.is_some_and(|len| len > MAX_V01_BODY as u64) => {
                    return Err(Outcome::TooLarge);
                }
                ReadView::V01 { .. } => Body::Memory(Vec::new()),
            };
            Ok((body, stored))
        });
        match begun {
            Ok((body, stored)) => Ok(Writer { ticket: self, body, stored, failed: None }),
            Err(outcome) => Err(outcome.count(0, began, counters)),
        }
    }

    /// Begins to publish a body that is in the store already: returns the tail to append and the parameters of the
    /// commit. `sum` is the body's checksum: bodies up to [`RecordFile::READ_LIMIT`](crate::RecordFile::READ_LIMIT)
    /// should have one, as readers verify them.
    ///
    /// # Errors
    /// Why it cannot be published; the ticket is dropped.
    pub fn seal(
        self,
        head: Head,
        request: &dyn RequestView,
        body_len: u64,
        sum: Option<BodySum>,
        counters: &Counters,
    ) -> Result<Sealed, Outcome> {
        let began = Instant::now();
        let expires_ms = head.expires_ms();
        let sealed = self.vary(&head, request).and_then(|vary| {
            let (_, fence) = self.view.board()?;
            let stored = self.stored(head, vary, None)?;
            self.check_purges(&stored)?;
            let destination = self.destination(stored.vary.as_ref())?;
            let tail = stored.tail(body_len, sum).ok_or(Outcome::TooLarge)?;
            Ok((fence, destination, tail))
        });
        Counters::add(&counters.t_publish_us, began.elapsed().as_micros() as u64);
        match sealed {
            Ok((fence, destination, tail)) => Ok(Sealed {
                uri: destination.uri(&self.key).clone(),
                ticket: self,
                destination,
                body_len,
                tail,
                expires_ms,
                shard: fence.shard,
                fence: fence.value,
            }),
            Err(outcome) => Err(outcome.count(0, Instant::now(), counters)),
        }
    }

    /// Publishes the new head of a record that a 304 has confirmed. Its body stays. If the Vary of the new head
    /// differs, the record is removed: [`Outcome::Unmatchable`].
    pub fn renew(mut self, hit: &Hit, head: &Head, counters: &Counters) -> Outcome {
        let began = Instant::now();
        let outcome = self.publish_renewal(hit, head);
        Counters::add(&counters.t_publish_us, began.elapsed().as_micros() as u64);
        if outcome == Outcome::Published {
            Counters::add(&counters.c_renewed, 1);
            if let Some(lease) = self.lease.take() {
                lease.fulfilled();
            }
            return outcome;
        }
        outcome.count(0, Instant::now(), counters)
    }

    fn publish_renewal(&mut self, hit: &Hit, head: &Head) -> Outcome {
        let Some(renews) = self.renews.take() else {
            // A v0.1 store has no place for a head alone; the body is in memory.
            let (ReadView::V01 { .. }, Some(body)) = (&self.view, hit.record.bytes()) else {
                return Outcome::Overtaken;
            };
            if !varies_as(hit.vary.as_ref(), head) {
                return Outcome::Unmatchable;
            }
            return match self.stored(head.clone(), hit.vary.clone(), None) {
                Ok(stored) => self.publish_v01(&stored, body),
                Err(outcome) => outcome,
            };
        };
        if !varies_as(renews.vary.as_ref(), head) {
            // The record would answer requests that the origin distinguishes now. If the removal fails, the record is
            // as stale as it was.
            let _ = self.core.store.evict(&renews.record_uri, renews.target.version);
            return Outcome::Unmatchable;
        }
        let stored = match self.stored(head.clone(), renews.vary, Some(renews.target)) {
            Ok(stored) => stored,
            Err(outcome) => return outcome,
        };
        let Some(bytes) = stored.tail(0, None) else { return Outcome::TooLarge };
        if let Err(outcome) = self.check_purges(&stored) {
            return outcome;
        }
        self.put(&renews.uri, &bytes, IfVersion::Any, stored.head.end_ms())
    }

    /// Reports that the response cannot be shared: for `retry`, other look-ups of the key do not wait. Removes the
    /// record that was to be renewed or refreshed.
    pub fn refuse(mut self, retry: Duration, counters: &Counters) {
        Counters::add(&counters.c_uncacheable, 1);
        if let Some((uri, version)) = self.refreshes.take() {
            // If this fails, it stays for as long as without the refresh.
            let _ = self.core.store.evict(&uri, version);
        }
        let Some(lease) = self.lease.take() else { return };
        let Some(renews) = self.renews.take() else {
            lease.refuse_later(retry);
            return;
        };
        // Dropped before its end, the lease goes to the next caller, which finds the stale record.
        if self.core.store.evict(&renews.record_uri, renews.target.version).is_err() {
            return;
        }
        if let Ok(Leased::Granted(at_key)) =
            self.core.store.client.lease(&renews.record_uri, Duration::ZERO, retry, Want::ENTRY)
        {
            at_key.refuse_later(retry);
        }
        lease.refuse_later(RECORD_GONE);
    }

    /// Reports that the response is an error that is not shared: for `retry`, other look-ups of the key do not wait. A
    /// stale record that was to be renewed stays.
    pub fn refuse_error(mut self, retry: Duration, counters: &Counters) {
        Counters::add(&counters.c_uncacheable, 1);
        if let Some(lease) = self.lease.take() {
            lease.refuse_later(retry);
        }
    }

    /// Gives the ticket to the next waiting look-up, because the fetch failed. The same as dropping it.
    pub fn give_up(self) {}

    /// Ends the lease after a commit to the key, which has ended a lease on the key, but not one on the renewal of the
    /// record that was replaced.
    pub(crate) fn fulfilled(&mut self) {
        match (self.lease.take(), &self.renews) {
            (Some(lease), None) => lease.fulfilled(),
            (Some(lease), Some(_)) => lease.refuse_later(RECORD_GONE),
            (None, _) => {}
        }
    }

    /// Ends the lease after the commit of a variant. A lease on its URI, or on the key, has ended if that was
    /// committed; dropping the ticket gives any other one to the next caller.
    pub(crate) fn variant_fulfilled(&mut self) {
        if self.renews.is_some() {
            self.fulfilled();
        }
    }
}

/// Returns true if the new head varies by the same headers as the record.
fn varies_as(vary: Option<&VaryKey>, head: &Head) -> bool {
    Spec::of_response(&head.headers).is_ok_and(|spec| spec.is(vary.map_or(b"", VaryKey::spec)))
}

/// Where a copy is written to.
#[derive(Debug)]
enum Body {
    Draft(Draft),
    /// For a v0.1 peer, whose file is written in one step.
    Memory(Vec<u8>),
}

/// A copy that is being written. If it is dropped before [`Self::finish`], nothing is published.
#[derive(Debug)]
pub struct Writer {
    ticket: Ticket,
    body: Body,
    stored: Stored,
    failed: Option<Outcome>,
}

impl Writer {
    /// Appends the next bytes of the body.
    ///
    /// # Errors
    /// Why it cannot be published; [`Self::finish`] returns the same.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Outcome> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let written = match &mut self.body {
            Body::Draft(draft) => draft.write(bytes),
            Body::Memory(body) if body.len() + bytes.len() > MAX_V01_BODY => {
                *body = Vec::new();
                Err(Outcome::TooLarge)
            }
            Body::Memory(body) => {
                body.extend_from_slice(bytes);
                Ok(())
            }
        };
        written.inspect_err(|outcome| self.failed = Some(*outcome))
    }

    /// Notes that the rest of the body cannot be had: [`Self::finish`] publishes nothing, and counts it.
    pub fn fail(&mut self, outage: Outage) {
        self.failed.get_or_insert(Outcome::Outage(outage));
    }

    /// Publishes the body, which is complete, unless a part of it could not be written or had.
    pub fn finish(self, counters: &Counters) -> Outcome {
        let began = Instant::now();
        let Self { mut ticket, body, stored, failed } = self;
        let (outcome, body_len) = match (failed, body) {
            (Some(failed), _) => (failed, 0),
            (None, Body::Draft(draft)) => {
                let len = draft.len();
                (ticket.publish(draft, &stored).unwrap_or_else(|outcome| outcome), len)
            }
            (None, Body::Memory(body)) => (ticket.publish_v01(&stored, &body), body.len() as u64),
        };
        outcome.count(body_len, began, counters)
    }
}

/// The tail and the commit's parameters for a body in the store. If it is dropped, nothing is published.
#[derive(Debug)]
pub struct Sealed {
    ticket: Ticket,
    destination: Destination,
    body_len: u64,
    /// The URI to commit it under.
    pub uri: ObjUri<'static>,
    /// The bytes to append to the body.
    pub tail: Vec<u8>,
    /// When the store may drop it, in milliseconds since 1970; 0 is never.
    pub expires_ms: i64,
    /// The fence's shard.
    pub shard: u32,
    /// The fence's value.
    pub fence: u64,
}

impl Sealed {
    /// Ends the publication, with the outcome of the commit.
    ///
    /// # Errors
    /// After [`Published::Elsewhere`] the ticket, to publish a copy.
    #[expect(clippy::result_large_err, reason = "one for a fetch, taken apart at once")]
    pub fn settle(mut self, published: Published, counters: &Counters) -> Result<Outcome, Ticket> {
        let began = Instant::now();
        let outcome = match published {
            Published::Elsewhere => return Err(self.ticket),
            Published::Done => {
                self.ticket.committed(self.destination).map_or_else(|outcome| outcome, |()| Outcome::Published)
            }
            Published::Conflict => self.ticket.view.conflict_outcome(),
            Published::Outage(outage) => Outcome::Outage(outage),
        };
        Ok(outcome.count(self.body_len, began, counters))
    }
}
