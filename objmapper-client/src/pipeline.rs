//! Pipelines: many requests are sent before the first answer is taken.

use std::sync::Arc;

use objmapper_proto::ObjUri;
use objmapper_proto::ext::{Op, Request, Want};

use crate::answer::Expect;
use crate::client::Client;
use crate::connection::{Connection, Ticket};
use crate::error::{OpName, Result};
use crate::objects::{Found, found_or_not};

/// A sequence of look-ups on one connection; made by [`Client::pipeline`].
///
/// A request waits in a buffer until enough have gathered, until [`Pipeline::flush`], or until an answer is
/// waited for. When as many are outstanding as the store allows, the next one waits for room, and answers
/// that come in the meantime are kept for their [`Pending`]s.
#[derive(Debug)]
pub struct Pipeline {
    client: Client,
    connection: Arc<Connection>,
}

/// An outstanding answer. Dropping it discards the answer when it comes: its descriptor is closed and its pin
/// released as by [`Client::release`].
#[derive(Debug)]
#[must_use = "dropping it discards the answer"]
pub struct Pending {
    client: Client,
    connection: Arc<Connection>,
    ticket: Ticket,
    want: Want,
}

impl Client {
    /// Returns a pipeline on the connection with the fewest outstanding requests.
    ///
    /// # Errors
    /// [`Error::Down`](crate::Error::Down), or [`Error::Unsupported`](crate::Error::Unsupported) from a peer
    /// without extensions.
    pub fn pipeline(&self) -> Result<Pipeline> {
        let connection = self.inner.pool.pick_extended(OpName::Ext(Op::Lookup))?;
        Ok(Pipeline { client: self.clone(), connection })
    }
}

impl Pipeline {
    /// Adds a look-up, as [`Client::lookup`] makes it.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn lookup(&self, uri: &ObjUri<'_>, want: Want) -> Result<Pending> {
        let request = Request::Lookup { uri: uri.borrowed(), want };
        let deadline = self.client.deadline();
        let expect = Expect::Ext(Op::Lookup);
        let ticket = self.connection.submit(expect, deadline, |id, out| request.encode(id, out))?;
        Ok(Pending { client: self.client.clone(), connection: Arc::clone(&self.connection), ticket, want })
    }

    /// Sends the gathered requests.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn flush(&self) -> Result<()> {
        self.connection.flush(self.client.deadline())
    }
}

impl Pending {
    fn answer(&self) -> Result<crate::answer::Answer> {
        // The timeout begins here: the caller has not waited before.
        let answer = self.connection.wait(&self.ticket, self.client.deadline())?;
        answer.checked(OpName::Ext(Op::Lookup), &self.client.inner.pool.counters)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Does nothing for an answer that was taken.
        self.connection.forget(&self.ticket, &[self.want]);
    }
}

impl Pending {
    /// Waits for the answer, for as long as a call may take.
    ///
    /// # Errors
    /// See [`Client::lookup`].
    pub fn wait(self) -> Result<Option<Found>> {
        match found_or_not(self.answer())? {
            None => Ok(None),
            Some(answer) => Found::from_answer(answer, self.want, self.connection.session_id()).map(Some),
        }
    }
}
