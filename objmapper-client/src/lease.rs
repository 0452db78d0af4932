//! Leases: one client fetches a missing object, further clients wait for it.
//!
//! A [`Lease`] ends by a commit for its URI, by [`Lease::refuse`], or by its drop, which gives it back in the background. The store ends
//! it after `hold`, and with the last connection of the session.

use std::time::Duration;

use objmapper_proto::ext::{LeaseOutcome, Op, Reply, Request, Want};
use objmapper_proto::{ObjUri, Status};

use crate::client::Client;
use crate::deferred::Item;
use crate::error::{Error, OpName, ProtocolError, Result};
use crate::objects::Found;

/// The outcome of [`Client::lease`].
#[derive(Debug)]
pub enum Leased {
    /// The object is published.
    Present(Found),
    /// The caller holds the lease and should fetch the object. A commit for the URI ends the lease.
    Granted(Lease),
    /// A former holder has reported that there is nothing to share.
    Refused {
        /// The rest of the time for which that holds.
        retry: Duration,
    },
    /// Another client holds the lease, and has not finished in time.
    TimedOut,
}

/// The right and the duty to fetch a missing object. Dropping it passes it to the next waiter.
#[derive(Debug)]
pub struct Lease {
    client: Client,
    session: u64,
    lease: u64,
    open: bool,
}

fn millis(d: Duration) -> u32 {
    u32::try_from(d.as_millis()).unwrap_or(u32::MAX)
}

impl Client {
    /// Waits up to `wait` for the object. If no other client holds the lease, the caller gets it and should
    /// publish the object within `hold`.
    ///
    /// # Errors
    /// See [`Error`]. The call's timeout counts on top of `wait`.
    pub fn lease(&self, uri: &ObjUri<'_>, wait: Duration, hold: Duration, want: Want) -> Result<Leased> {
        let request = Request::Lease { wait: millis(wait), hold: millis(hold), uri: uri.borrowed(), want };
        let (answer, connection) = match self.call(&request, self.deadline() + wait) {
            Err(Error::Status { status: Status::Timeout, .. }) => return Ok(Leased::TimedOut),
            result => result?,
        };
        let session = connection.session_id();
        let Reply::Lease(outcome) = answer.reply(Op::Lease)? else {
            return Err(ProtocolError::WrongKind.into());
        };
        Ok(match outcome {
            LeaseOutcome::Present(entry) => Leased::Present(Found::new(entry, answer.fds, want, session)?),
            LeaseOutcome::Granted { lease } => {
                Leased::Granted(Lease { client: self.clone(), session, lease, open: true })
            }
            LeaseOutcome::Refused { retry } => Leased::Refused { retry: Duration::from_millis(retry.into()) },
        })
    }
}

impl Lease {
    /// Returns the lease's number in the store.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.lease
    }

    /// Drops the guard without a request, after a commit of the object has ended the lease.
    pub fn fulfilled(mut self) {
        self.open = false;
    }

    /// Ends the lease because there is nothing to share: requests for it within `retry` are refused. If `retry` is zero, the
    /// next waiter is granted the lease.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn refuse(mut self, retry: Duration) -> Result<()> {
        let connection = self.client.inner.pool.pick_extended(OpName::Ext(Op::Unlease))?;
        if connection.session_id() != self.session {
            self.open = false;
            return Err(Error::SessionLost);
        }
        let request = Request::Unlease { lease: self.lease, refuse: millis(retry) };
        let result = self.client.call_on(&connection, &request, self.client.deadline());
        self.open = matches!(&result, Err(why) if why.is_retryable());
        result.map(|_| ())
    }

    /// Does the same as [`Self::refuse`], in the background.
    pub fn refuse_later(mut self, retry: Duration) {
        self.open = false;
        self.client.defer(self.session, Item::Unlease { lease: self.lease, refuse: millis(retry) });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.open {
            self.client.defer(self.session, Item::Unlease { lease: self.lease, refuse: 0 });
        }
    }
}
