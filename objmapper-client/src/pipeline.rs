//! Pipelines: many requests on their way before the first answer is taken.

use std::marker::PhantomData;
use std::sync::Arc;

use objmapper_proto::ObjUri;
use objmapper_proto::ext::{IfVersion, Op, Request, Want};

use crate::answer::Expect;
use crate::client::Client;
use crate::connection::{Connection, Ticket};
use crate::error::{OpName, Result};
use crate::objects::{Found, found_or_not};

/// Requests on one connection, sent together; made by [`Client::pipeline`].
///
/// A request waits in a buffer until enough have gathered, until [`Pipeline::flush`], or until an answer is
/// waited for. When as many are outstanding as the store allows, the next one waits for room, and answers
/// that come meanwhile are kept for their [`Pending`]s.
#[derive(Debug)]
pub struct Pipeline {
    client: Client,
    connection: Arc<Connection>,
}

/// An answer that is on its way. Dropped, the answer is thrown away when it comes: its descriptor is closed, its pin
/// released as by [`Client::release`].
#[derive(Debug)]
#[must_use = "an answer that nobody waits for is thrown away"]
pub struct Pending<T> {
    client: Client,
    connection: Arc<Connection>,
    ticket: Ticket,
    op: Op,
    want: Want,
    answer: PhantomData<fn() -> T>,
}

impl Client {
    /// A pipeline on the connection that has the least to do.
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
    fn submit<T>(&self, request: &Request<'_>, want: Want) -> Result<Pending<T>> {
        let deadline = self.client.deadline();
        let op = request.op();
        let ticket = self.connection.submit(Expect::Ext(op), deadline, |id, out| request.encode(id, out))?;
        Ok(Pending {
            client: self.client.clone(),
            connection: Arc::clone(&self.connection),
            ticket,
            op,
            want,
            answer: PhantomData,
        })
    }

    /// [`Client::lookup`].
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn lookup(&self, uri: &ObjUri<'_>, want: Want) -> Result<Pending<Option<Found>>> {
        self.submit(&Request::Lookup { uri: uri.borrowed(), want }, want)
    }

    /// [`Client::delete`].
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn delete(&self, uri: &ObjUri<'_>, if_version: IfVersion) -> Result<Pending<bool>> {
        self.submit(&Request::Delete { if_version, uri: uri.borrowed(), evict: false }, Want::ENTRY)
    }

    /// Sends what has gathered.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn flush(&self) -> Result<()> {
        self.connection.flush(self.client.deadline())
    }
}

impl<T> Pending<T> {
    fn answer(&self) -> Result<crate::answer::Answer> {
        // Counted from here: a caller that was busy elsewhere has not been kept waiting.
        let answer = self.connection.wait(&self.ticket, self.client.deadline())?;
        answer.checked(OpName::Ext(self.op), &self.client.inner.pool.counters)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        // Nothing is left of an answer that was taken.
        self.connection.forget(&self.ticket, &[self.want]);
    }
}

impl Pending<Option<Found>> {
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

impl Pending<bool> {
    /// Waits for the answer, for as long as a call may take.
    ///
    /// # Errors
    /// See [`Client::delete`].
    pub fn wait(self) -> Result<bool> {
        Ok(found_or_not(self.answer())?.is_some())
    }
}
