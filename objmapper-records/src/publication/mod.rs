//! From a ticket to a record under its name, or to the reason why there is none.

pub(crate) mod draft;
pub(crate) mod outcome;
pub(crate) mod publish;
pub(crate) mod ticket;
