//! What ends the validity of records: the log of bans, and purges.

pub(crate) mod bans;
pub(crate) mod purge;
