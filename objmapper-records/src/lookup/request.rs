//! The parameters of a look-up.

use std::time::Duration;

use crate::record::key::Key;

/// The part of a request that this crate reads.
pub trait RequestView {
    /// Returns the URL.
    fn url(&self) -> &[u8];
    /// Returns the value of the first header of this name (case-insensitive), without white space around it.
    fn header(&self, name: &[u8]) -> Option<&[u8]>;
}

/// The records whose bodies the caller can adopt, without reading them.
#[derive(Debug, Clone, Copy)]
pub struct Adopts {
    /// The instance of the store that has them.
    pub instance: [u8; 16],
    /// The fewest bytes of body that they have.
    pub from: u64,
    /// Returns true if the file of object number `object` in store `instance` was found to be unreadable. Such a record is damaged.
    pub is_unreadable: fn(instance: [u8; 16], object: u64) -> bool,
}

/// The parameters of a look-up.
pub struct Lookup<'a> {
    /// The key to look up.
    pub key: &'a Key,
    /// The request to the origin, for Vary.
    pub request: &'a dyn RequestView,
    /// The client's request, before VCL rewrote it for the origin, for bans.
    pub client: &'a dyn RequestView,
    /// The longest wait for another cache's fetch.
    pub wait: Duration,
    /// The token that the client's request brought: if it is the fetch of another cache ([`L2::is_fetch`](crate::L2::is_fetch)),
    /// the look-up does not wait.
    pub token: Option<&'a [u8]>,
    /// The longest time for which the caller holds the ticket, if it is granted it; afterwards the next waiting look-up
    /// is granted it.
    pub hold: Duration,
    /// The present time, seconds since 1970.
    pub now: f64,
    /// True if the caller asks the origin in any case, and needs the ticket only to publish the response. The look-up
    /// does not wait.
    pub refresh: bool,
    /// Bodies that need not be read. All other bodies of at most
    /// [`RecordFile::READ_LIMIT`](crate::RecordFile::READ_LIMIT) bytes are read and verified before they are a hit.
    pub adopts: Option<Adopts>,
}

impl std::fmt::Debug for Lookup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup").field("key", &self.key).field("wait", &self.wait).finish_non_exhaustive()
    }
}
