//! Carries out v0.1 requests: those of V1 connections, and V2's request frames.
//!
//! The statuses and the lengths of the error texts are those of the public v0.1 server, because its
//! clients may depend on them; `tests/vectors.rs` checks them.

use std::os::fd::OwnedFd;

use objmapper_proto::{Metadata, Mode, Status, Tlv, v1};

use crate::store::{ANY_VERSION, Store, StoreError, TierKind};

use super::ext::status_of;

/// The answer to a v0.1 request.
#[derive(Debug)]
pub(super) struct Answer {
    status: Status,
    content_len: u64,
    error: String,
    pub(super) fd: Option<OwnedFd>,
}

impl Answer {
    pub(super) fn failure(status: Status, error: impl Into<String>) -> Self {
        Answer { status, content_len: 0, error: error.into(), fd: None }
    }

    /// Builds the response and calls `encode` with it.
    pub(super) fn with_response(&self, encode: impl FnOnce(v1::Response<'_>)) {
        let mut text = self.error.as_str();
        while text.len() > 256 {
            text = &text[..text.char_indices().next_back().map_or(0, |(at, _)| at)];
        }
        let block = match text {
            "" => Vec::new(),
            text => Metadata::build(&[Tlv::Error(text.as_bytes())]).unwrap_or_default(),
        };
        let metadata = Metadata::parse(&block).unwrap_or(Metadata::EMPTY);
        encode(v1::Response { status: self.status, content_len: self.content_len, metadata });
    }
}

/// Carries out a request. `ephemeral` is V2's flag 2.
pub(super) fn answer(store: &Store, mode: u8, uri: &[u8], ephemeral: bool) -> Answer {
    if uri.is_empty() {
        return Answer::failure(Status::Storage, "Failed to create object");
    }
    if uri == b"/list" || uri.starts_with(b"/backend/") {
        return Answer::failure(Status::Unsupported, "Operation not supported by the server");
    }
    if let Some(rest) = uri.strip_prefix(b"/delete/") {
        return delete(store, rest);
    }
    let Ok(mode) = Mode::try_from(mode) else {
        return Answer::failure(Status::InvalidMode, "Invalid mode");
    };
    // v0.1 keeps ephemeral objects in memory and other objects on disk. The tiers are used alike where both exist.
    let choice = if !ephemeral && store.has_tier(TierKind::Disk) { Some(TierKind::Disk) } else { None };
    match (store.get_or_create(choice, uri), mode) {
        (Ok((_, fd)), Mode::Fd) => Answer { status: Status::Ok, content_len: 0, error: String::new(), fd: Some(fd) },
        (Ok(_), _) => Answer::failure(Status::Unsupported, "Mode not supported, use FD passing."),
        (Err(error), _) => failure(&error),
    }
}

/// Deletes the URI behind `/delete/`. v0.1 accepts it with its leading slash and without.
fn delete(store: &Store, rest: &[u8]) -> Answer {
    let path = rest.strip_prefix(b"/").unwrap_or(rest);
    match store.delete(&[b"/", path].concat(), ANY_VERSION) {
        Ok(()) => Answer { status: Status::Ok, content_len: 1, error: String::new(), fd: None },
        Err(StoreError::NotFound) => Answer::failure(Status::NotFound, "Object not found"),
        Err(error) => failure(&error),
    }
}

fn failure(error: &StoreError) -> Answer {
    let status = match status_of(error) {
        // v0.1 clients know no status of the extensions.
        status if status.code() >= 0x30 => Status::Storage,
        status => status,
    };
    Answer::failure(status, error.to_string())
}
