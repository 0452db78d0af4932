//! The store of a second level, and the space of URIs that it has there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use objmapper_client::{Client, CommitOptions, Found, IfVersion, ObjUri, Session, Status, UriSpace};
use objmapper_log::RateLimited;

use crate::config::{Log, Notice};
use crate::counters::Counters;
use crate::outage::Outage;
use crate::record::bytes::Malformed;
use crate::record::file_io::write_all_at;

/// A store and a space in it.
pub(crate) struct Store {
    pub(crate) client: Client,
    pub(crate) space: UriSpace,
    /// The prefix, without a slash at its end.
    pub(crate) prefix: Vec<u8>,
    pub(crate) call_timeout: Duration,
    pub(crate) log: Log,
    /// Bounds the rate of lines about damaged records, whose number another client of the store decides.
    pub(crate) damaged_lines: RateLimited,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("client", &self.client).field("space", &self.space).finish_non_exhaustive()
    }
}

impl Store {
    /// Returns the session, if the store is up and has the protocol extensions and a board.
    pub(crate) fn session(&self) -> Result<Arc<Session>, Outage> {
        if !self.client.is_up() {
            return Err(Outage::Down);
        }
        match self.client.session() {
            Some(session) if session.board().is_some() => Ok(session),
            _ => Err(Outage::Protocol),
        }
    }

    /// Logs that a record was damaged; bounded in rate.
    fn log_damaged(&self, uri: &ObjUri<'_>, why: Malformed) {
        if let Some(left_out) = self.damaged_lines.admit() {
            (self.log)(&Notice::Damaged(format!("{uri}: {why}{left_out}")));
        }
    }

    /// Removes a record that a reader cannot use, unless it was replaced meanwhile. If this fails, the next reader
    /// finds the record and tries again.
    pub(crate) fn evict(&self, uri: &ObjUri<'_>, version: u64) -> Result<(), Outage> {
        match self.client.evict(uri, IfVersion::from_raw(version)) {
            Ok(_) => Ok(()),
            Err(why) if why.status() == Some(Status::Conflict) => Ok(()),
            Err(why) => Err(Outage::from(&why)),
        }
    }

    /// Removes a record that does not validate or cannot be read, as [`Store::evict`] does; it is counted and logged.
    pub(crate) fn discard(
        &self,
        uri: &ObjUri<'_>,
        version: u64,
        why: Malformed,
        counters: &Counters,
    ) -> Result<(), Outage> {
        Counters::add(&counters.c_damaged, 1);
        self.log_damaged(uri, why);
        self.evict(uri, version)
    }

    /// Publishes a small object. `None`: a condition in `options` (fence, `if_version`) does not hold.
    pub(crate) fn put(&self, uri: &ObjUri<'_>, bytes: &[u8], options: CommitOptions) -> Result<Option<Found>, Outage> {
        let mut object = self.client.create(bytes.len() as u64, None, None).map_err(|why| Outage::from(&why))?;
        {
            let file = object.take_fd().ok_or(Outage::Protocol)?;
            write_all_at(&file, bytes, 0)?;
        }
        match object.commit(uri, bytes.len() as u64, options) {
            Ok(found) => Ok(Some(found)),
            Err(why) if why.status() == Some(Status::Conflict) => Ok(None),
            Err(why) => Err(Outage::from(&why)),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Without this, leases of this session would keep other caches waiting until the store's grace time for lost
        // sessions ends.
        if self.client.is_up() && self.client.session().is_some() {
            // If it fails, the store does the same when that time ends.
            let _ = self.client.detach();
        }
    }
}
