//! The outcome of a publication, each with its counter.

use std::time::Instant;

use crate::counters::Counters;
use crate::outage::Outage;

/// The outcome of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The record is published: other caches find it.
    Published,
    /// The key was purged, or (v0.1 peers) banned, after the ticket was granted. The response must not be cached
    /// either.
    Conflict,
    /// Another cache published first, and its record stays.
    Overtaken,
    /// The head or the body is too large for this store.
    TooLarge,
    /// No reader could use the record: it varies by `*` or by more than the limits allow, or its head breaks a rule of
    /// `RECORD.md`.
    Unmatchable,
    /// The store request failed.
    Outage(Outage),
}

impl From<Outage> for Outcome {
    fn from(outage: Outage) -> Self {
        Self::Outage(outage)
    }
}

impl Outcome {
    pub(crate) fn count(self, body_len: u64, began: Instant, counters: &Counters) -> Self {
        Counters::add(&counters.t_publish_us, began.elapsed().as_micros() as u64);
        match self {
            Self::Published => {
                Counters::add(&counters.c_published, 1);
                Counters::add(&counters.b_published, body_len);
            }
            Self::Conflict => Counters::add(&counters.c_publish_conflict, 1),
            Self::Overtaken => Counters::add(&counters.c_publish_overtaken, 1),
            Self::TooLarge => Counters::add(&counters.c_publish_too_large, 1),
            Self::Unmatchable => Counters::add(&counters.c_unmatchable, 1),
            Self::Outage(outage) => {
                Counters::add(&counters.c_publish_failed, 1);
                counters.outage(outage);
            }
        }
        self
    }
}
