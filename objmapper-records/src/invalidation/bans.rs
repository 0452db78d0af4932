//! Bans: decoding varnishd's form (`spec`), the log in the store (`log`), recording and reading it (`keeper`), and
//! whether a ban matches a record (`evaluate`).

pub(crate) mod evaluate;
pub(crate) mod keeper;
pub(crate) mod log;
pub(crate) mod spec;

#[cfg(test)]
mod tests;
