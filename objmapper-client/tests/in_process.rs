//! A store in the same process, reached through sockets that are handed over; the board that comes with it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use objmapper_client::{
    Board, Client, CommitOptions, Connector, Error, Event, IfVersion, Leased, ObjUri, PrivateObject, Status, Want,
};
use objmapper_server::net::InProcess;
use objmapper_server::store::{DiskTier, MemoryTier, Store, StoreConfig};

const PATIENCE: Duration = Duration::from_secs(20);

fn memory_store() -> Store {
    let memory = Some(MemoryTier { limit: 16 << 20, mount: None });
    Store::open(StoreConfig { memory, ..StoreConfig::default() }).unwrap()
}

/// What a connector connects to, replaceable.
#[derive(Clone, Default)]
struct Target {
    server: Arc<Mutex<Option<InProcess>>>,
    calls: Arc<AtomicUsize>,
}

impl Target {
    fn serving(store: Store) -> Self {
        let target = Self::default();
        target.serve(store);
        target
    }

    fn serve(&self, store: Store) {
        *self.server.lock().unwrap() = Some(InProcess::start(store, 1).unwrap());
    }

    fn connector(&self) -> Connector {
        let target = self.clone();
        Arc::new(move || -> io::Result<OwnedFd> {
            target.calls.fetch_add(1, Ordering::SeqCst);
            match &*target.server.lock().unwrap() {
                Some(server) => server.connect(),
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }

    fn client(&self) -> Client {
        Client::builder_with(self.connector()).call_timeout(PATIENCE).connect_timeout(PATIENCE).connect().unwrap()
    }

    fn stop(&self) {
        drop(self.server.lock().unwrap().take());
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end_of_wait = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end_of_wait, "never happened: {what}");
        std::thread::yield_now();
    }
}

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap()
}

fn private(client: &Client, body: &[u8]) -> PrivateObject {
    let mut object = client.create(body.len() as u64, None, None).unwrap();
    File::from(object.take_fd().unwrap()).write_all_at(body, 0).unwrap();
    object
}

fn with_board<T>(client: &Client, look: impl FnOnce(&Board) -> T) -> T {
    look(client.session().unwrap().board().expect("a board"))
}

#[test]
fn sessions_leases_and_bodies_are_as_over_a_socket() {
    let target = Target::serving(memory_store());
    let (a, b) = (target.client(), target.client());
    let Leased::Granted(lease) = a.lease(&uri("/x"), PATIENCE, PATIENCE, Want::ENTRY).unwrap() else { panic!() };
    let found = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| b.lease(&uri("/x"), PATIENCE, PATIENCE, Want::FD).unwrap());
        private(&a, b"body").commit(&uri("/x"), 4, CommitOptions::default()).unwrap();
        match waiter.join().unwrap() {
            Leased::Present(found) => found,
            other => panic!("{other:?}"),
        }
    });
    drop(lease);
    let mut body = [0; 4];
    File::from(found.fd.unwrap()).read_exact_at(&mut body, 0).unwrap();
    assert_eq!(&body, b"body");
    a.session().unwrap().open_entry(&found.entry).unwrap();
    assert_eq!(b.stat().unwrap().sessions, 2);
}

#[test]
fn a_lost_connection_is_made_anew_and_the_session_goes_on() {
    let store = memory_store();
    let target = Target::serving(store.clone());
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let client = Client::builder_with(target.connector())
        .call_timeout(PATIENCE)
        .on_event(move |event| seen.lock().unwrap().push(event.clone()))
        .build()
        .unwrap();
    client.wait_connected(PATIENCE).unwrap();
    let pinned = CommitOptions { want: Want::PIN, ephemeral: true, ..CommitOptions::default() };
    private(&client, b"kept").commit(&uri("/e"), 4, pinned).unwrap();
    let before = target.calls.load(Ordering::SeqCst);

    target.stop();
    eventually("the loss is noticed", || !client.is_up());
    assert!(matches!(client.lookup(&uri("/e"), Want::ENTRY), Err(Error::Down { .. })));
    eventually("the connector is asked again while nobody serves", || target.calls.load(Ordering::SeqCst) > before + 2);
    target.serve(store);
    client.wait_connected(PATIENCE).unwrap();
    assert!(client.lookup(&uri("/e"), Want::ENTRY).unwrap().is_some(), "the session and its object are there");
    let events = events.lock().unwrap();
    assert!(
        matches!(events[..], [Event::SessionStarted { .. }, Event::Down { .. }, Event::SessionResumed { .. }]),
        "{events:?}"
    );
}

/// A client that ended while its keeper took over a further connection waited for ever.
#[test]
fn a_client_may_end_while_it_connects() {
    let target = Target::serving(memory_store());
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..300 {
            drop(target.client());
        }
        done.send(())
    });
    ended.recv_timeout(PATIENCE).expect("a client that does not end");
}

#[test]
fn a_dropped_server_ends_its_connections_and_threads() {
    let server = InProcess::start(memory_store(), 2).unwrap();
    let peers: Vec<_> = (0..3).map(|_| server.connect().unwrap()).collect();
    assert_eq!(server.connections(), 3);
    drop(server);
    for peer in peers {
        assert_eq!(nix::unistd::read(&peer, &mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn a_fence_keeps_what_is_older_than_a_delete_out() {
    let target = Target::serving(memory_store());
    let (writer, purger) = (target.client(), target.client());
    let key = uri("/key");
    let fence = with_board(&writer, |board| board.fence(&key));
    assert!(with_board(&purger, |board| board.is_current(fence)));
    let options = CommitOptions { fence: Some(fence), ..CommitOptions::default() };
    private(&writer, b"1").commit(&uri("/variant/1"), 1, options).unwrap();

    let mut late = private(&writer, b"2");
    assert!(!purger.delete(&key, IfVersion::Any).unwrap());
    assert!(!with_board(&writer, |board| board.is_current(fence)), "seen without asking");
    let refused = late.commit(&uri("/variant/2"), 1, options).unwrap_err();
    assert_eq!((refused.status(), late.is_used_up()), (Some(Status::Conflict), false));
    // In a batch as well.
    let outcomes = writer.batch().commit(&mut late, &uri("/variant/2"), 1, options).run().unwrap();
    assert_eq!(outcomes[0].as_ref().unwrap_err().status(), Some(Status::Conflict));
    assert!(!late.is_used_up());
    assert!(writer.lookup(&uri("/variant/2"), Want::ENTRY).unwrap().is_none());
    // It is still good for its own reader.
    late.commit(&uri("/own/2"), 1, CommitOptions::default()).unwrap();
    assert!(late.is_used_up());

    // A conflict without a fence uses the handle up; dropping it asks for nothing more.
    let mut third = private(&writer, b"3");
    let absent = CommitOptions { if_version: IfVersion::Absent, ..CommitOptions::default() };
    third.commit(&uri("/own/2"), 1, absent).unwrap_err();
    assert!(third.is_used_up());
    // With a fence it is aborted when it is dropped.
    let fourth_fence = with_board(&writer, |board| board.fence(&key));
    let mut fourth = private(&writer, b"4");
    fourth.commit(&uri("/own/2"), 1, CommitOptions { fence: Some(fourth_fence), ..absent }).unwrap_err();
    assert_eq!(writer.stat().unwrap().private, 1);
    drop(fourth);
    assert!(writer.flush_deferred(PATIENCE));
    assert_eq!(writer.stat().unwrap().private, 0);
}

#[test]
fn an_eviction_leaves_the_fence() {
    let target = Target::serving(memory_store());
    let client = target.client();
    let key = uri("/key");
    let entry = private(&client, b"1").commit(&key, 1, CommitOptions::default()).unwrap().entry;
    let fence = with_board(&client, |board| board.fence(&key));
    let version = IfVersion::from_raw(entry.version);
    assert!(client.evict(&key, version).unwrap());
    assert!(!client.evict(&key, version).unwrap());
    assert!(with_board(&client, |board| board.is_current(fence)));
    private(&client, b"2").commit(&key, 1, CommitOptions { fence: Some(fence), ..CommitOptions::default() }).unwrap();
    assert_eq!(client.evict(&key, version).unwrap_err().status(), Some(Status::Conflict));
}

#[test]
fn ban_counters_are_everybodys() {
    let target = Target::serving(memory_store());
    let (a, b) = (target.client(), target.client());
    let slot = Board::slot(b"/cdn/");
    let begun = with_board(&a, |board| board.recorded(slot));
    assert_eq!(with_board(&b, |board| (board.announced(slot), board.recorded(slot))), (begun, begun));
    assert_eq!(with_board(&a, |board| board.announce(slot)), begun.wrapping_add(1));
    assert_ne!(with_board(&b, |board| board.announced(slot)), begun);
    with_board(&b, |board| assert!(board.heal(slot, begun, begun.wrapping_add(1))));
    assert_eq!(with_board(&a, |board| board.recorded(slot)), begun.wrapping_add(1));
}

/// The disk tier's sessions outlive the server; its board does not.
#[test]
fn a_server_that_starts_again_has_another_board() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Some(DiskTier { dir: dir.path().into(), limit: 16 << 20 });
        Store::open(StoreConfig { disk, ..StoreConfig::default() }).unwrap()
    };
    let target = Target::serving(open());
    let client = target.client();
    let key = uri("/key");
    let (session, fence) = (client.session().unwrap(), with_board(&client, |board| board.fence(&key)));
    target.stop();
    eventually("the loss is noticed", || !client.is_up());
    assert!(session.board().unwrap().is_current(fence), "the old one stays readable");
    target.serve(open());
    client.wait_connected(PATIENCE).unwrap();
    assert_eq!(client.session().unwrap().id(), session.id(), "the session went on");
    assert_ne!(with_board(&client, Board::id), session.board().unwrap().id());
    assert!(!with_board(&client, |board| board.is_current(fence)), "and its fences with it");
    let options = CommitOptions { fence: Some(fence), ..CommitOptions::default() };
    let refused = private(&client, b"1").commit(&key, 1, options).unwrap_err();
    assert_eq!(refused.status(), Some(Status::Conflict));
}
