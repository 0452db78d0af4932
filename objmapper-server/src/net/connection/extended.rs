//! A connection's extension requests: its session, their replies, and the record of what the replies give.
//!
//! A request takes its delivery's lock before it is carried out and keeps it until the reply is recorded, so that LOST finds
//! all of a request or nothing of it. LOST itself takes the lock of another connection's delivery: it is carried out before
//! this connection's own is locked.

use std::sync::atomic::Ordering::Relaxed;

use objmapper_proto::Status;
use objmapper_proto::ext::{Op, Reply, Request, RequestFrame, Token, Want};

use super::{Connection, Wait};
use crate::net::ext;
use crate::net::handover::{Handover, Revocable};
use crate::net::output::Output;
use crate::store::{Grant, LeaseOutcome, RequestGuard, Session, StoreError};

impl Connection {
    pub(super) fn serve_ext(&mut self, frame: &RequestFrame<'_>, pipeline: u16) {
        let (id, op) = (frame.id, frame.op);
        let parsed = Request::parse(op, frame.flags, frame.payload);
        if let Some(refusal) = &self.refusal {
            let known = matches!(parsed, Ok(Request::Attach { number: true, .. }));
            let failure = (refusal.status(known), refusal.to_string());
            self.closing = true;
            return self.fail(id, op, failure);
        }
        if let Ok(Request::Attach { session, directories, board, number }) = parsed {
            return self.attach(id, (session, directories, board, number), pipeline);
        }
        let (session, delivery) = (self.session.clone(), self.delivery.clone());
        if let (Ok(Request::Lost { connection, read }), Some(session)) = (&parsed, &session) {
            // Before this connection's own delivery is locked: never two at once.
            session.connection_lost(*connection, *read);
        }
        let mut guard = None;
        if let (Some(delivery), Some(session)) = (&delivery, &session) {
            guard = delivery.request(session);
            if guard.is_none() {
                // LOST has named this connection: no further request of it is carried out, and no reply is sent.
                self.output = Output::default();
                self.closing = true;
                return;
            }
        }
        let request = match parsed {
            Ok(request) => request,
            Err(bad) => {
                return self.respond(guard, session.as_ref(), id, op, Err((bad.status(), bad.to_string())), &[]);
            }
        };
        if self.refused_while_draining(&request) {
            let failure = (Status::Unavailable, "the server is shutting down".into());
            return self.respond(guard, session.as_ref(), id, op, Err(failure), &[]);
        }
        let Some(session) = session else {
            return self.fail(id, op, (Status::UnknownSession, "no session: ATTACH first".into()));
        };
        if !std::mem::replace(&mut self.used, true) {
            session.mark_used();
        }
        match request {
            Request::Detach => {
                // Its answer gives nothing; the delivery ends with the session.
                drop(guard);
                self.session = None;
                self.delivery = None;
                session.end();
                self.reply(id, Op::Detach, &Reply::Empty, Handover::none());
            }
            Request::Lost { .. } => {
                self.respond(guard, Some(&session), id, op, Ok((Reply::Empty, Handover::none())), &[]);
            }
            Request::Lease { wait, hold, uri, want } => {
                if self.waits.len() >= usize::from(pipeline) || self.waits.contains_key(&id) {
                    let text = "more waiting requests than the pipeline allows, or an id twice";
                    let failure = (Status::Unavailable, text.into());
                    return self.respond(guard, Some(&session), id, op, Err(failure), &[]);
                }
                let callback = {
                    let (inbox, number, asker) = (self.inbox.clone(), self.number, session.clone());
                    Box::new(move |outcome| inbox.lease(number, id, outcome, (asker, want.pin)))
                };
                match ext::lease(&session, (wait, hold, &uri, want), callback) {
                    Ok(LeaseOutcome::Waiting(ticket)) => {
                        let (fd, pin) = (want.fd, want.pin);
                        self.waits.insert(id, Wait { ticket, session, delivery: delivery.clone(), fd, pin });
                    }
                    Ok(outcome) => self.leased(guard, &session, id, Ok(outcome), want),
                    Err(failure) => self.respond(guard, Some(&session), id, op, Err(failure), &[]),
                }
            }
            request => {
                let answered = match &request {
                    Request::Batch(requests) => {
                        let (reply, handover) = ext::batch(&self.shared.store, &session, requests);
                        Ok((ext::Done::Reply(reply), handover))
                    }
                    request => ext::perform(&self.shared.store, &session, request),
                };
                match answered {
                    Ok((ext::Done::Reply(reply), handover)) => {
                        let grants = ext::grants(&request, &reply);
                        self.respond(guard, Some(&session), id, op, Ok((reply, handover)), &grants);
                    }
                    Ok((ext::Done::Page(listing), handover)) => {
                        self.respond(guard, Some(&session), id, op, Ok((ext::page(&listing), handover)), &[]);
                    }
                    Err(failure) => self.respond(guard, Some(&session), id, op, Err(failure), &[]),
                }
            }
        }
    }

    fn attach(&mut self, id: u32, request: (Token, bool, bool, bool), pipeline: u16) {
        let (token, directories, board, number) = request;
        let op = Op::Attach;
        if self.shared.draining.load(Relaxed) {
            return self.fail(id, op.code(), (Status::Unavailable, "the server is shutting down".into()));
        }
        let mut delivery = None;
        let begin = |session: &Session| {
            delivery = number.then(|| session.begin_delivery(pipeline));
            delivery.as_ref().map(|d| d.number())
        };
        match ext::attach(&self.shared.store, token, directories, board, begin) {
            Ok((session, reply, handover)) => {
                self.leave_session();
                self.used = false;
                self.session = Some(session);
                self.delivery = delivery;
                self.reply(id, op, &reply, handover);
            }
            Err(failure) => self.fail(id, op.code(), failure),
        }
    }

    /// Detaches the connection from its session, which continues without it.
    pub(super) fn leave_session(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Some(delivery) = self.delivery.take() {
            session.end_delivery(&delivery);
        }
    }

    /// Sends the reply to a request of a session, and records what it gives.
    fn respond(
        &mut self,
        guard: Option<RequestGuard<'_>>,
        session: Option<&Session>,
        id: u32,
        op: u8,
        answered: Result<(Reply<'_>, Handover), ext::Failure>,
        grants: &[Grant],
    ) {
        let mut answered = answered.map(|(reply, handover)| {
            let revocable = session.and_then(|session| Revocable::of_grants(session, grants));
            (reply, handover.with_revocable(revocable))
        });
        if let (Some(mut guard), Some(session)) = (guard, session)
            && !guard.replied(session, grants)
        {
            if let Ok((_, handover)) = answered {
                handover.take_back();
            }
            answered = Err((Status::Unavailable, "another connection gave the pin back at this moment".into()));
            let _ = guard.replied(session, &[]);
        }
        match (answered, Op::try_from(op)) {
            (Ok((reply, handover)), Ok(op)) => self.reply(id, op, &reply, handover),
            (Err(failure), _) => self.fail(id, op, failure),
            (Ok(_), Err(unknown)) => self.fail(id, op, (Status::Unsupported, unknown.to_string())),
        }
    }

    fn refused_while_draining(&self, request: &Request<'_>) -> bool {
        matches!(request, Request::Create { .. } | Request::Lease { .. }) && self.shared.draining.load(Relaxed)
    }

    /// Answers a LEASE that waited. Returns false if the connection does not wait for it any more; the outcome is then not
    /// taken.
    pub(in crate::net) fn lease_outcome(
        &mut self,
        id: u32,
        outcome: &mut Option<Result<LeaseOutcome, StoreError>>,
    ) -> bool {
        let Some(wait) = self.waits.remove(&id) else { return false };
        let guard = match &wait.delivery {
            None => None,
            Some(delivery) => match delivery.outcome() {
                None => return false,
                guard => guard,
            },
        };
        if let Some(Ok(LeaseOutcome::Granted(lease))) = outcome
            && self.shared.draining.load(Relaxed)
        {
            // The former holder's connection was closed before this connection received the shutdown.
            wait.session.withdraw(Grant::Lease(*lease));
            let failure = (Status::Unavailable, "the server is shutting down".into());
            self.respond(guard, Some(&wait.session), id, Op::Lease.code(), Err(failure), &[]);
            return true;
        }
        if let Some(outcome) = outcome.take() {
            let want = Want { fd: wait.fd, pin: wait.pin };
            self.leased(guard, &wait.session, id, outcome, want);
        }
        true
    }

    fn leased(
        &mut self,
        guard: Option<RequestGuard<'_>>,
        session: &Session,
        id: u32,
        outcome: Result<LeaseOutcome, StoreError>,
        want: Want,
    ) {
        let grant = ext::lease_grant(&outcome, want.pin);
        let answered = ext::leased(session, outcome, want.fd);
        match (&answered, grant) {
            // The body could not be opened.
            (Err(_), Some(grant)) => {
                session.withdraw(grant);
                self.respond(guard, Some(session), id, Op::Lease.code(), answered, &[]);
            }
            (_, grant) => self.respond(guard, Some(session), id, Op::Lease.code(), answered, grant.as_slice()),
        }
    }
}
