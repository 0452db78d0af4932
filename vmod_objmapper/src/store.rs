//! Second levels: one per store, prefix and deadline, for all VCLs of this process.
//!
//! | state | next |
//! |---|---|
//! | in use by directors | the last of them ends: idle |
//! | idle | a director opens it again: in use; [`IDLE_GRACE`] passes: ended, with its connections and threads |
//!
//! An idle one still is told of bans. So a VCL that is loaded soon after another one was discarded finds its connections, and
//! misses no ban.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use objmapper_log::RateLimited;
use objmapper_records::{Config, Connect, L2, Notice};
use parking_lot::{Mutex, RwLock};

use crate::arguments::Arguments;
use crate::l1::logs::{self, Link};
use crate::regex::Compiler;
use crate::store_address::{StoreAddress, StoreKey};
use crate::{bans, director, l1, operator};

/// The connections of each: as many calls of an objmapperd can be under way at once, without waiting for one another.
const CONNECTIONS: usize = 4;

/// Lines about the state of each in a minute.
const LINES: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// How long a second level without directors stays open. `vmod_objmapper.vcc` and DESIGN.md say so, too.
const IDLE_GRACE: Duration = Duration::from_secs(10);

/// A second level that is open.
struct Open {
    l2: Arc<L2>,
    /// What follows its log. It ends behind the second level.
    _link: Link,
    directors: usize,
    /// Since when it has none.
    idle_since: Option<Instant>,
}

type Stores = HashMap<StoreKey, Open>;

/// Held while a second level is made or taken off, so that readers of `OPEN` (a ban comes in, under varnishd's ban mutex) never
/// wait for that.
static MAKING: Mutex<()> = Mutex::new(());
static OPEN: RwLock<Option<Stores>> = RwLock::new(None);
/// True while a thread ends idle ones.
static ENDING: Mutex<bool> = Mutex::new(false);

/// A director's use of a second level, which ends when this is dropped.
pub(crate) struct Use {
    l2: Arc<L2>,
    pub(crate) key: StoreKey,
}

impl Deref for Use {
    type Target = L2;

    fn deref(&self) -> &L2 {
        &self.l2
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let is_idle = {
            let mut open = OPEN.write();
            let Some(open) = open.as_mut().and_then(|stores| stores.get_mut(&self.key)) else { return };
            open.directors -= 1;
            open.idle_since = (open.directors == 0).then(Instant::now);
            open.directors == 0
        };
        if is_idle {
            end_idle_later();
        }
    }
}

/// Begins the use of the second level of this key, if it is open.
fn reuse(key: &StoreKey) -> Option<Use> {
    let mut open = OPEN.write();
    let open = open.as_mut()?.get_mut(key)?;
    (open.directors, open.idle_since) = (open.directors + 1, None);
    Some(Use { l2: open.l2.clone(), key: key.clone() })
}

/// Returns the second level for a director's arguments.
pub(crate) fn open(arguments: &Arguments) -> Result<Use, String> {
    let address = StoreAddress::of(arguments)?;
    let key = (address.clone(), arguments.prefix.clone(), arguments.deadline, arguments.tags.clone());
    let _making = MAKING.lock();
    bans::listen(|ban| each(|l2| l2.announce_ban(ban)))?;
    l1::start();
    let log = (address.clone(), arguments.prefix.clone());
    logs::wish(&log, arguments.follow);
    if let Some(open) = reuse(&key) {
        return Ok(open);
    }
    let link = Link::begin(&log);
    if arguments.follow && matches!(address, StoreAddress::Socket(_)) {
        l1::follow_anew();
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
        tags: arguments.tags.clone(),
        log_limit: arguments.log_size,
        origin: Some(l1::origin()?),
        since: link.since(),
        follower: Some(link.follower()),
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
    let open = Open { l2: l2.clone(), _link: link, directors: 1, idle_since: None };
    OPEN.write().get_or_insert_default().insert(key.clone(), open);
    bans::announce_present(&l2);
    Ok(Use { l2, key })
}

/// Has idle second levels ended when their time has come: by a thread, which lives as long as there are any.
fn end_idle_later() {
    let mut ending = ENDING.lock();
    if *ending {
        return;
    }
    match std::thread::Builder::new().name("objm-idle".into()).spawn(end_idle) {
        Ok(_) => *ending = true,
        Err(error) => operator("(idle)", &format!("connections that are not used stay open: start a thread: {error}")),
    }
}

fn end_idle() {
    loop {
        std::thread::sleep(IDLE_GRACE / 10);
        let (ended, is_done) = {
            let _making = MAKING.lock();
            // Whoever makes one idle after this finds the flag as it is set here.
            let mut ending = ENDING.lock();
            let mut open = OPEN.write();
            let stores = open.get_or_insert_default();
            let is_over = |open: &Open| open.idle_since.is_some_and(|since| since.elapsed() >= IDLE_GRACE);
            let ended: Vec<Open> = stores.extract_if(|_, open| is_over(open)).map(|(_, open)| open).collect();
            *ending = stores.values().any(|open| open.idle_since.is_some());
            (ended, !*ending)
        };
        // Without a lock: each may take as long as a call to its store.
        drop(ended);
        if is_done {
            return;
        }
    }
}

/// Calls `call` for each. Waits for an insertion into the map, at most.
fn each(mut call: impl FnMut(&L2)) {
    if let Some(stores) = OPEN.read().as_ref() {
        stores.values().for_each(|open| call(&open.l2));
    }
}
