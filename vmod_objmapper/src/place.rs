//! Where a second level has its store.

use std::path::PathBuf;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::engine::Storage;

/// Which store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// An objmapperd.
    Socket(PathBuf),
    /// The store inside this process, of a storage.
    Embedded(Storage),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Socket(path) => write!(f, "{}", path.display()),
            Place::Embedded(_) => f.write_str("embedded"),
        }
    }
}

impl Place {
    /// The store that a director's arguments name, or else the one of the storage engine.
    pub(crate) fn of(arguments: &Arguments) -> Result<Place, String> {
        if let Some(path) = &arguments.socket {
            return Ok(Place::Socket(path.clone()));
        }
        let storage = Storage::default_one().ok_or(
            "socket = \"\": there is no storage engine of objmapper's whose store could be used; give socket the path of an \
             objmapperd, or start varnishd with -E /…/libstevedore_objmapper.so -s objmapper,…",
        )?;
        Ok(match storage.socket() {
            Some(path) => Place::Socket(path),
            None => Place::Embedded(storage),
        })
    }
}

/// What tells one second level from another: store, prefix, deadline.
pub(crate) type Name = (Place, Vec<u8>, Duration);
