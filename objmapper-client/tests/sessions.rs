//! Sessions and what lives in them, connections that come and go, against a peer that says what a test wants it to say.

mod fake_peer;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fake_peer::{Conn, PATIENCE, Peer, entry, eventually, file, is_cloexec, read_all};
use objmapper_client::{
    BatchOutcome, CommitOptions, ConnectionState, Error, Event, IfVersion, Leased, ObjUri, Op, Status, Tier, Token,
    Want,
};
use objmapper_proto::ext::{BatchReply, LeaseOutcome, Reply, Request};

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap()
}

/// A peer with extensions: `script` begins after ATTACH.
fn extended(script: impl Fn(Conn) + Send + Sync + 'static) -> (Peer, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if conn.hello_extended(1, &path).is_some() {
            script(conn);
        }
    });
    (peer, dir)
}

/// A store that is stopped: the first call ends by its deadline, the next ones at once, and it heals.
#[test]
fn a_stalled_store_is_given_up_and_comes_back() {
    let stalled = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&stalled);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if conn.number > 0 && flag.load(Ordering::SeqCst) {
            // HELLO is not answered either.
            conn.expect("4f424a4d02800300ff");
            assert!(conn.closed());
            return;
        }
        let Some(offered) = conn.hello_extended(1, &path) else { return };
        assert_eq!(offered == Token::NEW, conn.number == 0, "the session goes on");
        if conn.number == 0 {
            conn.request().unwrap();
        } else if let Some((id, _)) = conn.request() {
            conn.reply(id, Op::Lookup, &Reply::Entry(entry(1)));
        }
        assert!(conn.closed());
    });
    let events = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let client = peer
        .config()
        .pipeline(255)
        .call_timeout(Duration::from_millis(200))
        .connect_timeout(Duration::from_millis(200))
        .on_event(move |event| log.lock().unwrap().push(event.clone()))
        .build()
        .unwrap();
    client.wait_connected(PATIENCE).unwrap();
    let generation = client.generation();
    assert!(matches!(client.lookup(&uri("/a"), Want::ENTRY), Err(Error::Timeout { .. })));
    assert!(!client.is_up() && client.generation() > generation);
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(matches!(client.lookup(&uri("/a"), Want::ENTRY), Err(Error::Down { .. })));
    }
    // If each of them waited for its deadline, they would take 20 s.
    assert!(begun.elapsed() < Duration::from_secs(10), "calls wait for a store that is down");
    // Its directories are still there.
    assert_eq!(client.session().unwrap().tiers().len(), 1);
    stalled.store(false, Ordering::SeqCst);
    client.wait_connected(PATIENCE).unwrap();
    assert!(client.lookup(&uri("/a"), Want::ENTRY).unwrap().is_some());
    let instance = Token([1; 16]);
    // The listener is told after those who wait.
    eventually("the last event", || events.lock().unwrap().len() >= 3);
    assert_eq!(
        *events.lock().unwrap(),
        [
            Event::SessionStarted { session: 1, instance, lost_previous: false, instance_changed: false },
            Event::Down { why: Error::Timeout { what: "an answer" } },
            Event::SessionResumed { session: 1, instance, instance_changed: false },
        ]
    );
    drop(client);
    peer.finish();
}

/// The store dies and comes back without its sessions: known at once, without a call.
#[test]
fn a_lost_session_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (kill, killed) = mpsc::channel::<()>();
    let killed = std::sync::Mutex::new(Some(killed));
    let peer = Peer::start(move |mut conn| {
        if conn.number == 0 {
            conn.hello_extended(1, &path).unwrap();
            let (id, _) = conn.request().unwrap();
            let private = file(&path, "private", b"");
            let mut bytes = Vec::new();
            Reply::Created { handle: 7, tier: Tier::Memory }.encode(id, Op::Create, 1, &mut bytes).unwrap();
            bytes.push(b'X');
            conn.send_fds(&bytes, &[private.as_fd()]);
            killed.lock().unwrap().take().unwrap().recv().unwrap();
            return;
        }
        if !conn.hello("4f424a4d02800000ff02") {
            return;
        }
        let (id, Request::Attach { session, .. }) = conn.request().unwrap() else { panic!() };
        assert_eq!(session, Token([1; 16]));
        conn.fail(id, Op::Attach, Status::UnknownSession);
        let (id, Request::Attach { session, .. }) = conn.request().unwrap() else { panic!() };
        assert_eq!(session, Token::NEW);
        conn.attached(id, 2, 2, &path);
        assert!(conn.closed(), "what belonged to the lost session was sent in the new one");
    });
    let (event, events) = mpsc::channel();
    let event = std::sync::Mutex::new(event);
    let client = peer.config().on_event(move |e| event.lock().unwrap().send(e.clone()).unwrap()).connect().unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE), Ok(Event::SessionStarted { session: 1, .. })));
    let mut object = client.create(10, None, None).unwrap();
    assert_eq!((object.handle(), object.tier(), is_cloexec(object.fd().unwrap())), (7, Tier::Memory, true));
    kill.send(()).unwrap();
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), Event::Down { why: Error::Closed });
    assert_eq!(
        events.recv_timeout(PATIENCE).unwrap(),
        Event::SessionStarted { session: 2, instance: Token([2; 16]), lost_previous: true, instance_changed: true }
    );
    let why = object.commit(&uri("/a"), 0, CommitOptions::default()).unwrap_err();
    assert!(matches!(why, Error::SessionLost) && !why.is_retryable());
    drop(object);
    client.release(1, &[1, 2, 3]);
    assert!(client.flush_deferred(PATIENCE));
    let counters = client.counters();
    assert_eq!((counters.deferred, counters.deferred_dropped, counters.sessions_lost), (0, 4, 1));
    assert_eq!(client.session().unwrap().id(), 2);
    drop(client);
    peer.finish();
}

#[test]
fn what_is_given_up_in_the_background_arrives() {
    let arrived = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&arrived);
    let (peer, _dir) = extended(move |mut conn| {
        while let Some((id, request)) = conn.request() {
            match &request {
                Request::Create { .. } => {
                    let file = tempfile::tempfile().unwrap();
                    let mut bytes = Vec::new();
                    Reply::Created { handle: 9, tier: Tier::Disk }.encode(id, Op::Create, 1, &mut bytes).unwrap();
                    bytes.push(b'X');
                    conn.send_fds(&bytes, &[file.as_fd()]);
                    continue;
                }
                Request::Lease { .. } => {
                    conn.reply(id, Op::Lease, &Reply::Lease(LeaseOutcome::Granted { lease: 5 }));
                    continue;
                }
                _ => {
                    let op = request.op();
                    log.lock().unwrap().push(request);
                    conn.reply(id, op, &Reply::Empty);
                }
            }
        }
    });
    let client = peer.config().connect().unwrap();
    drop(client.create(1, Some(Tier::Disk), None).unwrap());
    let Leased::Granted(lease) = client.lease(&uri("/a"), Duration::ZERO, PATIENCE, Want::ENTRY).unwrap() else {
        panic!()
    };
    drop(lease);
    let objects: Vec<u64> = (0..10_000).collect();
    client.release(1, &objects);
    assert!(client.flush_deferred(PATIENCE));
    let mut arrived = std::mem::take(&mut *arrived.lock().unwrap());
    let mut released: Vec<u64> = Vec::new();
    arrived.retain(|r| {
        if let Request::Release { objects } = r {
            released.extend(objects);
        }
        !matches!(r, Request::Release { .. })
    });
    assert_eq!(released, objects);
    assert!(arrived.contains(&Request::Abort { handle: 9 }));
    assert!(arrived.contains(&Request::Unlease { lease: 5, refuse: 0 }));
    assert_eq!(client.counters().deferred, 10_002);
    drop(client);
    peer.finish();
}

#[test]
fn batches_are_divided_and_put_together_again() {
    let (peer, dir) = extended(|mut conn| {
        let body = tempfile::tempfile().unwrap();
        while let Some((id, request)) = conn.request() {
            let Request::Batch(requests) = request else { panic!() };
            let mut fds = Vec::new();
            let replies = requests
                .iter()
                .map(|r| match r {
                    Request::Lookup { uri, .. } if uri.as_bytes().starts_with(b"/absent") => {
                        BatchReply::Failed { op: Op::Lookup, status: Status::NotFound, message: String::new() }
                    }
                    Request::Lookup { want, .. } => {
                        fds.extend(want.fd.then(|| body.as_fd()));
                        BatchReply::Done { op: Op::Lookup, nfds: u8::from(want.fd), reply: Reply::Entry(entry(1)) }
                    }
                    Request::Delete { .. } => {
                        BatchReply::Failed { op: Op::Delete, status: Status::Conflict, message: "other version".into() }
                    }
                    other => BatchReply::Done { op: other.op(), nfds: 0, reply: Reply::Empty },
                })
                .collect();
            let mut bytes = Vec::new();
            Reply::Batch(replies).encode(id, Op::Batch, fds.len() as u8, &mut bytes).unwrap();
            if fds.is_empty() {
                use std::io::Write;
                conn.stream.write_all(&bytes).unwrap();
            } else {
                // As EXTENSIONS.md says: what carries descriptors is at most 16 KiB.
                bytes.push(b'X');
                use std::io::Write;
                let head = bytes.len().saturating_sub(16 << 10);
                conn.stream.write_all(&bytes[..head]).unwrap();
                conn.send_fds(&bytes[head..], &fds);
            }
        }
    });
    let client = peer.config().connect().unwrap();
    let long = "a".repeat(4000);
    let uris: Vec<ObjUri<'_>> = (0..600)
        .map(|i| ObjUri::try_from(if i % 10 == 0 { format!("/absent{i}") } else { format!("/{i}{long}") }).unwrap())
        .collect();
    let mut batch = client.batch();
    for uri in &uris {
        batch = batch.lookup(uri, Want::FD);
    }
    let last = uri("/x");
    let outcomes = batch.delete(&last, IfVersion::Any).release(&[1, 2]).run().unwrap();
    assert_eq!(outcomes.len(), 602);
    for (i, outcome) in outcomes.into_iter().enumerate() {
        match (i, outcome) {
            (600, Err(why)) => assert_eq!(why.status(), Some(Status::Conflict)),
            (601, Ok(BatchOutcome::Done)) => {}
            (i, Ok(BatchOutcome::NotFound)) if i % 10 == 0 && i < 600 => {}
            (i, Ok(BatchOutcome::Found(found))) if i % 10 != 0 => assert!(is_cloexec(found.fd.unwrap())),
            (i, other) => panic!("{i}: {other:?}"),
        }
    }
    assert!(client.batch().run().unwrap().is_empty());
    drop(client);
    peer.finish();
    drop(dir);
}

/// The directory of a tier opens bodies without a call.
#[test]
fn bodies_are_opened_by_the_tier_directory() {
    let (peer, dir) = extended(|mut conn| assert!(conn.closed()));
    std::fs::create_dir(dir.path().join("34")).unwrap();
    std::fs::write(dir.path().join("34/0000000000001234"), b"body").unwrap();
    let client = peer.config().connect().unwrap();
    let session = client.session().unwrap();
    let fd = session.open(Tier::Memory, 0x1234).unwrap();
    assert!(is_cloexec(&fd));
    assert_eq!(read_all(fd), b"body");
    for (tier, object) in [(Tier::Memory, 1), (Tier::Disk, 0x1234)] {
        let gone = nix::errno::Errno::ENOENT as i32;
        assert!(matches!(session.open(tier, object), Err(Error::Io { errno, .. }) if errno == gone));
    }
    assert_eq!(client.counters().requests, 0);
    drop(client);
    peer.finish();
}

/// With several connections, one that is lost does not take the others' calls along.
#[test]
fn the_others_go_on_when_one_connection_is_lost() {
    let lost = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lost);
    let (peer, _dir) = extended(move |mut conn| {
        let mut answers = 0;
        while let Some((id, _)) = conn.request() {
            // The first connections die under a request.
            if conn.number < 3 && answers == 5 {
                count.fetch_add(1, Ordering::SeqCst);
                return;
            }
            answers += 1;
            conn.reply(id, Op::Lookup, &Reply::Entry(entry(1)));
        }
    });
    let client = peer.config().connections(3).connect().unwrap();
    eventually("all connections", || matches!(client.state(), ConnectionState::Extended { connections: 3, .. }));
    let end = Instant::now() + PATIENCE;
    while lost.load(Ordering::SeqCst) < 3 {
        assert!(Instant::now() < end);
        match client.lookup(&uri("/a"), Want::ENTRY) {
            Ok(found) => assert!(found.is_some()),
            Err(why) => {
                assert!(why.should_reconnect(), "{why}");
                client.wait_connected(PATIENCE).unwrap();
            }
        }
    }
    client.wait_connected(PATIENCE).unwrap();
    assert!(client.lookup(&uri("/a"), Want::ENTRY).unwrap().is_some());
    drop(client);
    peer.finish();
}

/// A store in trouble that hangs up on everybody is not taken for a V1 peer once it has had the extensions:
/// the session goes on when it is well again.
#[test]
fn a_store_that_hangs_up_for_a_while_keeps_its_session() {
    const HANGUPS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| match conn.number {
        0 => {
            conn.hello_extended(1, &path).unwrap();
            conn.request();
        }
        1..=HANGUPS => {}
        _ => {
            assert_eq!(conn.hello_extended(1, &path), Some(Token([1; 16])));
            assert!(conn.closed());
        }
    });
    let events = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let client = peer.config().on_event(move |event| log.lock().unwrap().push(event.clone())).connect().unwrap();
    assert_eq!(client.lookup(&uri("/a"), Want::ENTRY).unwrap_err(), Error::Closed);
    client.wait_connected(PATIENCE).unwrap();
    assert_eq!(client.session().unwrap().id(), 1);
    eventually("the event", || events.lock().unwrap().len() == 3);
    assert!(matches!(
        events.lock().unwrap()[1..],
        [Event::Down { why: Error::Closed }, Event::SessionResumed { session: 1, .. }]
    ));
    drop(client);
    peer.finish();
}

/// Whoever is waiting when the client is detached learns that, and not that its time is over.
#[test]
fn a_call_that_waits_is_told_of_the_end() {
    for _ in 0..30 {
        let (asked, wait) = mpsc::channel::<()>();
        let (peer, _dir) = extended(move |mut conn| {
            conn.request().unwrap();
            asked.send(()).unwrap();
            let (id, request) = conn.request().unwrap();
            assert_eq!(request, Request::Detach);
            conn.reply(id, Op::Detach, &Reply::Empty);
            assert!(conn.closed());
        });
        let client = peer.config().connections(1).connect().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| client.lookup(&uri("/a"), Want::ENTRY));
            wait.recv().unwrap();
            client.detach().unwrap();
            assert_eq!(waiting.join().unwrap().unwrap_err(), Error::ShutDown);
        });
        assert!(!client.is_up());
        drop(client);
        peer.finish();
    }
}
