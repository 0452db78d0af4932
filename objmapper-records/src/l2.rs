//! A second level: the records of one prefix in one store. This is the crate's entrance; the work is in `lookup`,
//! `publication` and `invalidation`.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use objmapper_ban::Ban;
use objmapper_client::{Client, ConnectionState, Error, Event, UriError, UriSpace};
use objmapper_log::RateLimited;
use parking_lot::Mutex;

use crate::config::{Config, Connect, Log, Notice};
use crate::core::Core;
use crate::counters::Counters;
use crate::invalidation::journal::{Journal, now};
use crate::lookup::finding::Finding;
use crate::lookup::hit::RecordFile;
use crate::lookup::request::Lookup;
use crate::outage::Outage;
use crate::record::bytes::Malformed;
use crate::record::key::{Key, without_scheme};
use crate::store::Store;

/// Why [`L2::open`] failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The prefix is empty, or too long.
    #[error("URI prefix: {0}")]
    Prefix(#[from] UriError),
    /// A thread cannot be started.
    #[error(transparent)]
    Client(#[from] Error),
    /// The system has no random bytes, which name this instance.
    #[error("no random bytes")]
    Random,
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
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Reports the client's events as notices: one for each change of state, in order.
fn announcer(log: Log, journal: Arc<OnceLock<Weak<Journal>>>) -> impl Fn(&Event) + Send + Sync {
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
            if let Some(journal) = journal.get().and_then(Weak::upgrade) {
                journal.wake_up();
            }
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
        // The client is part of the store, which the journal is made of.
        let woken = Arc::new(OnceLock::new());
        let client = builder
            .connections(config.connections)
            .call_timeout(config.call_timeout)
            .connect_timeout(config.call_timeout)
            .on_event(announcer(Arc::clone(&config.log), Arc::clone(&woken)))
            .build()?;
        let since = config.since.unwrap_or_else(now);
        let store = Arc::new(Store {
            client,
            space,
            prefix,
            call_timeout: config.call_timeout,
            log: config.log,
            damaged_lines: RateLimited::new(10, Duration::from_secs(60)),
        });
        let journal = Journal::new(Arc::clone(&store), config.regexes, config.log_limit, config.origin)
            .map_err(|_| OpenError::Random)?;
        let journal = Arc::new(journal);
        let _ = woken.set(Arc::downgrade(&journal));
        let core = Arc::new(Core { store, journal: Arc::clone(&journal), tags: config.tags });
        // If the second thread cannot be started, dropping this ends the first one.
        let l2 = Arc::new(Self { core, threads: Mutex::default() });
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        let recorder = Arc::clone(&journal);
        l2.threads.lock().push(named("objm-log").spawn(move || recorder.run_recorder())?);
        if let Some(follower) = config.follower {
            l2.threads.lock().push(named("objm-log-follow").spawn(move || journal.run_follower(&*follower, since))?);
        }
        Ok(l2)
    }

    /// Returns whether and how the store can be used.
    #[must_use]
    pub fn state(&self) -> State {
        match self.core.store.client.state() {
            ConnectionState::Down { since } => State::Down(since.elapsed()),
            ConnectionState::V01 { .. } => State::UpV01,
            ConnectionState::Extended { .. } => match self.core.store.session() {
                Ok(_) => State::Up,
                Err(_) => State::NoBoard,
            },
        }
    }

    /// Returns true if the store is connected. An atomic load.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.store.client.is_up()
    }

    /// Waits until the store is connected. Returns true if it is.
    pub fn wait_up(&self, timeout: Duration) -> bool {
        self.core.store.client.wait_connected(timeout).is_ok()
    }

    /// Returns the store's instance, which identifies it to other users of the same store; `None` while it is unknown,
    /// and for a v0.1 peer.
    #[must_use]
    pub fn instance(&self) -> Option<[u8; 16]> {
        self.core.store.client.session().map(|session| session.instance().0)
    }

    /// Returns the key of a request. `digest` is what its cache knows it by: if it is not that of host and URL, it alone
    /// is the key. `None`: it is not known yet.
    #[must_use]
    pub fn key(&self, host: Option<&[u8]>, url: &[u8], digest: Option<&[u8; 32]>) -> Key {
        Key::of_request(&self.core.store.space, &self.core.store.prefix, host, url, digest)
    }

    /// Returns the key of a digest, for a purge: it invalidates the records of all requests with this digest.
    #[must_use]
    pub fn key_from_digest(&self, digest: &[u8; 32]) -> Key {
        Key::of_digest(&self.core.store.space, &self.core.store.prefix, digest)
    }

    /// Returns the key that has this text; see [`Key::text`].
    #[must_use]
    pub fn key_from_text(&self, text: &[u8]) -> Key {
        Key::of_text(&self.core.store.space, &self.core.store.prefix, text)
    }

    /// Looks up what answers a request. May wait: for a call until its deadline, and for another cache's fetch until
    /// `lookup.wait`.
    pub fn find(&self, lookup: &Lookup<'_>, counters: &Counters) -> Finding {
        let began = Instant::now();
        let finding = lookup.run(&self.core, counters);
        Counters::add(&counters.t_find_us, began.elapsed().as_micros() as u64);
        counters.g_up.store(self.is_up().into(), Ordering::Relaxed);
        let (bytes, trimmed) = self.core.journal.size();
        counters.g_log_bytes.store(bytes, Ordering::Relaxed);
        counters.c_log_trimmed.store(trimmed, Ordering::Relaxed);
        finding
    }

    /// Removes a record whose body was found to be damaged or unreadable during its delivery: the next look-up is a
    /// miss. If the store cannot be reached the record stays, and its next user finds the same. `why` names the damaged
    /// part.
    pub fn discard(&self, record: &RecordFile, why: &'static str, counters: &Counters) {
        let discarded = self.core.store.discard(record.uri(), record.entry().version, Malformed(why), counters);
        if let Err(outage) = discarded {
            counters.outage(outage);
        }
    }

    /// Invalidates the records of a key, with all their variants, and all other records of its digest. When it returns, no
    /// cache finds them, and a response that was requested before is not published any more. A soft purge leaves them:
    /// from now on they are stale, and their grace and keep begin. Returns true if a hard purge has deleted something at
    /// the key's URI.
    ///
    /// # Errors
    /// The store request failed: the record may still be there.
    pub fn purge(&self, key: &Key, soft: bool, counters: &Counters) -> Result<bool, Outage> {
        self.count_purge(self.core.purge(key, soft), counters)
    }

    /// Invalidates the records with at least one of these tags, as [`L2::purge`] does for a key.
    ///
    /// # Errors
    /// The store request failed: such records may still be there.
    pub fn purge_tags(&self, tags: &[&[u8]], soft: bool, counters: &Counters) -> Result<(), Outage> {
        self.count_purge(self.core.purge_tags(tags, soft), counters)
    }

    fn count_purge<T>(&self, purged: Result<T, Outage>, counters: &Counters) -> Result<T, Outage> {
        Counters::add(&counters.c_purges, 1);
        purged.inspect_err(|outage| {
            Counters::add(&counters.c_purge_failed, 1);
            counters.outage(*outage);
        })
    }

    /// Announces a ban. When it returns, no cache finds a record that the ban matches. It does
    /// not block and does not fail: the ban is recorded in the background, and until then every look-up waits or is a
    /// miss.
    ///
    /// While the store is down, other caches that use it cannot know of the ban. It is recorded as soon as the store is
    /// back, and before this process uses the store again.
    pub fn announce_ban(&self, ban: &Ban) {
        self.core.journal.announce_ban(ban);
    }

    /// Returns the number of announced bans that are not recorded yet.
    #[must_use]
    pub fn pending_bans(&self) -> usize {
        self.core.journal.pending_bans()
    }
}

impl Drop for L2 {
    fn drop(&mut self) {
        self.core.journal.stop();
        for thread in self.threads.get_mut().drain(..) {
            if thread.join().is_err() {
                (self.core.store.log)(&Notice::LogDelayed("a thread of the invalidation log panicked".into()));
            }
        }
    }
}
