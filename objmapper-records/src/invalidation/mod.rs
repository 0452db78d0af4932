//! What ends the validity of records: the invalidation log, which caches append to and follow.
//!
//! * [`entry`] is what an entry is, [`tags`] what a response's tags are, [`ban`] whether a ban matches.
//! * [`codec`] and [`file`] are the formats (`RECORD.md`), [`index`] is the log in memory, which judges records.
//! * [`journal`] is the log in the store: [`journal::append`] writes it, [`journal::read`] reads it,
//!   [`journal::compact`] bounds it, [`journal::follow`] gives the entries of other instances to a follower.

pub(crate) mod ban;
pub(crate) mod codec;
pub(crate) mod entry;
pub(crate) mod file;
pub(crate) mod index;
pub(crate) mod journal;
pub(crate) mod snapshot;
pub(crate) mod tags;

#[cfg(test)]
mod tests;
