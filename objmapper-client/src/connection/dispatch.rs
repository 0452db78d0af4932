//! Decodes received bytes and delivers each answer to the caller that waits for it. Runs on the leader's thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use objmapper_proto::ext::Op;
use objmapper_proto::v2::{Dialect, ServerFrame};
use objmapper_proto::{DecodeError, Status, ext, v1};

use super::Connection;
use crate::answer::{Answer, Body, Expect};
use crate::counters::Counters;
use crate::error::{Error, ProtocolError, Result};
use crate::socket::Inbox;
use crate::state::Version;

impl Connection {
    /// Decodes and delivers the complete frames. Returns the minimum number of bytes that the next frame still needs.
    pub(super) fn hand_out(&self, inbox: &mut Inbox) -> Result<usize> {
        loop {
            let step = match self.version {
                Version::V1 => self.hand_out_v1(inbox),
                Version::V2 => self.hand_out_v2(inbox, Dialect::V2),
                Version::Extended => self.hand_out_v2(inbox, Dialect::Extended),
            };
            match step {
                Ok(()) => {}
                Err(Step::Needs(n)) => return Ok(n),
                Err(Step::Broken(why)) => return Err(why),
            }
        }
    }

    fn hand_out_v1(&self, inbox: &mut Inbox) -> Result<(), Step> {
        let (response, used) = v1::Response::decode(inbox.bytes())?;
        // V1 has no ids, and its pipeline has a depth of 1.
        let id = *self.table.lock().inflight.keys().next().ok_or(ProtocolError::UnknownId(0))?;
        self.hand_out_v01(inbox, id, Reply01::of(&response), used)
    }

    fn hand_out_v2(&self, inbox: &mut Inbox, dialect: Dialect) -> Result<(), Step> {
        if inbox.bytes().is_empty() {
            return Err(Step::Needs(1));
        }
        let (frame, used) = ServerFrame::decode(inbox.bytes(), dialect)?;
        match frame {
            ServerFrame::Ext(frame) => {
                let nfds = usize::from(frame.nfds);
                let id = frame.id;
                if nfds > 0 && inbox.bytes().len() == used {
                    return Err(Step::Needs(1));
                }
                let expect = self.expectation(id)?;
                if !matches!(expect, Expect::Ext(op) if op.code() == frame.op) {
                    return Err(ProtocolError::WrongKind.into());
                }
                let status = frame.status;
                let body = match (status, expect) {
                    (Status::Ok, Expect::Ext(op @ (Op::Lookup | Op::Commit))) => {
                        match ext::Reply::parse(op, frame.payload)? {
                            ext::Reply::Entry(entry) => Body::Entry(entry),
                            _ => return Err(ProtocolError::WrongKind.into()),
                        }
                    }
                    (Status::Ok, _) => Body::Payload(frame.payload.into()),
                    _ => Body::Failure(frame.message().into()),
                };
                let fds = inbox.take(used, if nfds > 0 { std::slice::from_ref(&nfds) } else { &[] })?;
                Ok(self.deliver(id, Answer { status, body, fds })?)
            }
            ServerFrame::Response(response) => self.hand_out_v01(inbox, response.id, Reply01::of(&response.body), used),
            // Mode 4 is never asked for.
            ServerFrame::Segmented(_) => Err(ProtocolError::WrongKind.into()),
            // Follows a CLOSE only, which is never sent while a request is outstanding.
            ServerFrame::CloseAck { .. } => Err(Error::Closed.into()),
        }
    }

    fn hand_out_v01(&self, inbox: &mut Inbox, id: u32, reply: Reply01, used: usize) -> Result<(), Step> {
        let brings_fd = match self.expectation(id)? {
            Expect::Fd => reply.status == Status::Ok,
            Expect::NoFd => false,
            Expect::Ext(_) => return Err(ProtocolError::WrongKind.into()),
        };
        if brings_fd && inbox.bytes().len() == used {
            return Err(Step::Needs(1));
        }
        let fds = inbox.take(used, if brings_fd { &[1] } else { &[] })?;
        let body = if reply.status == Status::Ok { Body::V01 } else { Body::Failure(reply.message) };
        Ok(self.deliver(id, Answer { status: reply.status, body, fds })?)
    }

    fn expectation(&self, id: u32) -> Result<Expect, ProtocolError> {
        self.table.lock().inflight.get(&id).map(|s| s.expect).ok_or(ProtocolError::UnknownId(id))
    }

    /// Delivers an answer to its caller. If the caller has gone, what the answer gives is given back.
    fn deliver(&self, id: u32, answer: Answer) -> Result<()> {
        Counters::add(&self.counters.answers, 1);
        self.answered.store(true, Ordering::Relaxed);
        let mut table = self.table.lock();
        if table.dead.is_some() {
            // Not counted as read: the store takes back what it gives.
            return Ok(());
        }
        let Some(slot) = table.inflight.get(&id).cloned() else { return Ok(()) };
        let mut answer = Some(answer);
        if answer.as_ref().is_some_and(|answer| !answer.pinned(slot.expect).is_empty()) {
            // Under the lock and before it counts as read: a pin is made once for the whole session, so that only the store
            // can tell whether another call needs it. The connection ends here, as if the store had closed it.
            if answer.take().is_some_and(|answer| slot.complete(Ok(answer)).is_some()) {
                return Err(Error::Closed);
            }
        }
        table.inflight.remove(&id);
        if matches!(slot.expect, Expect::Ext(_)) {
            table.read += 1;
        }
        self.slot_removed(&mut table);
        drop(table);
        let Some(answer) = answer else { return Ok(()) };
        if Arc::strong_count(&slot) == 1 {
            // The caller has gone; the descriptors are closed with the answer.
            Counters::add(&self.counters.late_answers, 1);
        }
        if let Some(late) = slot.complete(Ok(answer)) {
            self.give_back(slot.expect, &late);
        }
        Ok(())
    }
}

/// The content of a V1 or V2 response, copied out of the buffer.
struct Reply01 {
    status: Status,
    message: Box<str>,
}

impl Reply01 {
    fn of(response: &v1::Response<'_>) -> Self {
        Self { status: response.status, message: message(response.metadata.error_text()) }
    }
}

fn message(text: Option<&[u8]>) -> Box<str> {
    text.map(|t| String::from_utf8_lossy(t).into_owned().into()).unwrap_or_default()
}

/// The reason why no further answer can be delivered.
enum Step {
    Needs(usize),
    Broken(Error),
}

impl From<DecodeError> for Step {
    fn from(e: DecodeError) -> Self {
        match e {
            DecodeError::Incomplete { needed } => Self::Needs(needed),
            DecodeError::Malformed(m) => Self::Broken(m.into()),
        }
    }
}

impl From<Error> for Step {
    fn from(e: Error) -> Self {
        Self::Broken(e)
    }
}

impl From<ProtocolError> for Step {
    fn from(e: ProtocolError) -> Self {
        Self::Broken(e.into())
    }
}

impl From<objmapper_proto::Malformed> for Step {
    fn from(e: objmapper_proto::Malformed) -> Self {
        Self::Broken(e.into())
    }
}
