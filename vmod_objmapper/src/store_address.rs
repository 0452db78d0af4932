//! The address of a second level's store, and the key by which directors share a second level.

use std::path::PathBuf;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::engine::Storage;

/// The address of a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum StoreAddress {
    /// An objmapperd.
    Socket(PathBuf),
    /// The store inside this process, of a storage.
    Embedded(Storage),
}

impl std::fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreAddress::Socket(path) => write!(f, "{}", path.display()),
            StoreAddress::Embedded(_) => f.write_str("embedded"),
        }
    }
}

impl StoreAddress {
    /// Returns the store that a director's arguments name, or else the one of the storage engine.
    pub(crate) fn of(arguments: &Arguments) -> Result<StoreAddress, String> {
        if let Some(path) = &arguments.socket {
            return Ok(StoreAddress::Socket(path.clone()));
        }
        let storage = Storage::default_one().ok_or(
            "socket = \"\": there is no storage engine of objmapper's whose store could be used; give socket the path of an \
             objmapperd, or start varnishd with -E /…/libstevedore_objmapper.so -s objmapper,…",
        )?;
        Ok(match storage.socket() {
            Some(path) => StoreAddress::Socket(path),
            None => StoreAddress::Embedded(storage),
        })
    }
}

/// The key of a second level: store, prefix, deadline, headers that name tags.
pub(crate) type StoreKey = (StoreAddress, Vec<u8>, Duration, Vec<Vec<u8>>);
