//! The format of a record and of its key: `RECORD.md`.

pub(crate) mod bytes;
pub(crate) mod file_io;
pub(crate) mod head;
pub(crate) mod key;
pub(crate) mod never_stored;
pub(crate) mod origin;
pub(crate) mod reading;
pub(crate) mod stored;
pub(crate) mod tail;
pub(crate) mod vary;

#[cfg(test)]
mod tests;
