//! The connections of a client, and the thread `objm-keeper` that makes and watches them.
//!
//! Lock order: `order` (held from a change of state to the end of its event, so that events come in order), then `peer`, then
//! `connections`. A lost connection is reported by the thread that notices it; the keeper makes another, at the pace of `pace`.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use objmapper_log::RateLimited;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::board::Board;
use crate::config::Config;
use crate::connection::{Connection, Owner};
use crate::counters::Counters;
use crate::deferred::{Deferred, Item};
use crate::error::{Error, OpName, Result};
use crate::handshake::{Attachment, MinProtocol, establish};
use crate::pace::Pace;
use crate::session::Session;
use crate::socket::{Happened, watch};
use crate::state::{ConnectionState, Event, Version};

/// Maximum number of log lines of one kind in a minute.
const LINES: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// A refusal is reported once it has lasted this long: a store that shuts down refuses for a moment, and is down then.
const LASTING: Duration = Duration::from_secs(1);

/// The state of the peer.
#[derive(Debug)]
struct Peer {
    session: Option<Arc<Session>>,
    down_since: Option<Instant>,
    next_session: u64,
    /// True once the store has been reached.
    seen: bool,
    /// True once [`Event::Down`] was announced for the present outage.
    down_announced: bool,
    /// The time of the first of the refusals since the last connection, or the last failure of another kind.
    refused_since: Option<Instant>,
    /// True once a refusal was announced since the last connection was made.
    refusal_announced: bool,
}

impl Peer {
    /// Notes a failed attempt to connect. Returns true if it is a refusal that is to be announced.
    fn note_refusal(&mut self, is_refusal: bool, outage_begins: bool, now: Instant) -> bool {
        if !is_refusal {
            self.refused_since = None;
            return false;
        }
        let since = *self.refused_since.get_or_insert(now);
        // The reason of the outage is announced with it.
        let due = outage_begins || now.duration_since(since) >= LASTING;
        due && !std::mem::replace(&mut self.refusal_announced, true)
    }
}

/// The connections, and their shared state.
pub(crate) struct Pool {
    pub(crate) config: Config,
    pub(crate) counters: Arc<Counters>,
    pub(crate) deferred: Arc<Deferred>,
    connections: RwLock<Vec<Arc<Connection>>>,
    turn: AtomicU64,
    /// Held from a change to the end of its event, so that events come in order. Taken before `peer`.
    order: Mutex<()>,
    peer: Mutex<Peer>,
    /// With `peer`: signalled when the state goes up or down.
    changed: Condvar,
    /// Grows with every event; lets a user notice one by an atomic load.
    generation: AtomicU64,
    up: AtomicBool,
    /// True once no further connection is made.
    retired: AtomicBool,
    /// True once no connection is used any more; implies `retired`.
    stopped: AtomicBool,
    wake: EventFd,
    /// Limits the rate of lines about events.
    event_log: RateLimited,
}

impl Pool {
    pub(crate) fn new(config: Config) -> Result<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags).map_err(Error::io("eventfd"))?;
        Ok(Arc::new(Self {
            config,
            counters: Arc::default(),
            deferred: Arc::default(),
            connections: RwLock::default(),
            turn: AtomicU64::new(0),
            order: Mutex::new(()),
            peer: Mutex::new(Peer {
                session: None,
                down_since: Some(Instant::now()),
                next_session: 1,
                seen: false,
                down_announced: false,
                refused_since: None,
                refusal_announced: false,
            }),
            changed: Condvar::new(),
            generation: AtomicU64::new(0),
            up: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            wake,
            event_log: RateLimited::new(LINES, MINUTE),
        }))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.peer.lock().session.clone()
    }

    pub(crate) fn state(&self) -> ConnectionState {
        let peer = self.peer.lock();
        if let Some(since) = peer.down_since {
            return ConnectionState::Down { since };
        }
        let connections = self.connections.read();
        let n = connections.iter().filter(|c| c.is_alive()).count();
        match (&peer.session, connections.first()) {
            (Some(session), _) => ConnectionState::Extended { session: session.id, connections: n },
            (None, c) => {
                let version = c.map_or(Version::V1, |c| c.version);
                ConnectionState::V01 { version, connections: n }
            }
        }
    }

    /// Waits until the store can be reached.
    pub(crate) fn wait_up(&self, deadline: Instant) -> Result<()> {
        let mut peer = self.peer.lock();
        while let Some(since) = peer.down_since {
            if self.changed.wait_until(&mut peer, deadline).timed_out() && peer.down_since.is_some() {
                return Err(Error::Down { since });
            }
        }
        Ok(())
    }

    /// Returns the connection with the fewest outstanding requests.
    pub(crate) fn pick(&self) -> Result<Arc<Connection>> {
        let connections = self.connections.read();
        let n = connections.len();
        // Begins at another connection each time, so that equally loaded ones take turns.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let best =
            (0..n).map(|i| &connections[(turn.wrapping_add(i)) % n]).filter(|c| c.is_alive()).min_by_key(|c| c.load());
        match best {
            Some(connection) => Ok(Arc::clone(connection)),
            None => {
                drop(connections);
                Counters::add(&self.counters.down, 1);
                let since = self.peer.lock().down_since.unwrap_or_else(Instant::now);
                Err(Error::Down { since })
            }
        }
    }

    /// Returns a connection as [`Self::pick`] does, for an operation of the extensions.
    pub(crate) fn pick_extended(&self, op: OpName) -> Result<Arc<Connection>> {
        let connection = self.pick()?;
        if connection.version == Version::Extended { Ok(connection) } else { Err(Error::Unsupported(op)) }
    }

    /// Reports an event. The caller holds `order`.
    fn announce(&self, event: &Event) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(listener) = &self.config.listener {
            listener(event);
        } else if let Some(left_out) = self.event_log.admit() {
            let target = &self.config.target;
            match event {
                Event::Down { why } => log::warn!("objmapper at {target} is down: {why}{left_out}"),
                Event::Refused { why, connections } => {
                    log::warn!("objmapper at {target} gives no more than {connections} connections: {why}{left_out}");
                }
                event => log::info!("objmapper at {target}: {event:?}{left_out}"),
            }
        }
    }

    /// Stops making connections; open ones stay.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.retire();
        // Cloned, so that the lock is free: `fail` calls `lost`, which waits for `order`, and the keeper may hold `order` and wait
        // for `connections`.
        let connections = self.connections.read().clone();
        for connection in connections {
            connection.fail(&Error::ShutDown);
        }
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    fn wake(&self) {
        // Fails only if the eventfd's counter is full, and then the keeper wakes anyway.
        let _ = self.wake.write(1);
    }

    /// Runs the keeper: makes missing connections and watches open ones, until the client ends.
    pub(crate) fn keep(self: &Arc<Self>) {
        let mut pace = Pace::new(self.config.max_backoff, Instant::now());
        while !self.is_retired() {
            let missing = self.remove_dead(&mut pace);
            if missing > 0 && pace.left(Instant::now()).is_zero() {
                match self.add_connection() {
                    Ok(()) => continue,
                    Err(why) => {
                        Counters::add(&self.counters.connect_failures, 1);
                        pace.failed(Instant::now());
                        self.report_failure(why);
                    }
                }
            }
            let timeout = (missing > 0).then(|| pace.left(Instant::now()));
            self.watch(timeout);
        }
    }

    /// Removes lost connections and returns the number of missing ones.
    fn remove_dead(&self, pace: &mut Pace) -> usize {
        let mut connections = self.connections.write();
        let (alive, dead): (Vec<_>, Vec<_>) = connections.drain(..).partition(|c| c.is_alive());
        *connections = alive;
        if dead.iter().any(|c| c.has_answered()) {
            pace.answered(Instant::now());
        } else if !dead.is_empty() {
            pace.failed(Instant::now());
        }
        self.config.connections.saturating_sub(connections.len())
    }

    /// Reports that no connection could be made, if that begins an outage, or if it is a refusal that lasts.
    fn report_failure(&self, why: Error) {
        log::debug!("objmapper at {}: no connection: {why}", self.config.target);
        let _order = self.order.lock();
        // A lost connection may not have been reported yet: then the outage begins here, and its report finds it announced.
        let outage_begins = self.note_outage();
        let refused = self.peer.lock().note_refusal(why.is_refusal(), outage_begins, Instant::now());
        if self.is_retired() {
            return;
        }
        if outage_begins {
            self.announce(&Event::Down { why });
        } else if refused {
            let connections = self.connections.read().iter().filter(|c| c.is_alive()).count();
            self.announce(&Event::Refused { why, connections });
        }
    }

    /// Enters the state "down" if no connection is left. Returns true if that is still to be announced. The caller holds `order`.
    fn note_outage(&self) -> bool {
        let mut peer = self.peer.lock();
        if self.connections.read().iter().any(|c| c.is_alive()) {
            return false;
        }
        if peer.down_since.is_none() {
            peer.down_since = Some(Instant::now());
            self.up.store(false, Ordering::Release);
        }
        !std::mem::replace(&mut peer.down_announced, true)
    }

    /// Waits for a connection to be closed by the peer, for a late answer that no caller reads, or to be woken.
    fn watch(&self, timeout: Option<Duration>) {
        let connections: Vec<_> = self.connections.read().iter().filter(|c| c.is_alive()).cloned().collect();
        let fds: Vec<_> = connections.iter().map(|c| (c.fd(), c.awaits_late())).collect();
        let happened = watch(&fds, self.wake.as_fd(), timeout);
        // EAGAIN means that there was no wake-up to clear.
        let _ = self.wake.read();
        for (i, what) in happened {
            match (connections.get(i), what) {
                (Some(connection), Happened::Closed) => connection.peer_closed(),
                (Some(connection), Happened::Readable) => connection.read_late(),
                (None, _) => {}
            }
        }
    }

    fn add_connection(self: &Arc<Self>) -> Result<()> {
        let (previous, next_session, others) = {
            let peer = self.peer.lock();
            let others = self.connections.read().iter().any(|c| c.is_alive());
            (peer.session.clone(), peer.next_session, others)
        };
        let min_protocol = match (&previous, others) {
            (None, _) => MinProtocol::V1,
            (Some(_), false) => MinProtocol::V2,
            (Some(_), true) => MinProtocol::Extended,
        };
        let owner: Weak<Self> = Arc::downgrade(self);
        let (connection, attachment) =
            establish(&self.config, previous.as_ref(), next_session, &self.counters, owner, min_protocol)?;
        Counters::add(&self.counters.connects, 1);
        self.adopt(Arc::new(connection), attachment, previous.as_ref());
        Ok(())
    }

    fn adopt(&self, connection: Arc<Connection>, attachment: Option<Attachment>, previous: Option<&Arc<Session>>) {
        let order = self.order.lock();
        let mut peer = self.peer.lock();
        let was_down = peer.down_since.is_some();
        let version = connection.version;
        let event = match attachment {
            Some(Attachment { session, lost_previous, .. }) => {
                let instance_changed = previous.is_some_and(|p| p.instance != session.instance);
                let same = previous.is_some_and(|p| p.id == session.id);
                let (id, instance) = (session.id, session.instance);
                if !same {
                    peer.next_session = id + 1;
                    Counters::add(&self.counters.sessions, 1);
                    if lost_previous {
                        Counters::add(&self.counters.sessions_lost, 1);
                    }
                }
                peer.session = Some(session);
                if !same {
                    let lost_previous = previous.is_some();
                    Some(Event::SessionStarted { session: id, instance, lost_previous, instance_changed })
                } else if was_down || instance_changed {
                    Some(Event::SessionResumed { session: id, instance, instance_changed })
                } else {
                    None
                }
            }
            None => {
                peer.session = None;
                was_down.then_some(Event::UpV01 { version })
            }
        };
        if was_down && peer.seen {
            Counters::add(&self.counters.reconnects, 1);
        }
        peer.seen = true;
        peer.down_since = None;
        (peer.down_announced, peer.refused_since, peer.refusal_announced) = (false, None, false);
        // On connections of an ended session every call would fail with "unknown session".
        let of = |s: &Arc<Session>| (s.id, s.instance, s.board().map(Board::id));
        let session = peer.session.as_ref().map(of);
        let stale = {
            let mut connections = self.connections.write();
            let (keep, stale): (Vec<_>, Vec<_>) =
                connections.drain(..).partition(|c| c.is_alive() && c.session.as_ref().map(of) == session);
            *connections = keep;
            connections.push(Arc::clone(&connection));
            stale
        };
        self.up.store(true, Ordering::Release);
        self.changed.notify_all();
        drop(peer);
        if let Some(event) = &event {
            self.announce(event);
        }
        drop(order);
        for connection in stale {
            connection.fail(&Error::SessionLost);
        }
        if self.stopped.load(Ordering::Acquire) {
            // `stop` may have run before the connection was entered.
            connection.fail(&Error::ShutDown);
        }
    }
}

impl Owner for Pool {
    fn lost(&self, connection: &Connection, why: &Error) {
        if *why != Error::ShutDown {
            self.counters.lost(why);
            log::debug!("objmapper at {}: connection dropped: {why}", self.config.target);
            if let Some(item) = connection.unread() {
                self.unclaimed(connection, item);
            }
        }
        let order = self.order.lock();
        // `fail` has marked the connection dead before this call.
        if self.note_outage() && !self.is_retired() {
            self.announce(&Event::Down { why: why.clone() });
        }
        drop(order);
        self.wake();
    }

    fn unclaimed(&self, connection: &Connection, item: Item) {
        self.deferred.push(connection.session_id(), std::iter::once(item), &self.counters);
    }

    fn gave_up(&self) {
        self.wake();
    }

    fn is_ending(&self) -> bool {
        self.is_retired()
    }
}
