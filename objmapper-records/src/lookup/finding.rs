//! The result of a look-up.

use std::time::Duration;

use crate::lookup::hit::Hit;
use crate::outage::Outage;
use crate::publication::ticket::Ticket;

/// The result of a look-up.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one for a request, taken apart at once")]
pub enum Finding {
    /// A record that is fresh.
    Hit(Hit),
    /// A record that must be revalidated.
    Stale(Stale),
    /// No record that can be used.
    Miss(Miss),
}

/// Why a look-up is a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissReason {
    /// There is no record.
    Absent,
    /// The caller wants the origin's answer: [`Lookup::refresh`](crate::Lookup::refresh).
    Refresh,
    /// An earlier fetch was not shareable: look-ups do not wait, for this much longer.
    Uncacheable(Duration),
    /// Another cache fetches, and has not finished in time.
    Waited,
    /// Another cache fetches, and this look-up was not to wait: it is that cache's own fetch, or was told not to.
    Held,
    /// A ban, a purge or a new invalidation log has invalidated the record. It was removed.
    Invalidated,
    /// The record does not validate. It was removed.
    Damaged,
    /// The record does not say whether its body was parsed for ESI: an older version published it. It was removed.
    Outdated,
    /// The record is too old even for revalidation. It was removed.
    Expired,
    /// A process has announced a ban, and has not recorded it in time; or this process cannot read the log.
    BansPending,
    /// The record was removed or replaced at each attempt to read it.
    Busy,
    /// The store request failed.
    Outage(Outage),
}

impl std::fmt::Display for MissReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Refresh => f.write_str("refresh"),
            Self::Uncacheable(_) => f.write_str("uncacheable"),
            Self::Waited => f.write_str("waited"),
            Self::Held => f.write_str("being fetched"),
            Self::Invalidated => f.write_str("invalidated"),
            Self::Damaged => f.write_str("damaged"),
            Self::Outdated => f.write_str("of an older version"),
            Self::Expired => f.write_str("expired"),
            Self::BansPending => f.write_str("bans pending"),
            Self::Busy => f.write_str("busy"),
            Self::Outage(outage) => write!(f, "outage: {outage}"),
        }
    }
}

/// A miss: the caller asks the origin.
#[derive(Debug)]
pub struct Miss {
    /// The right to publish the origin's response; without it nothing can be published.
    pub ticket: Option<Ticket>,
    /// The reason.
    pub why: MissReason,
}

/// A record that must be revalidated, if it has a validator ([`Hit::has_validator`]), or may be served while the origin
/// does not answer, if [`Hit::in_grace`].
#[derive(Debug)]
pub struct Stale {
    /// The stale record.
    pub hit: Hit,
    /// The right to publish the origin's response: [`Ticket::renew`] after a 304. Without it nothing can be published.
    pub ticket: Option<Ticket>,
}
