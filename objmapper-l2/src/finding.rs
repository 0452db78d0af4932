//! What a look-up finds.

use std::os::fd::OwnedFd;
use std::time::Duration;

use objmapper_client::{Entry, ObjUri};

use crate::head::{BodySum, Head};
use crate::outage::Outage;
use crate::request::RequestView;
use crate::space::L2;
use crate::ticket::Ticket;

/// What a look-up found.
#[derive(Debug)]
pub enum Finding {
    /// A record that is fresh.
    Hit(Hit),
    /// A record that must be revalidated.
    Stale(Stale),
    /// Nothing that can be used.
    Miss(Miss),
}

/// Why nothing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissReason {
    /// There is no record.
    Absent,
    /// Who asked the origin before says that there is nothing to share, for this much longer.
    Uncacheable(Duration),
    /// Another is asking the origin and has not finished in time.
    Waited,
    /// A ban outlaws the record. It was removed.
    Outlawed,
    /// The record does not validate. It was removed.
    Damaged,
    /// The record is too old even for revalidation. It was removed.
    Expired,
    /// Another process announced a ban, and has not recorded it in time.
    BansPending,
    /// The record went, or was replaced, each time when it was about to be read.
    Busy,
    /// The store was of no help.
    Outage(Outage),
}

impl std::fmt::Display for MissReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Uncacheable(_) => f.write_str("uncacheable"),
            Self::Waited => f.write_str("waited"),
            Self::Outlawed => f.write_str("outlawed"),
            Self::Damaged => f.write_str("damaged"),
            Self::Expired => f.write_str("expired"),
            Self::BansPending => f.write_str("bans pending"),
            Self::Busy => f.write_str("busy"),
            Self::Outage(outage) => write!(f, "outage: {outage}"),
        }
    }
}

/// Nothing that can be used: ask the origin.
#[derive(Debug)]
pub struct Miss {
    /// To publish what the origin says; without it nothing can be published.
    pub ticket: Option<Ticket>,
    /// Why.
    pub why: MissReason,
}

/// A record that must be revalidated, if it has a validator ([`Hit::has_validator`]), or may be served while the origin
/// does not answer, if [`Hit::in_grace`].
#[derive(Debug)]
pub struct Stale {
    /// The record.
    pub hit: Hit,
    /// To publish what the origin says: [`Ticket::renew`] after a 304. Without it nothing can be published.
    pub ticket: Option<Ticket>,
}

/// A record.
#[derive(Debug)]
pub struct Hit {
    /// The head: of its last renewal, if it was renewed.
    pub head: Head,
    /// The body.
    pub record: RecordFile,
    /// Whether another's fetch was waited for.
    pub waited: bool,
}

impl Hit {
    /// Whether no purge and no ban has outlawed the record since it was found. Atomic loads when nothing happened.
    #[must_use]
    pub fn still_valid(&self, l2: &L2, request: &dyn RequestView) -> bool {
        let _ = (l2, request);
        todo!()
    }

    /// Seconds since the origin made it, at least 0.
    #[must_use]
    pub fn age(&self, now: f64) -> f64 {
        todo!("{now}")
    }

    /// Whether it may be served while the origin does not answer.
    #[must_use]
    pub fn in_grace(&self, now: f64) -> bool {
        todo!("{now}")
    }

    /// Whether it has an ETag or a Last-Modified date.
    #[must_use]
    pub fn has_validator(&self) -> bool {
        todo!()
    }
}

/// The body of a record: the first [`Self::body_len`] bytes of a file of which no byte ever changes.
#[derive(Debug)]
pub struct RecordFile {
    pub(crate) uri: ObjUri<'static>,
    pub(crate) entry: Entry,
    pub(crate) instance: [u8; 16],
    pub(crate) file: Option<OwnedFd>,
    pub(crate) bytes: Option<Box<[u8]>>,
    pub(crate) body_len: u64,
    pub(crate) sum: Option<BodySum>,
}

impl RecordFile {
    /// Bodies of at most so many bytes are read and verified before they are a hit.
    pub const READ_LIMIT: u64 = 1 << 20;

    /// Under which URI the store has it: the key's, or that of a variant.
    #[must_use]
    pub fn uri(&self) -> &ObjUri<'static> {
        &self.uri
    }

    /// What the store knows of it; its `length` is the file's, the tail included.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The instance of the store that it is in; zeros for one without instances.
    #[must_use]
    pub fn instance(&self) -> [u8; 16] {
        self.instance
    }

    /// Bytes of body.
    #[must_use]
    pub fn body_len(&self) -> u64 {
        self.body_len
    }

    /// The whole body, verified, if it has been read.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref()
    }

    /// The body's checksum, if its publisher computed one: who reads it piece by piece can compare in the end.
    #[must_use]
    pub fn sum(&self) -> Option<BodySum> {
        self.sum
    }

    /// Reads from the body at an offset, as much as there is up to `buf`'s length; 0 only at its end.
    ///
    /// # Errors
    /// [`Outage::Io`] if the file cannot be read or is shorter than it was.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Outage> {
        let _ = (buf, offset, &self.file);
        todo!()
    }
}
