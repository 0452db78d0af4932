//! Bans: what varnishd made of them, the log in the store, and whether one matches a record.

pub(crate) mod evaluate;
pub(crate) mod keeper;
pub(crate) mod log;
pub(crate) mod spec;

#[cfg(test)]
mod tests;
