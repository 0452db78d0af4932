//! Finding what answers a request: from a request to a [`finding::Finding`].

pub(crate) mod fetch_token;
pub(crate) mod find;
pub(crate) mod finding;
pub(crate) mod freshness;
pub(crate) mod hit;
pub(crate) mod request;
pub(crate) mod validation;
