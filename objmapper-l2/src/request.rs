//! What is looked for.

use std::time::Duration;

use crate::key::Key;

/// A request, as this crate needs to see it.
pub trait RequestView {
    /// Its URL.
    fn url(&self) -> &[u8];
    /// The value of the first header of this name (compared without case), without white space around it.
    fn header(&self, name: &[u8]) -> Option<&[u8]>;
}

/// Which records' bodies the caller can use where they are, without reading them.
#[derive(Debug, Clone, Copy)]
pub struct Adopts {
    /// The instance of the store that they must be in.
    pub instance: [u8; 16],
    /// Bytes of body that they must have at least.
    pub from: u64,
    /// Returns true if the file of object number `object` in store `instance` was found to be unreadable. Such a record is damaged.
    pub is_unreadable: fn(instance: [u8; 16], object: u64) -> bool,
}

/// A look-up.
pub struct Lookup<'a> {
    /// What.
    pub key: &'a Key,
    /// What the origin would be asked: for Vary.
    pub request: &'a dyn RequestView,
    /// What the client asked, before anybody rewrote it for the origin: for bans.
    pub client: &'a dyn RequestView,
    /// How long to wait for another's fetch at most.
    pub wait: Duration,
    /// How long others wait for the caller's fetch at most, should it be given the ticket: from then on the next one who
    /// waits is given it.
    pub hold: Duration,
    /// The time.
    pub now: f64,
    /// Whether the caller asks the origin whatever there is, and only wants to publish its answer. It waits for nobody.
    pub refresh: bool,
    /// Bodies that need not be read. All others of at most [`RecordFile::READ_LIMIT`](crate::RecordFile::READ_LIMIT)
    /// bytes are read and verified before they are a hit.
    pub adopts: Option<Adopts>,
}

impl std::fmt::Debug for Lookup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup").field("key", &self.key).field("wait", &self.wait).finish_non_exhaustive()
    }
}
