//! Second levels: one per store, prefix and deadline, for all VCLs of this process.
//!
//! They stay open for as long as the process lives, so that a reload of VCL keeps its connections, and so that no ban is
//! missed between the discard of one VCL and the load of the next.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use objmapper_l2::{Config, Connect, L2, Notice};
use parking_lot::{Mutex, RwLock};

use crate::arguments::Arguments;
use crate::engine::Storage;
use crate::regex::Vre;
use crate::{bans, director, vsl};

/// Connections of each: as many calls of an objmapperd can be on their way at once, without waiting for one another.
const CONNECTIONS: usize = 4;

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

/// What tells one second level from another: store, prefix, deadline.
pub(crate) type Name = (Place, Vec<u8>, Duration);

type Stores = HashMap<Name, Arc<L2>>;

/// Who makes a second level holds `MAKING`, so that readers of `OPEN` (a ban comes in, under varnishd's ban mutex) never wait
/// for that.
static MAKING: Mutex<()> = Mutex::new(());
static OPEN: RwLock<Option<Stores>> = RwLock::new(None);

/// The second level for a director's arguments, and its name.
pub(crate) fn open(arguments: &Arguments) -> Result<(Arc<L2>, Name), String> {
    let place = place(arguments)?;
    let key = (place.clone(), arguments.prefix.clone(), arguments.deadline);
    let _making = MAKING.lock();
    bans::listen()?;
    if let Some(l2) = OPEN.read().as_ref().and_then(|stores| stores.get(&key)) {
        return Ok((l2.clone(), key));
    }
    let store = match &place {
        Place::Socket(path) => Connect::Socket(path.clone()),
        Place::Embedded(storage) => {
            let storage = *storage;
            Connect::With(Arc::new(move || storage.connect()))
        }
    };
    let who = format!("{place} {}", arguments.prefix.escape_ascii());
    let told = key.clone();
    let l2 = L2::open(Config {
        store,
        call_timeout: arguments.deadline,
        connections: CONNECTIONS,
        prefix: arguments.prefix.clone(),
        regexes: Arc::new(Vre),
        log: Arc::new(move |notice: &Notice| {
            vsl::operator(&who, &notice.to_string());
            match notice {
                Notice::Up(_) => director::show_state(&told, true),
                Notice::Down(_) => director::show_state(&told, false),
                _ => {}
            }
        }),
    })
    .map_err(|error| format!("socket {place}, prefix \"{}\": {error}", arguments.prefix.escape_ascii()))?;
    OPEN.write().get_or_insert_default().insert(key.clone(), l2.clone());
    bans::announce_present(&l2);
    Ok((l2, key))
}

fn place(arguments: &Arguments) -> Result<Place, String> {
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

/// Calls `tell` for each. Never waits but for another's insertion into the map.
pub(crate) fn each(mut tell: impl FnMut(&Arc<L2>)) {
    if let Some(stores) = OPEN.read().as_ref() {
        stores.values().for_each(&mut tell);
    }
}
