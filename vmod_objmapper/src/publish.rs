//! The end of a fetch: what it brought is published, or refused, or its ticket is passed on.
//!
//! It runs in the fetch's thread at the end of its task, when the object is complete and its boc still referenced ([`settle`]).

use std::rc::Rc;

use objmapper_abi::{Bytes, Publication};
use objmapper_records::{Head, Hit, OriginHead, Outage, Outcome, Ticket};
use varnishd::attributes::body_flags;
use varnishd::fetch::Busyobj;
use varnishd::{clock, iteration};

use crate::BOUNDARY;
use crate::director::Director;
use crate::engine::{self, Storage};
use crate::filter::Serving;
use crate::head;
use crate::pending::{self, PendingPublish, is_error};
use crate::request::Request;

/// What has answered a try, and is to be settled when the fetch is over.
pub(crate) enum Answer {
    /// Nothing of ours.
    None,
    /// The backend.
    Backend(Rc<PendingPublish>),
    /// A record; with a ticket: which the origin confirmed (304).
    Record(Rc<Serving>),
}

impl Answer {
    /// Returns what is pending for the response, if it is of ours.
    pub(crate) fn pending(&self) -> Option<&PendingPublish> {
        match self {
            Answer::None => None,
            Answer::Backend(pending) => Some(pending),
            Answer::Record(serving) => Some(&serving.pending),
        }
    }
}

/// Settles what the directors of a task have begun. Called at the task's end.
pub(crate) fn settle(bo: Busyobj<'_>, answers: impl Iterator<Item = Answer>) {
    for answer in answers {
        let Some(pending) = answer.pending() else { continue };
        let end = End { bo, pending, director: pending.director() };
        match (pending.take_ticket(), &answer) {
            (Some(ticket), Answer::Record(serving)) => end.renewed(ticket, &serving.hit),
            (Some(ticket), _) => match pending.confirms() {
                Some(hit) => end.renewed(ticket, hit),
                None => end.missed(ticket),
            },
            (None, Answer::Record(serving)) => {
                // An earlier try's response is not the object.
                if pending.is_accepted()
                    && bo.is_complete()
                    && !serving.hit.still_valid(&end.director.l2, &Request(bo.client_request()))
                {
                    end.kill("invalidated meanwhile");
                }
            }
            (None, _) => {}
        }
    }
}

/// What is to be done with an object.
enum Decision {
    /// It is shared.
    Publish(Head),
    /// It is for its own request only, or VCL does not want it shared: look-ups do not wait for such a response.
    Refuse(&'static str),
    /// The fetch has failed: the next look-up fetches.
    Failed,
}

struct End<'a> {
    bo: Busyobj<'a>,
    pending: &'a PendingPublish,
    director: &'a Director,
}

impl End<'_> {
    fn log_decision(&self, text: impl std::fmt::Display) {
        self.bo.log().decision(&format!("{} {text}", self.director.name));
    }

    fn request(&self) -> Request<'_> {
        Request(self.bo.request())
    }

    /// Takes the object out of varnishd's cache.
    fn kill(&self, why: &str) {
        self.log_decision(format_args!("killed: {why}"));
        self.bo.object().kill();
    }

    fn decide(&self, ticket: &Ticket) -> Decision {
        if !self.bo.is_complete() || self.bo.object().has_failed() || !self.pending.is_accepted() {
            return Decision::Failed;
        }
        if let Some(why) = self.pending.uncacheable(self.bo) {
            return Decision::Refuse(why);
        }
        let Some(head) = head::of_object(self.bo) else { return Decision::Refuse("head too large") };
        if is_error(head.status) && ticket.replaces_graced(clock::now()) {
            return Decision::Refuse("an error, and the stale record is in grace");
        }
        match head.unshareable() {
            Some(why) => Decision::Refuse(why),
            None => Decision::Publish(head),
        }
    }

    fn refuse(&self, ticket: Ticket, why: &str) {
        pending::refuse(self.director, ticket, self.bo.response().status(), why, self.bo.log());
    }

    fn missed(&self, ticket: Ticket) {
        match self.decide(&ticket) {
            Decision::Failed => {
                self.log_decision("not published: the fetch has failed");
                ticket.give_up();
            }
            Decision::Refuse(why) => self.refuse(ticket, why),
            Decision::Publish(head) => {
                let head = Head { origin: self.pending.take_origin(), ..head };
                let len = self.bo.object().body_len(self.bo.worker());
                let outcome = self.publish_object(ticket, head, len);
                self.log_outcome(outcome, len);
            }
        }
    }

    fn renewed(&self, ticket: Ticket, hit: &Hit) {
        match self.decide(&ticket) {
            Decision::Failed => ticket.give_up(),
            Decision::Refuse(why) => self.refuse(ticket, why),
            Decision::Publish(head) => {
                // The record's body stays as it is, whatever this varnishd's filters have made of it; what was parsed for ESI
                // here, as the 304 or VCL asked for it, is to be parsed everywhere.
                let record = &hit.head;
                let flags = record.flags | (head.flags & body_flags::ESI);
                let origin = record.origin.as_ref().and_then(OriginHead::storable);
                let head = Head { gzip_bits: record.gzip_bits, flags, origin, ..head };
                let outcome = ticket.renew(hit, &head, self.director.counters());
                self.log_outcome(outcome, 0);
            }
        }
    }

    /// Logs the outcome of a publication, and kills an object that was invalidated meanwhile.
    fn log_outcome(&self, outcome: Outcome, len: u64) {
        match outcome {
            Outcome::Published => self.log_decision(format_args!("published {len} bytes")),
            Outcome::Conflict => self.kill("purged or banned meanwhile"),
            other => self.log_decision(format_args!("not published: {other:?}")),
        }
    }

    fn publish_object(&self, ticket: Ticket, head: Head, len: u64) -> Outcome {
        let (counters, request, oc) = (self.director.counters(), self.request(), self.bo.object());
        let same_store = Storage::at(oc.storage().cast())
            .and_then(Storage::instance)
            .is_some_and(|i| len > 0 && Some(i) == self.director.l2.instance());
        let ticket = match engine::table() {
            Some(table) if same_store => {
                let sealed = match ticket.seal(head.clone(), &request, len, None, counters) {
                    Ok(sealed) => sealed,
                    Err(outcome) => return outcome,
                };
                let uri = sealed.uri.as_bytes();
                let publication = Publication {
                    uri: Bytes { ptr: uri.as_ptr(), len: uri.len() },
                    tail: Bytes { ptr: sealed.tail.as_ptr(), len: sealed.tail.len() },
                    expires: sealed.expires_ms,
                    shard: sealed.shard,
                    fence: sealed.fence,
                };
                // SAFETY: the object is complete, in its fetch's thread, with its boc referenced; what the publication
                // points to lives during the call.
                let published = unsafe { (table.publish)(oc.address(), &raw const publication) };
                match sealed.settle(published, counters) {
                    Ok(outcome) => return outcome,
                    Err(ticket) => ticket,
                }
            }
            _ => ticket,
        };
        self.copy(ticket, head, len)
    }

    /// Publishes a copy of what was stored.
    fn copy(&self, ticket: Ticket, head: Head, len: u64) -> Outcome {
        let counters = self.director.counters();
        let mut writer = match ticket.writer(head, &self.request(), Some(len), counters) {
            Ok(writer) => writer,
            Err(outcome) => return outcome,
        };
        if len > 0 {
            let mut written = 0;
            let mut write = |bytes: &[u8]| {
                written += bytes.len() as u64;
                writer.write(bytes).is_ok()
            };
            let at_end = iteration::for_each_piece(self.bo.object(), self.bo.worker(), &BOUNDARY, &mut write);
            if !at_end || written != len {
                // The storage could not give all of the body, unless the writer has failed before.
                writer.fail(Outage::Io);
            }
        }
        writer.finish(counters)
    }
}
