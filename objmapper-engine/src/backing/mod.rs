//! Where published bodies are: the store inside this process, or an objmapperd.

mod embedded;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use embedded::Embedded;

/// Why objmapper did not do what was asked. Each is counted under its kind.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no connection.
    #[error("objmapper is down: {0}")]
    Down(String),
    /// Its limit is reached by what it cannot evict.
    #[error("objmapper is full: {0}")]
    Full(String),
    /// No answer before the deadline.
    #[error("objmapper did not answer in time: {0}")]
    Timeout(String),
    /// No descriptors, no memory, input or output.
    #[error("{0}")]
    Io(String),
    /// It answered what it may not.
    #[error("objmapper refused: {0}")]
    Protocol(String),
}

/// A published body: immutable, in a tier's directory under a name of its own.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Our own name for it, never used twice in this process.
    pub(crate) key: u64,
    /// objmapper's name for it.
    pub(crate) object: u64,
    /// The tier's directory. Holding it keeps a memory tier alive even if objmapperd is not.
    pub(crate) tier: Arc<OwnedFd>,
    /// Which start of the store the body belongs to.
    pub(crate) instance: u64,
}

impl Stored {
    /// The body's number in objmapper.
    pub fn object(&self) -> u64 {
        self.object
    }

    /// Its file's path below the tier's directory (the protocol extensions' "body's file").
    pub(crate) fn path(&self) -> String {
        format!("{:02x}/{:016x}", self.object & 0xff, self.object)
    }
}

/// A body's file while it is private and writable.
pub struct Draft {
    file: File,
    handle: Handle,
}

enum Handle {
    Embedded(embedded::Handle),
}

impl Draft {
    /// The file, readable and writable.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it up.
    pub(crate) fn abort(self) {
        drop(self);
    }
}

/// One of the two.
pub enum Backing {
    /// The store is in this process.
    Embedded(Embedded),
}

impl Backing {
    /// A new private file, with `length` bytes reserved.
    pub(crate) fn create(&self, length: u64) -> Result<Draft, Failure> {
        match self {
            Backing::Embedded(store) => store.create(length),
        }
    }

    /// Sets a draft's reservation to `length` bytes in total.
    pub(crate) fn reserve(&self, draft: &mut Draft, length: u64) -> Result<(), Failure> {
        match &mut draft.handle {
            Handle::Embedded(handle) => handle.reserve(length),
        }
    }

    /// Publishes a draft of `length` bytes under `uri`, closing its file. Nothing of it may be mapped writable.
    pub(crate) fn publish(&self, draft: Draft, uri: &str, length: u64, key: u64) -> Result<Stored, Failure> {
        match (self, draft.handle) {
            (Backing::Embedded(store), Handle::Embedded(handle)) => {
                drop(draft.file);
                store.publish(handle, uri, length, key)
            }
        }
    }

    /// A published body is not wanted any more. Does not block.
    pub(crate) fn release(&self, stored: &Stored) {
        match self {
            Backing::Embedded(store) => store.release(stored),
        }
    }

    /// Does the store answer?
    pub fn answers(&self) -> bool {
        match self {
            Backing::Embedded(_) => true,
        }
    }
}
