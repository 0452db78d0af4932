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
use crate::place::{Name, Place};
use crate::regex::Vre;
use crate::{bans, om, operator};

/// Connections of each: as many calls of an objmapperd can be on their way at once, without waiting for one another.
const CONNECTIONS: usize = 4;

/// Lines about the state of each in a minute.
const LINES: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

type Stores = HashMap<Name, Arc<L2>>;

/// Who makes a second level holds `MAKING`, so that readers of `OPEN` (a ban comes in, under varnishd's ban mutex) never wait
/// for that.
static MAKING: Mutex<()> = Mutex::new(());
static OPEN: RwLock<Option<Stores>> = RwLock::new(None);

/// The second level for a director's arguments, and its name.
pub(crate) fn open(arguments: &Arguments) -> Result<(Arc<L2>, Name), String> {
    let place = Place::of(arguments)?;
    let key = (place.clone(), arguments.prefix.clone(), arguments.deadline);
    let _making = MAKING.lock();
    bans::listen(|spec| each(|l2| l2.announce_ban(spec)))?;
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
    let lines = RateLimited::new(LINES, MINUTE);
    let l2 = L2::open(Config {
        store,
        call_timeout: arguments.deadline,
        connections: CONNECTIONS,
        prefix: arguments.prefix.clone(),
        regexes: Arc::new(Vre),
        log: Arc::new(move |notice: &Notice| {
            // A store that comes and goes says so again and again.
            match notice {
                Notice::Up(_) | Notice::Down(_) | Notice::Refused(_) | Notice::FewConnections(_) => {
                    if let Some(left_out) = lines.admit() {
                        operator(&who, &format!("{notice}{left_out}"));
                    }
                }
                _ => operator(&who, &notice.to_string()),
            }
            match notice {
                Notice::Up(_) => om::show_state(&told, true),
                Notice::Down(_) => om::show_state(&told, false),
                _ => {}
            }
        }),
    })
    .map_err(|error| format!("socket {place}, prefix \"{}\": {error}", arguments.prefix.escape_ascii()))?;
    OPEN.write().get_or_insert_default().insert(key.clone(), l2.clone());
    bans::announce_present(&l2);
    Ok((l2, key))
}

/// Calls `tell` for each. Never waits but for another's insertion into the map.
fn each(mut tell: impl FnMut(&Arc<L2>)) {
    if let Some(stores) = OPEN.read().as_ref() {
        stores.values().for_each(&mut tell);
    }
}
