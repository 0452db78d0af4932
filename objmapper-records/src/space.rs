//! A second level: the records of one prefix in one store. This is the crate's entrance; the work is in `find`,
//! `purge`, `bans`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use objmapper_client::{Client, ConnectionState, Error, Event, UriError, UriSpace};
use objmapper_log::RateLimited;
use parking_lot::Mutex;

use crate::config::{Config, Connect, Log, Notice};
use crate::core::Core;
use crate::counters::Counters;
use crate::invalidation::bans::keeper::Keeper;
use crate::lookup::finding::Finding;
use crate::lookup::hit::{Hit, RecordFile};
use crate::lookup::request::{Lookup, RequestView};
use crate::outage::Outage;
use crate::record::bytes::Malformed;
use crate::record::key::{Key, without_scheme};

/// Why [`L2::open`] failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The prefix is empty, or too long.
    #[error("URI prefix: {0}")]
    Prefix(#[from] UriError),
    /// A thread cannot be started.
    #[error(transparent)]
    Client(#[from] Error),
    /// A thread cannot be started.
    #[error("start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Whether and how the store can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The store is connected, with all protocol extensions that are needed.
    Up,
    /// With a peer of protocol v0.1: no wait for another cache's fetch, no adoption, small bodies only.
    UpV01,
    /// The store answers, but has no board: it cannot be used.
    NoBoard,
    /// The store is not connected, for this long.
    Down(Duration),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::UpV01 => f.write_str("up (v0.1)"),
            Self::NoBoard => f.write_str("not usable (no board)"),
            Self::Down(since) => write!(f, "down for {}s", since.as_secs()),
        }
    }
}

/// The records of one prefix in one store. A process has one per store and prefix, which many threads share.
///
/// When it and the last [`Ticket`](crate::Ticket) are dropped, the session is ended, so that no cache waits for its
/// leases any more. Dropping may take as long as a call.
#[derive(Debug)]
pub struct L2 {
    pub(crate) core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Reports the client's events as notices: one for each change of state, in order.
fn announcer(log: Log, bans: Arc<Keeper>) -> impl Fn(&Event) + Send + Sync {
    move |event| {
        let notice = match event {
            Event::UpV01 { .. } => Notice::Up("a peer of protocol v0.1".into()),
            Event::SessionStarted { instance_changed: true, .. } => Notice::Up("it has started anew".into()),
            Event::SessionStarted { .. } => Notice::Up("connected".into()),
            Event::SessionResumed { .. } => Notice::Up("connected again".into()),
            Event::Down { why } => Notice::Down(why.to_string()),
            Event::Refused { why, connections: 0 } => Notice::Refused(why.to_string()),
            Event::Refused { why, connections } => Notice::FewConnections(format!("{connections} are open: {why}")),
            _ => return,
        };
        log(&notice);
        if matches!(notice, Notice::Up(_)) {
            // Bans that were made meanwhile are announced as early as possible.
            bans.wake_up();
        }
    }
}

impl L2 {
    /// Opens a second level, and starts its thread. The store may be absent: connections are made in the background.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        let prefix = config.prefix.trim_ascii();
        let prefix = without_scheme(prefix.strip_suffix(b"/").unwrap_or(prefix)).to_vec();
        let parts: Vec<&[u8]> = prefix.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
        let space = UriSpace::new(&parts)?;
        let builder = match config.store {
            Connect::Socket(path) => Client::builder(path),
            Connect::With(connector) => Client::builder_with(connector),
        };
        let bans = Arc::new(Keeper::new(&space));
        let client = builder
            .connections(config.connections)
            .call_timeout(config.call_timeout)
            .connect_timeout(config.call_timeout)
            .on_event(announcer(Arc::clone(&config.log), Arc::clone(&bans)))
            .build()?;
        let core = Arc::new(Core {
            bans,
            client,
            space,
            prefix,
            call_timeout: config.call_timeout,
            regexes: config.regexes,
            log: config.log,
            damaged_lines: RateLimited::new(10, Duration::from_secs(60)),
        });
        let worker = Arc::clone(&core);
        let thread = std::thread::Builder::new().name("objm-bans".into()).spawn(move || worker.run_ban_recorder())?;
        Ok(Arc::new(Self { core, thread: Mutex::new(Some(thread)) }))
    }

    /// Returns whether and how the store can be used.
    #[must_use]
    pub fn state(&self) -> State {
        match self.core.client.state() {
            ConnectionState::Down { since } => State::Down(since.elapsed()),
            ConnectionState::V01 { .. } => State::UpV01,
            ConnectionState::Extended { .. } => match self.core.session() {
                Ok(_) => State::Up,
                Err(_) => State::NoBoard,
            },
        }
    }

    /// Returns true if the store is connected. An atomic load.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.client.is_up()
    }

    /// Waits until the store is connected. Returns true if it is.
    pub fn wait_up(&self, timeout: Duration) -> bool {
        self.core.client.wait_connected(timeout).is_ok()
    }

    /// Returns the store's instance, which identifies it to other users of the same store; `None` while it is unknown,
    /// and for a v0.1 peer.
    #[must_use]
    pub fn instance(&self) -> Option<[u8; 16]> {
        self.core.client.session().map(|session| session.instance().0)
    }

    /// Returns the key of a request. `extra` separates requests with equal host and URL.
    #[must_use]
    pub fn key(&self, host: &[u8], url: &[u8], extra: Option<&[u8]>) -> Key {
        Key::of_request(&self.core.space, &self.core.prefix, host, url, extra)
    }

    /// Returns the key that has this text; see [`Key::text`].
    #[must_use]
    pub fn key_from_text(&self, text: &[u8]) -> Key {
        Key::of_text(&self.core.space, &self.core.prefix, text)
    }

    /// Looks up what answers a request. May wait: for a call until its deadline, and for another cache's fetch until
    /// `lookup.wait`.
    pub fn find(&self, lookup: &Lookup<'_>, counters: &Counters) -> Finding {
        let began = Instant::now();
        let finding = self.core.find(lookup, counters);
        Counters::add(&counters.t_find_us, began.elapsed().as_micros() as u64);
        counters.g_up.store(self.is_up().into(), Ordering::Relaxed);
        finding
    }

    /// Removes a record whose body was found to be damaged or unreadable during its delivery: the next look-up is a
    /// miss. If the store cannot be reached the record stays, and its next user finds the same. `why` names the damaged
    /// part.
    pub fn discard(&self, record: &RecordFile, why: &'static str, counters: &Counters) {
        let discarded = self.core.discard(record.uri(), record.entry().version, Malformed(why), counters);
        if let Err(outage) = discarded {
            counters.outage(outage);
        }
    }

    /// Deletes the record of a key with all its variants. Returns true if there was one. When it returns, no cache
    /// finds it, and a response that was requested before is not published any more.
    ///
    /// # Errors
    /// The store request failed: the record may still be there.
    pub fn purge(&self, key: &Key, counters: &Counters) -> Result<bool, Outage> {
        Counters::add(&counters.c_purges, 1);
        self.core.purge(key).inspect_err(|outage| {
            Counters::add(&counters.c_purge_failed, 1);
            counters.outage(*outage);
        })
    }

    /// Announces a ban, as varnishd encodes it. When it returns, no cache finds a record that the ban matches. It does
    /// not block and does not fail: the ban is recorded in the background, and until then every look-up waits or is a
    /// miss. A ban that cannot be decoded invalidates all records.
    ///
    /// While the store is down, other caches that use it cannot know of the ban. It is recorded as soon as the store is
    /// back, and before this process uses the store again.
    pub fn announce_ban(&self, spec: &[u8]) {
        self.core.announce_ban(spec);
    }

    /// Returns the number of announced bans that are not recorded yet.
    #[must_use]
    pub fn pending_bans(&self) -> usize {
        self.core.bans.pending()
    }
}

impl Hit {
    /// Returns true if no purge and no ban has invalidated the record since it was found. Atomic loads only, if there
    /// was neither. `client` is that of the [`Lookup`](crate::Lookup).
    #[must_use]
    pub fn still_valid(&self, l2: &L2, client: &dyn RequestView) -> bool {
        l2.core.is_still_valid(self, client)
    }
}

impl Drop for L2 {
    fn drop(&mut self) {
        self.core.bans.stop();
        if let Some(thread) = self.thread.get_mut().take()
            && thread.join().is_err()
        {
            (self.core.log)(&Notice::BanDelayed("the thread that records bans panicked".into()));
        }
    }
}
