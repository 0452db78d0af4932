//! Second levels: one per store, prefix and deadline, for all VCLs of this process.
//!
//! They stay open for as long as the process lives, so that a reload of VCL keeps its connections, and so that no ban is
//! missed between the discard of one VCL and the load of the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use objmapper_log::RateLimited;
use objmapper_records::{Config, Connect, L2, Notice};
use parking_lot::{Mutex, RwLock};

use crate::arguments::Arguments;
use crate::regex::Compiler;
use crate::store_address::{StoreAddress, StoreKey};
use crate::{bans, director, operator};

/// The connections of each: as many calls of an objmapperd can be under way at once, without waiting for one another.
const CONNECTIONS: usize = 4;

/// Lines about the state of each in a minute.
const LINES: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

type Stores = HashMap<StoreKey, Arc<L2>>;

/// Held while a second level is made, so that readers of `OPEN` (a ban comes in, under varnishd's ban mutex) never wait
/// for that.
static MAKING: Mutex<()> = Mutex::new(());
static OPEN: RwLock<Option<Stores>> = RwLock::new(None);

/// Returns the second level for a director's arguments, and its key.
pub(crate) fn open(arguments: &Arguments) -> Result<(Arc<L2>, StoreKey), String> {
    let address = StoreAddress::of(arguments)?;
    let key = (address.clone(), arguments.prefix.clone(), arguments.deadline);
    let _making = MAKING.lock();
    bans::listen(|spec| each(|l2| l2.announce_ban(spec)))?;
    if let Some(l2) = OPEN.read().as_ref().and_then(|stores| stores.get(&key)) {
        return Ok((l2.clone(), key));
    }
    let store = match &address {
        StoreAddress::Socket(path) => Connect::Socket(path.clone()),
        StoreAddress::Embedded(storage) => {
            let storage = *storage;
            Connect::With(Arc::new(move || storage.connect()))
        }
    };
    let ident = format!("{address} {}", arguments.prefix.escape_ascii());
    let shown = key.clone();
    let lines = RateLimited::new(LINES, MINUTE);
    let l2 = L2::open(Config {
        store,
        call_timeout: arguments.deadline,
        connections: CONNECTIONS,
        prefix: arguments.prefix.clone(),
        regexes: Arc::new(Compiler),
        log: Arc::new(move |notice: &Notice| {
            // A store that comes and goes makes such lines again and again.
            match notice {
                Notice::Up(_) | Notice::Down(_) | Notice::Refused(_) | Notice::FewConnections(_) => {
                    if let Some(left_out) = lines.admit() {
                        operator(&ident, &format!("{notice}{left_out}"));
                    }
                }
                _ => operator(&ident, &notice.to_string()),
            }
            match notice {
                Notice::Up(_) => director::show_state(&shown, true),
                Notice::Down(_) => director::show_state(&shown, false),
                _ => {}
            }
        }),
    })
    .map_err(|error| format!("socket {address}, prefix \"{}\": {error}", arguments.prefix.escape_ascii()))?;
    OPEN.write().get_or_insert_default().insert(key.clone(), l2.clone());
    bans::announce_present(&l2);
    Ok((l2, key))
}

/// Calls `call` for each. Waits for an insertion into the map, at most.
fn each(mut call: impl FnMut(&Arc<L2>)) {
    if let Some(stores) = OPEN.read().as_ref() {
        stores.values().for_each(&mut call);
    }
}
