//! What invalidates records, and how a cache learns of what other caches have invalidated.

use objmapper_ban::{Ban, Subject, Test};

use super::journal::random;
use crate::outage::Outage;

/// What an entry of the invalidation log invalidates.
#[derive(Debug, Clone, PartialEq)]
pub enum Invalidation {
    /// The responses that a ban matches.
    Ban(Ban),
    /// The responses of one key.
    Purge {
        /// The key's digest: [`Key::digest`](crate::Key::digest).
        digest: [u8; 32],
        /// True if they become stale and are not removed: ttl is 0 from the entry's time on, grace and keep stay.
        soft: bool,
    },
    /// The responses with a tag (a surrogate key).
    Tag {
        /// The tag.
        tag: Box<[u8]>,
        /// True if they become stale and are not removed: ttl is 0 from the entry's time on, grace and keep stay.
        soft: bool,
    },
    /// The log was lost or trimmed: all that is older than the entry's time may be invalid.
    All,
}

impl Invalidation {
    /// Returns about how many bytes it takes in the log.
    pub(crate) fn size_hint(&self) -> usize {
        const HEAD: usize = 48;
        HEAD + match self {
            Self::Ban(ban) => ban.tests.iter().map(|test| 16 + text_len(test)).sum::<usize>(),
            Self::Purge { digest, .. } => digest.len(),
            Self::Tag { tag, .. } => tag.len(),
            Self::All => 0,
        }
    }
}

fn text_len(test: &Test) -> usize {
    match test {
        Test::Text { subject: Subject::RequestHeader(name) | Subject::ObjectHeader(name), text, .. } => {
            name.len() + text.len()
        }
        Test::Text { text, .. } => text.len(),
        Test::Number { .. } => 8,
    }
}

/// An entry of the invalidation log.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its sequence number. Later entries of one log have greater ones.
    pub seq: u64,
    /// When it was appended, seconds since 1970.
    pub at: f64,
    /// What it invalidates.
    pub what: Invalidation,
}

/// Names who appended an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(pub(crate) [u8; 16]);

impl Origin {
    /// Makes one that no other process has.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn random() -> Result<Self, Outage> {
        random().map(Self)
    }
}

/// Receives the entries that other instances appended: in order, each once, as soon as it is in the log.
pub trait Follower: Send + Sync {
    /// Applies entries. Called by a thread of the instance, one call at a time. It may block: entries that are appended
    /// meanwhile are in the next call. It must not call [`L2`](crate::L2).
    fn apply(&self, entries: &[Entry]);
}
