//! The store in an objmapperd.
//!
//! Connections are made in the background; a call while there is none fails as [`Outage::Down`]. Connection events
//! report lost bodies to [`Maintenance`]: all of the former session's, or, if objmapperd has restarted and resumed the
//! session from its disk tier, those of the memory tier. A commit without an answer may have been carried out: its URI
//! is remembered, looked up by [`Remote::tidy`], and released if no body needs it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use objmapper_client::{
    Client, CommitOptions, ConnectionState, Error, Event, Outage, PrivateObject, RateLimited, Session,
};
use objmapper_proto::ext::{Entry, EntryFlags, Tier, Want};
use objmapper_proto::{ObjUri, Status};
use parking_lot::Mutex;

use super::pins::{Pinned, Pins};
use super::{DraftFile, Failure, Home, Lengths, Name, StoredBody};
use crate::log::line;
use crate::maintenance::{LossScope, Maintenance};

/// Bytes that a growing draft reserves ahead with objmapperd, to save round trips.
const RESERVE_STEP: u64 = 1 << 20;

/// Bytes that a new draft reserves beyond its body, for a record's tail, which seldom needs more. A reservation when
/// the body is complete would cost a round trip, and might find the tier full.
const TAIL_ROOM: u64 = 16 << 10;

/// Unanswered commits that are remembered. What further ones left behind ends with the session.
const MAX_UNCONFIRMED: usize = 100_000;
/// Lines about the connection in a minute.
const LINES: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Look-ups of an unanswered commit's URI that find nothing before it is taken for not carried out.
const MAX_PROBES: u8 = 3;

/// Our connections to an objmapperd.
pub struct Remote {
    client: Client,
    /// How often its memory tier has been lost and begun empty.
    memory_epoch: Arc<AtomicU64>,
    /// URIs whose commit got no answer, and the number of look-ups that are left to find out whether it was carried
    /// out.
    unconfirmed_commits: Mutex<Vec<(ObjUri<'static>, u8)>>,
    /// Pins of records. Other bodies have one holder each and need no count.
    pins: Pins,
    timeout: Duration,
}

/// A draft's reservation in objmapperd. Dropping it aborts the draft, unless it was published.
pub(super) struct Reservation {
    private: PrivateObject,
    reserved: u64,
    memory_epoch: u64,
}

impl Remote {
    /// Connects in the background, now and after each loss of the connection. Losses of bodies are reported to
    /// `maintenance`.
    pub fn new(
        ident: &str,
        socket: &Path,
        timeout: Duration,
        maintenance: Arc<Maintenance>,
    ) -> Result<Remote, Failure> {
        let memory_epoch = Arc::new(AtomicU64::new(0));
        let (epoch, ident, path) = (memory_epoch.clone(), ident.to_owned(), socket.display().to_string());
        // A store that restarts in a loop would repeat these lines without bound.
        let log = Arc::new(RateLimited::new(LINES, MINUTE));
        let log_connection = move |message: String| {
            if let Some(left_out) = log.admit() {
                line(&ident, &format!("objmapperd at {path} {message}{left_out}"));
            }
        };
        let client = Client::builder(socket)
            .call_timeout(timeout)
            .connect_timeout(timeout)
            .on_event(move |event| {
                let message = match event {
                    Event::UpV01 { .. } => {
                        "is connected, but has no protocol extensions: bodies stay in heap; use an objmapperd"
                            .to_owned()
                    }
                    Event::SessionStarted { session, lost_previous: true, .. } => {
                        epoch.fetch_add(1, Relaxed);
                        maintenance.report_loss(LossScope::SessionsBefore(*session));
                        "is connected again, but has lost our bodies".to_owned()
                    }
                    Event::SessionStarted { .. } => "is connected".to_owned(),
                    Event::SessionResumed { instance_changed: true, .. } => {
                        let now = epoch.fetch_add(1, Relaxed) + 1;
                        maintenance.report_loss(LossScope::MemoryBefore(now));
                        "is connected again, with an empty memory tier".to_owned()
                    }
                    Event::SessionResumed { .. } => "is connected again".to_owned(),
                    Event::Down { why } => format!("cannot be used, new bodies stay in heap: {why}"),
                    Event::Refused { why, connections: 0 } => format!("refuses this storage: {why}"),
                    Event::Refused { why, connections } => format!("gives no connection beyond {connections}: {why}"),
                    _ => "changed its state".to_owned(),
                };
                maintenance.notify();
                log_connection(message);
            })
            .build()
            .map_err(failure)?;
        Ok(Remote { client, memory_epoch, unconfirmed_commits: Mutex::default(), pins: Pins::new(true), timeout })
    }

    pub(super) fn answers(&self) -> bool {
        matches!(self.client.state(), ConnectionState::Extended { .. })
    }

    /// Ends this process's session with objmapperd. Later calls fail as down.
    pub(super) fn detach(&self) -> Result<(), Failure> {
        self.client.detach().map_err(failure)
    }

    pub(super) fn connection_counts(&self) -> (u64, u64) {
        let counters = self.client.counters();
        (counters.disconnects, counters.reconnects)
    }

    pub(super) fn create(&self, length: u64) -> Result<DraftFile, Failure> {
        // Read before the call: if the memory tier begins anew meanwhile, the draft's body counts as lost.
        let memory_epoch = self.memory_epoch.load(Relaxed);
        let (private, reserved) = self.create_private(length).map_err(failure)?;
        Self::draft(private, reserved, memory_epoch)
    }

    /// Creates a private object, with room for a tail if the store has it. Returns the bytes reserved for it too.
    fn create_private(&self, length: u64) -> objmapper_client::Result<(PrivateObject, u64)> {
        let with_tail = length.saturating_add(TAIL_ROOM);
        match self.client.create(with_tail, None, None) {
            Err(Error::Status { status: Status::Full, .. }) => Ok((self.client.create(length, None, None)?, length)),
            created => Ok((created?, with_tail)),
        }
    }

    /// Creates a draft in the disk tier that begins with the first `written` bytes of `file`, the file of `draft`.
    /// `None` if `draft` is not in the memory tier, or there is no disk tier.
    pub(super) fn create_on_disk(
        &self,
        draft: &Reservation,
        file: &File,
        length: u64,
        written: u64,
    ) -> Option<Result<DraftFile, Failure>> {
        if draft.private.tier() != Tier::Memory || draft.private.session().directory(Tier::Disk).is_none() {
            return None;
        }
        let memory_epoch = self.memory_epoch.load(Relaxed);
        let created = self.client.create_copy(Tier::Disk, length, file.as_fd(), written).map_err(failure);
        Some(created.and_then(|private| Self::draft(private, length, memory_epoch)))
    }

    fn draft(mut private: PrivateObject, reserved: u64, memory_epoch: u64) -> Result<DraftFile, Failure> {
        let fd = private.take_fd().ok_or_else(|| Failure::new(Outage::Protocol, "a new draft has no file"))?;
        let reservation = Reservation { private, reserved, memory_epoch };
        Ok(DraftFile { file: Some(File::from(fd)), reservation: super::Reservation::Remote(reservation) })
    }

    pub(super) fn instance(&self) -> Option<[u8; 16]> {
        self.client.session().map(|session| session.instance().0)
    }

    pub(super) fn publish(
        &self,
        reservation: &mut Reservation,
        name: Name<'_>,
        lengths: Lengths,
        key: u64,
    ) -> Result<StoredBody, Failure> {
        let uri = ObjUri::parse(name.uri()).map_err(|error| Failure::new(Outage::Protocol, error))?;
        let mut options = CommitOptions { want: Want { pin: true, ..Want::ENTRY }, ..CommitOptions::default() };
        match name {
            // Only the store in this process keeps bodies: options refuse the rest.
            Name::Own(_) | Name::Kept(_) => {
                options.ephemeral = true;
                let entry = self.commit(reservation, &uri, lengths, options)?;
                Ok(stored(reservation.private.session(), &entry, reservation.memory_epoch, lengths, key, false))
            }
            Name::Record { expires, fence, .. } => {
                (options.expires, options.fence) = (expires, Some(fence));
                self.pins.committing(
                    || {
                        let entry = self.commit(reservation, &uri, lengths, options)?;
                        let session = reservation.private.session();
                        let stored = stored(session, &entry, reservation.memory_epoch, lengths, key, true);
                        Ok((stored, (session.id(), entry.object)))
                    },
                    |(session, object)| self.client.release(session, &[object]),
                )
            }
        }
    }

    fn commit(
        &self,
        reservation: &mut Reservation,
        uri: &ObjUri<'_>,
        lengths: Lengths,
        options: CommitOptions,
    ) -> Result<Entry, Failure> {
        let found = reservation.private.commit(uri, lengths.file, options).map_err(|error| {
            if matches!(error, Error::Timeout { .. } | Error::Closed) {
                self.note_unconfirmed(uri.borrowed().into_owned());
            }
            failure(error)
        })?;
        Ok(found.entry)
    }

    pub(super) fn pin(
        &self,
        uri: &[u8],
        object: u64,
        lengths: Lengths,
        key: u64,
    ) -> Result<Option<StoredBody>, Failure> {
        let uri = ObjUri::parse(uri).map_err(|error| Failure::new(Outage::Protocol, error))?;
        let Some(session) = self.client.session() else { return Err(Failure::new(Outage::Down, "never connected")) };
        let pinned = (session.id(), object);
        // Read before, as in `create`.
        let memory_epoch = self.memory_epoch.load(Relaxed);
        if self.pins.acquire(pinned)
            && let Err(failure) = self.await_releases()
        {
            self.unpin(pinned);
            return Err(failure);
        }
        let found = self.client.lookup(&uri, Want { pin: true, ..Want::ENTRY }).map_err(failure);
        if let Ok(Some(found)) = &found {
            let entry = &found.entry;
            let unfit = entry.flags.contains(EntryFlags::FOREIGN) || entry.flags.contains(EntryFlags::EPHEMERAL);
            if (found.session, entry.object, entry.length) == (pinned.0, object, lengths.file) && !unfit {
                return Ok(Some(stored(&session, entry, memory_epoch, lengths, key, true)));
            }
            let other = (found.session, entry.object);
            if other != pinned && !entry.flags.contains(EntryFlags::EPHEMERAL) {
                // The look-up has pinned that object, which another body may need.
                let _ = self.pins.acquire(other);
                self.unpin(other);
            }
        }
        self.unpin(pinned);
        found.map(|_| None)
    }

    /// Waits until all releases so far have reached the store.
    fn await_releases(&self) -> Result<(), Failure> {
        let releases = self.pins.under_way();
        if !self.client.flush_deferred(self.timeout) {
            return Err(Failure::new(Outage::Timeout, "releases are under way"));
        }
        self.pins.arrived(&releases);
        Ok(())
    }

    fn unpin(&self, pinned: Pinned) {
        self.pins.release(pinned, |(session, object)| self.client.release(session, &[object]));
    }

    /// Remembers that a commit of `uri` got no answer. If it was carried out, it left a pinned body that no object
    /// refers to; [`Remote::tidy`] releases it.
    fn note_unconfirmed(&self, uri: ObjUri<'static>) {
        let mut unconfirmed_commits = self.unconfirmed_commits.lock();
        if unconfirmed_commits.len() < MAX_UNCONFIRMED {
            unconfirmed_commits.push((uri, MAX_PROBES));
        }
    }

    /// Releases what unanswered commits left behind. Waits for objmapperd; returns after the first call that fails.
    pub(super) fn tidy(&self) {
        if !self.answers() {
            return;
        }
        let releases = self.pins.under_way();
        if !releases.is_empty() && self.client.flush_deferred(Duration::ZERO) {
            self.pins.arrived(&releases);
        }
        if !self.client.flush_deferred(Duration::ZERO) {
            // What a lost connection may still bring about is not settled yet.
            return;
        }
        let mut uris = std::mem::take(&mut *self.unconfirmed_commits.lock()).into_iter();
        let mut again = Vec::new();
        for (uri, probes) in uris.by_ref() {
            match self.client.lookup(&uri, Want::ENTRY) {
                // What another body pins under that URI by now stays.
                Ok(Some(found)) => {
                    let pinned = (found.session, found.entry.object);
                    if found.entry.flags.contains(EntryFlags::PINNED) && !self.pins.is_held(pinned) {
                        self.client.release(found.session, &[found.entry.object]);
                    }
                }
                // It may still be on its way.
                Ok(None) if probes > 1 => again.push((uri, probes - 1)),
                Ok(None) => {}
                Err(_) => {
                    again.push((uri, probes));
                    break;
                }
            }
        }
        self.unconfirmed_commits.lock().extend(again.into_iter().chain(uris));
    }

    pub(super) fn release(&self, stored: &StoredBody) {
        if let Home::Remote(session, _, _) = &stored.home {
            if stored.shared {
                self.unpin((session.id(), stored.object));
            } else {
                self.client.release(session.id(), &[stored.object]);
            }
        }
    }
}

fn stored(
    session: &Arc<Session>,
    entry: &Entry,
    memory_epoch: u64,
    lengths: Lengths,
    key: u64,
    shared: bool,
) -> StoredBody {
    let home = Home::Remote(session.clone(), entry.tier, memory_epoch);
    StoredBody { key, object: entry.object, body_len: lengths.body, file_len: lengths.file, kept: false, shared, home }
}

impl Reservation {
    /// Growth is reserved in larger steps than it is asked for, where they can be had; a smaller total is what was written
    /// in the end.
    pub(super) fn reserve(&mut self, length: u64) -> Result<(), Failure> {
        if length > self.reserved {
            let ample = length.max(self.reserved.saturating_add(RESERVE_STEP));
            match self.set_reservation(ample) {
                Err(Failure::Outage { kind: Outage::Full, .. }) if ample > length => self.set_reservation(length),
                other => other,
            }
        } else if self.reserved - length >= RESERVE_STEP {
            self.set_reservation(length)
        } else {
            // The commit gives back so little.
            Ok(())
        }
    }

    fn set_reservation(&mut self, length: u64) -> Result<(), Failure> {
        self.private.reserve(length).map_err(failure)?;
        self.reserved = length;
        Ok(())
    }
}

/// Opens a body's file below its tier's directory.
pub(super) fn open(session: &Session, tier: Tier, object: u64) -> io::Result<File> {
    match session.open(tier, object) {
        Ok(fd) => Ok(File::from(fd)),
        Err(Error::Io { errno, .. }) => Err(io::Error::from_raw_os_error(errno)),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn failure(error: Error) -> Failure {
    match error.status() {
        Some(Status::Conflict) => Failure::Conflict,
        _ => Failure::new(Outage::from(&error), error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Instant;

    use objmapper_server::net::{ListenConfig, Server};
    use objmapper_server::store::{MemoryTier, Store, StoreConfig};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_commit_that_was_carried_out_unheard_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let memory = Some(MemoryTier { limit: 64 << 20, mount: None });
        let store = Store::open(StoreConfig { memory, ..StoreConfig::default() }).unwrap();
        let listen = ListenConfig {
            socket: socket.clone(),
            mode: 0o600,
            owner: None,
            group: None,
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
            max_connections: 10,
            threads: 1,
        };
        let server = Server::start(listen, store.clone()).unwrap();
        let remote = Remote::new("s0", &socket, PATIENCE, Arc::default()).unwrap();
        until("the store answers", || remote.answers());

        let mut draft = remote.create(10).unwrap();
        draft.file().unwrap().write_all_at(b"0123456789", 0).unwrap();
        draft.close();
        let super::super::Reservation::Remote(reservation) = &mut draft.reservation else {
            panic!("a draft of another store")
        };
        let lengths = Lengths { body: 10, file: 10 };
        let stored = remote.publish(reservation, Name::Own("/varnish/s0/1/0"), lengths, 0).unwrap();
        assert!(store.stats().tiers[0].used > 0);
        // Its answer is lost, and so is what it says.
        drop(stored);
        remote.note_unconfirmed(ObjUri::parse(b"/varnish/s0/1/0").unwrap().into_owned());
        remote.note_unconfirmed(ObjUri::parse(b"/varnish/s0/1/1").unwrap().into_owned());
        remote.tidy();
        until("the body is given up", || store.stats().tiers[0].used == 0);
        until("the client knows that it is", || remote.client.flush_deferred(Duration::ZERO));
        for _ in 1..MAX_PROBES {
            assert_eq!(remote.unconfirmed_commits.lock().len(), 1, "what is not there yet is looked for again");
            remote.tidy();
        }
        assert!(remote.unconfirmed_commits.lock().is_empty());
        drop(remote);
        server.drain(PATIENCE);
    }
}
