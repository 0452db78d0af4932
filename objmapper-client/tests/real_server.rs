//! The client against the real server: what EXTENSIONS.md promises, seen from here.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use objmapper_client::{
    BatchOutcome, Client, CommitOptions, Config, ConnectionState, EntryFlags, Error, Event, Found, IfVersion, Leased,
    ObjUri, Protocol, Status, Tier, UriSpace, V01Tier, Version, Want,
};
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{MemoryTier, Store, StoreConfig};

const PATIENCE: Duration = Duration::from_secs(20);
const LIMIT: u64 = 64 << 20;

fn open_store() -> Store {
    let memory = Some(MemoryTier { limit: LIMIT, mount: None });
    Store::open(StoreConfig { memory, ..StoreConfig::default() }).unwrap()
}

fn serve(dir: &Path) -> Server {
    serve_store(dir, open_store())
}

fn serve_store(dir: &Path, store: Store) -> Server {
    let config = ListenConfig {
        socket: dir.join("socket"),
        mode: 0o600,
        owner: None,
        group: None,
        allow_uids: Vec::new(),
        allow_gids: Vec::new(),
        max_connections: 100,
        threads: 1,
    };
    Server::start(config, store).unwrap()
}

fn config(dir: &Path) -> Config {
    Client::builder(dir.join("socket")).call_timeout(PATIENCE).connect_timeout(PATIENCE)
}

fn setup() -> (tempfile::TempDir, Server, Client) {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let client = config(dir.path()).connect().unwrap();
    (dir, server, client)
}

fn wait_down(client: &Client) {
    let end_of_wait = Instant::now() + PATIENCE;
    while client.is_up() {
        assert!(Instant::now() < end_of_wait);
        std::thread::yield_now();
    }
}

fn end(server: Server, client: Client) {
    drop(client);
    assert_eq!(server.protocol_errors(), 0);
    server.drain(PATIENCE);
}

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap()
}

fn put(client: &Client, uri: &ObjUri<'_>, body: &[u8], options: CommitOptions) -> Found {
    let mut object = client.create(body.len() as u64, Some(Tier::Memory), Some(uri)).unwrap();
    File::from(object.take_fd().unwrap()).write_all(body).unwrap();
    object.commit(uri, body.len() as u64, options).unwrap()
}

fn content(found: Found) -> Vec<u8> {
    let mut buf = vec![0; found.entry.length as usize];
    File::from(found.fd.unwrap()).read_exact_at(&mut buf, 0).unwrap();
    buf
}

#[test]
fn publish_look_up_replace_delete() {
    let (_dir, server, client) = setup();
    assert!(matches!(client.state(), ConnectionState::Extended { session: 1, .. }));
    let a = uri("/a");
    assert!(client.lookup(&a, Want::FD).unwrap().is_none());
    let first = put(&client, &a, b"first", CommitOptions { want: Want::FD_AND_PIN, ..CommitOptions::default() });
    assert!(first.is_immutable() && first.entry.flags.contains(EntryFlags::PINNED));
    let (object, session) = (first.entry.object, client.session().unwrap());
    assert_eq!(content(first), b"first");
    // No round trip.
    let mut buf = [0; 6];
    let file = File::from(session.open(Tier::Memory, object).unwrap());
    assert_eq!((file.read_at(&mut buf, 0).unwrap(), &buf[..5]), (5, &b"first"[..]));

    let second = put(&client, &a, b"second!", CommitOptions::default());
    assert!(second.entry.version > 0 && second.entry.object != object);
    assert_eq!(content(client.lookup(&a, Want::FD).unwrap().unwrap()), b"second!");
    // The pin keeps the first body, and its release lets it go.
    session.open(Tier::Memory, object).unwrap();
    client.release(session.id(), &[object]);
    assert!(client.flush_deferred(PATIENCE));
    assert!(matches!(session.open(Tier::Memory, object), Err(Error::Io { .. })));

    let wrong = IfVersion::from_raw(second.entry.version + 1);
    assert_eq!(client.delete(&a, wrong).unwrap_err().status(), Some(Status::Conflict));
    assert!(client.delete(&a, IfVersion::from_raw(second.entry.version)).unwrap());
    assert!(!client.delete(&a, IfVersion::Any).unwrap());
    drop(file);
    end(server, client);
}

#[test]
fn private_objects() {
    let (_dir, server, client) = setup();
    let a = uri("/a");
    let used = || client.stat().unwrap().tiers[0].used;
    let before = used();
    let mut object = client.create(1 << 20, None, Some(&a)).unwrap();
    assert_eq!(used(), before + (1 << 20));
    object.reserve(1 << 12).unwrap();
    assert_eq!(used(), before + (1 << 12));
    assert_eq!(object.reserve(2 * LIMIT).unwrap_err().status(), Some(Status::Full));
    // Somebody can still write to it.
    let writer = File::from(object.take_fd().unwrap());
    writer.write_all_at(b"12345", 0).unwrap();
    let why = object.commit(&a, 5, CommitOptions::default()).unwrap_err();
    assert_eq!((why.status(), why.is_retryable()), (Some(Status::Busy), true));
    drop(writer);
    object.commit(&a, 5, CommitOptions::default()).unwrap();
    assert_eq!(client.lookup(&a, Want::ENTRY).unwrap().unwrap().entry.length, 5);

    // Deleted meanwhile.
    let mut object = client.create(0, None, Some(&a)).unwrap();
    assert!(client.delete(&a, IfVersion::Any).unwrap());
    let why = object.commit(&a, 0, CommitOptions::default()).unwrap_err();
    assert_eq!(why.status(), Some(Status::Conflict));

    // Thrown away, with and without waiting.
    client.create(1 << 20, None, None).unwrap().abort().unwrap();
    drop(object);
    drop(client.create(1 << 20, None, None).unwrap());
    assert!(client.flush_deferred(PATIENCE));
    assert_eq!((used(), client.stat().unwrap().private), (before, 0));
    end(server, client);
}

#[test]
fn listing_in_pages_and_batches() {
    const COUNT: usize = 2500;
    let (_dir, server, client) = setup();
    let space = UriSpace::new(&[b"list", b"it"]).unwrap();
    let uris: Vec<_> = (0..COUNT).map(|i| space.uri(&[format!("{i:05}").as_bytes()])).collect();
    for (i, uri) in uris.iter().enumerate() {
        put(&client, uri, &i.to_be_bytes(), CommitOptions::default());
    }
    put(&client, &uri("/other"), b"x", CommitOptions::default());
    let listed: Vec<_> = client.list(&space.prefix()).map(|item| item.unwrap().0).collect();
    assert_eq!(listed, uris);
    assert_eq!(client.list(b"").count(), COUNT + 1);
    assert_eq!(client.list(b"/none").count(), 0);

    let mut batch = client.batch();
    for uri in &uris {
        batch = batch.lookup(uri, Want::FD);
    }
    let absent = uri("/absent");
    let outcomes = batch.lookup(&absent, Want::FD).delete(&uris[0], IfVersion::Any).run().unwrap();
    assert_eq!(outcomes.len(), COUNT + 2);
    for (i, outcome) in outcomes.into_iter().enumerate() {
        match outcome.unwrap() {
            BatchOutcome::Found(found) => assert_eq!(content(found), i.to_be_bytes()),
            BatchOutcome::NotFound => assert_eq!(i, COUNT),
            BatchOutcome::Done => assert_eq!(i, COUNT + 1),
        }
    }
    assert!(client.lookup(&uris[0], Want::ENTRY).unwrap().is_none());
    end(server, client);
}

/// Every answer brings its own body, for many threads on few connections and for a deep pipeline.
#[test]
fn each_gets_its_own_body() {
    const OBJECTS: u64 = 300;
    let (_dir, server, client) = setup();
    let name = |i: u64| ObjUri::try_from(format!("/{i}")).unwrap();
    for i in 0..OBJECTS {
        put(&client, &name(i), &i.to_be_bytes(), CommitOptions::default());
    }
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for i in 0..500 {
                    let i = (i * 31 + thread * 17) % OBJECTS;
                    let found = client.lookup(&name(i), Want::FD).unwrap().unwrap();
                    assert_eq!(content(found), i.to_be_bytes());
                }
            });
        }
        let client = client.clone();
        scope.spawn(move || {
            let pipeline = client.pipeline().unwrap();
            for _ in 0..5 {
                let pending: Vec<_> = (0..OBJECTS).map(|i| pipeline.lookup(&name(i), Want::FD).unwrap()).collect();
                for (i, pending) in pending.into_iter().enumerate() {
                    assert_eq!(content(pending.wait().unwrap().unwrap()), (i as u64).to_be_bytes());
                }
            }
        });
    });
    assert_eq!(client.counters().disconnects, 0);
    end(server, client);
}

#[test]
fn one_fetches_and_the_others_wait() {
    let (dir, server, client) = setup();
    let a = uri("/a");
    let fetched = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let (fetched, dir) = (Arc::clone(&fetched), dir.path());
            scope.spawn(move || {
                // Each a client of its own, as several varnishd are.
                let client = config(dir).connect().unwrap();
                match client.lease(&uri("/a"), PATIENCE, PATIENCE, Want::FD).unwrap() {
                    Leased::Granted(lease) => {
                        fetched.fetch_add(1, Ordering::SeqCst);
                        put(&client, &uri("/a"), b"once", CommitOptions::default());
                        lease.fulfilled();
                    }
                    Leased::Present(found) => assert_eq!(content(found), b"once"),
                    other => panic!("{other:?}"),
                }
            });
        }
    });
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    // Nothing to share: the next one is told so.
    let b = uri("/b");
    let Leased::Granted(lease) = client.lease(&b, Duration::ZERO, PATIENCE, Want::ENTRY).unwrap() else { panic!() };
    assert!(matches!(client.lease(&b, Duration::from_millis(20), PATIENCE, Want::ENTRY).unwrap(), Leased::TimedOut));
    lease.refuse(PATIENCE).unwrap();
    let refused = client.lease(&b, PATIENCE, PATIENCE, Want::ENTRY).unwrap();
    assert!(matches!(refused, Leased::Refused { retry } if retry <= PATIENCE), "{refused:?}");
    assert!(matches!(client.lease(&a, PATIENCE, PATIENCE, Want::ENTRY).unwrap(), Leased::Present(_)));
    end(server, client);
}

#[test]
fn v01_clients_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    for (protocol, version) in [(Protocol::V1, Version::V1), (Protocol::V2, Version::V2)] {
        let client = config(dir.path()).protocol(protocol).connections(1).connect().unwrap();
        assert_eq!(client.state(), ConnectionState::V01 { version, connections: 1 });
        let a = uri("/v01/a");
        let object = client.get_or_create(&a, V01Tier::Default).unwrap();
        assert!(object.is_empty());
        File::from(object.into_fd()).write_all(b"old style").unwrap();
        assert_eq!(client.get_or_create(&a, V01Tier::Default).unwrap().len(), 9);
        // Clients with extensions see it, and see what it is.
        let modern = config(dir.path()).connect().unwrap();
        let found = modern.lookup(&a, Want::FD).unwrap().unwrap();
        assert!(!found.is_immutable());
        assert!(client.delete(&a, IfVersion::Any).unwrap());
        assert!(!client.delete(&a, IfVersion::Any).unwrap());
        assert!(modern.lookup(&a, Want::FD).unwrap().is_none());
    }
    assert_eq!(server.protocol_errors(), 0);
    server.drain(PATIENCE);
}

/// The store dies and starts again: the client notices, begins a new session, and what it pinned is still
/// readable.
#[test]
fn a_store_that_starts_again() {
    let (dir, server, client) = setup();
    let pinned = put(&client, &uri("/a"), b"kept", CommitOptions { want: Want::PIN, ..CommitOptions::default() });
    let before = client.session().unwrap();
    server.drain(Duration::ZERO);
    wait_down(&client);
    assert!(matches!(client.lookup(&uri("/a"), Want::ENTRY), Err(Error::Down { .. })));
    let mut buf = [0; 4];
    let body = File::from(before.open_entry(&pinned.entry).unwrap());
    body.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"kept");

    let server = serve(dir.path());
    client.wait_connected(PATIENCE).unwrap();
    let after = client.session().unwrap();
    assert!(after.id() != before.id() && after.instance() != before.instance());
    assert!(client.lookup(&uri("/a"), Want::ENTRY).unwrap().is_none());
    assert_eq!(client.counters().reconnects, 1);
    drop((before, after));
    end(server, client);
}

/// All connections are lost, the store lives: the session goes on with its pins and private objects.
#[test]
fn a_session_is_resumed_within_the_grace_time() {
    let (dir, store, events) = (tempfile::tempdir().unwrap(), open_store(), Arc::new(Mutex::new(Vec::new())));
    let server = serve_store(dir.path(), store.clone());
    let listener = Arc::clone(&events);
    let client =
        config(dir.path()).on_event(move |event| listener.lock().unwrap().push(event.clone())).connect().unwrap();
    let ephemeral = CommitOptions { want: Want::PIN, ephemeral: true, ..CommitOptions::default() };
    let a = put(&client, &uri("/a"), b"ours", ephemeral).entry;
    let mut private = client.create(1 << 20, None, None).unwrap();
    let before = client.session().unwrap();

    server.drain(Duration::ZERO);
    wait_down(&client);
    let why = client.create(0, None, None).unwrap_err();
    assert!(matches!(why, Error::Down { .. }) && why.should_reconnect());
    let server = serve_store(dir.path(), store.clone());
    client.wait_connected(PATIENCE).unwrap();

    let after = client.session().unwrap();
    assert_eq!((after.id(), after.instance()), (before.id(), before.instance()));
    assert_eq!((client.counters().sessions, client.counters().sessions_lost), (1, 0));
    let resumed = Event::SessionResumed { session: before.id(), instance: before.instance(), instance_changed: false };
    // The listener is told after those who wait.
    let end_of_wait = Instant::now() + PATIENCE;
    while events.lock().unwrap().last() != Some(&resumed) {
        assert!(Instant::now() < end_of_wait);
        std::thread::yield_now();
    }
    let seen = events.lock().unwrap().clone();
    assert!(matches!(seen[..], [Event::SessionStarted { .. }, Event::Down { .. }, _]), "{seen:?}");
    let found = client.lookup(&uri("/a"), Want::FD).unwrap().unwrap();
    assert!(found.entry.flags.contains(EntryFlags::PINNED) && found.entry.object == a.object);
    assert_eq!(content(found), b"ours");
    File::from(private.take_fd().unwrap()).write_all(b"later").unwrap();
    private.commit(&uri("/b"), 5, CommitOptions::default()).unwrap();
    client.release(after.id(), &[a.object]);
    assert!(client.flush_deferred(PATIENCE));
    assert!(client.lookup(&uri("/a"), Want::ENTRY).unwrap().is_none());
    drop((before, after, private));
    end(server, client);
}

/// What the session held is gone at once, and the client does not come back.
#[test]
fn detach_ends_the_session() {
    let (dir, server, client) = setup();
    let other = config(dir.path()).connect().unwrap();
    let start = other.stat().unwrap();
    let ephemeral = CommitOptions { want: Want::PIN, ephemeral: true, ..CommitOptions::default() };
    let entry = put(&client, &uri("/a"), &[7; 100_000], ephemeral).entry;
    let session = client.session().unwrap();
    let open = File::from(session.open_entry(&entry).unwrap());
    let mut private = client.create(1 << 20, None, None).unwrap();
    let Leased::Granted(lease) = client.lease(&uri("/b"), Duration::ZERO, PATIENCE, Want::ENTRY).unwrap() else {
        panic!()
    };
    let busy = other.stat().unwrap();
    assert!(busy.tiers[0].used > start.tiers[0].used + (1 << 20));
    assert_eq!((busy.sessions, busy.private, busy.leases), (2, 1, 1));

    // A file that is open for writing stays charged.
    drop(private.take_fd());
    let clone = client.clone();
    client.detach().unwrap();
    let after = other.stat().unwrap();
    assert_eq!((after.tiers[0].used, after.tiers[0].pinned), (start.tiers[0].used, start.tiers[0].pinned));
    assert_eq!((after.sessions, after.private, after.leases), (1, 0, 0));
    assert!(other.lookup(&uri("/a"), Want::ENTRY).unwrap().is_none());
    assert!(matches!(session.open_entry(&entry), Err(Error::Io { .. })));
    let mut buf = [0; 8];
    open.read_exact_at(&mut buf, 99_992).unwrap();
    assert_eq!(buf, [7; 8]);

    // Everywhere down, for good: only the other one is connected.
    drop((private, lease));
    client.release(session.id(), &[entry.object]);
    assert!(client.flush_deferred(PATIENCE));
    for client in [&client, &clone] {
        assert!(!client.is_up());
        assert!(matches!(client.lookup(&uri("/a"), Want::ENTRY), Err(Error::Down { .. })));
        assert!(matches!(client.detach(), Err(Error::Down { .. })));
    }
    assert_eq!(client.counters().sessions, 1);
    drop((client, clone));
    assert_eq!(other.stat().unwrap().sessions, 1);
    end(server, other);
}

#[test]
fn batches_commit_and_abort() {
    const COUNT: usize = 300;
    let (_dir, server, client) = setup();
    let uris: Vec<_> = (0..COUNT).map(|i| ObjUri::try_from(format!("/{i}")).unwrap()).collect();
    let start = client.stat().unwrap();
    let mut objects: Vec<_> = (0..COUNT)
        .map(|i| {
            let mut object = client.create(8, None, None).unwrap();
            File::from(object.take_fd().unwrap()).write_all(&i.to_be_bytes()).unwrap();
            object
        })
        .collect();
    let thrown_away = client.create(1 << 20, None, None).unwrap();
    // Still writable through another descriptor; forbidden by its condition; fit to be committed.
    let mut busy = client.create(0, None, None).unwrap();
    let writer = busy.fd().unwrap().try_clone_to_owned().unwrap();
    let mut refused = client.create(0, None, None).unwrap();
    let none = CommitOptions { if_version: IfVersion::Absent, ..CommitOptions::default() };

    let mut batch = client.batch();
    for (object, uri) in objects.iter_mut().zip(&uris) {
        // With a descriptor: more than one frame may bring.
        batch = batch.commit(object, uri, 8, CommitOptions { want: Want::FD, ..CommitOptions::default() });
    }
    let (late, last) = (uri("/late"), uri("/last"));
    let batch = batch.abort(thrown_away).commit(&mut busy, &late, 0, CommitOptions::default());
    let mut outcomes = batch.commit(&mut refused, &uris[0], 0, none).lookup(&uris[0], Want::ENTRY).run().unwrap();
    assert_eq!(outcomes.len(), COUNT + 4);
    let rest: Vec<_> = outcomes.drain(COUNT..).collect();
    for (i, outcome) in outcomes.into_iter().enumerate() {
        let Ok(BatchOutcome::Found(found)) = outcome else { panic!("{i}: {outcome:?}") };
        assert_eq!(content(found), i.to_be_bytes());
    }
    assert!(matches!(rest[0], Ok(BatchOutcome::Done)), "{:?}", rest[0]);
    assert_eq!(rest[1].as_ref().unwrap_err().status(), Some(Status::Busy));
    assert_eq!(rest[2].as_ref().unwrap_err().status(), Some(Status::Conflict));
    assert!(matches!(&rest[3], Ok(BatchOutcome::Found(found)) if found.entry.length == 8));

    // Used up by success and by a conflict, not by being busy.
    let why = client.batch().commit(&mut objects[0], &last, 8, CommitOptions::default()).run().unwrap_err();
    assert_eq!(why.status(), Some(Status::UnknownHandle));
    let why = refused.commit(&last, 0, CommitOptions::default()).unwrap_err();
    assert_eq!(why.status(), Some(Status::UnknownHandle));
    drop(writer);
    assert_eq!(busy.commit(&late, 0, CommitOptions::default()).unwrap().entry.length, 0);

    // Not run: thrown away all the same.
    drop(client.batch().abort(client.create(1 << 20, None, None).unwrap()));
    drop((objects, refused));
    assert!(client.flush_deferred(PATIENCE));
    let end_state = client.stat().unwrap();
    assert_eq!(end_state.private, 0);
    assert_eq!(end_state.tiers[0].objects, start.tiers[0].objects + COUNT as u64 + 1);
    assert_eq!(client.counters().deferred, 1);
    end(server, client);
}
