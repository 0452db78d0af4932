//! Connections, sessions and calls against a peer that says what a test wants it to say.

mod fake_peer;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fake_peer::{Conn, PATIENCE, Peer, entry, eventually, file, is_cloexec, read_all};
use objmapper_client::{
    BatchOutcome, CommitOptions, ConnectionState, Error, Event, IfVersion, Leased, ObjUri, Op, ProtocolError, Status,
    Tier, Token, V01Tier, Version, Want,
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

#[test]
fn v2_is_fallen_back_to_when_caps_are_refused() {
    let peer = Peer::start(|mut conn| {
        if conn.hello_v01() {
            assert!(conn.closed());
        }
    });
    let client = peer.config().connect().unwrap();
    assert_eq!(client.state(), ConnectionState::V01 { version: Version::V2, connections: 1 });
    assert!(client.session().is_none());
    assert_eq!(client.counters().fallbacks, 1);
    drop(client);
    peer.finish();
}

/// The bytes of protocol.md's V2 vectors, as this client sends and takes them.
#[test]
fn v2_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        let content = file(&path, "f", b"twelve bytes");
        conn.expect("4f424a4d02 8013 0010");
        conn.send("4f424a4d020000000102");
        conn.expect("01 00000001 00 31 0005 2f76322f61");
        conn.send("02 00000001 00 0000000000000000 0000");
        conn.send_fd(&content);
        conn.expect("01 00000002 00 31 000c 2f64656c6574652f76322f61");
        conn.send("02 00000002 00 0000000000000001 0000");
        conn.expect("01 00000003 02 31 0007 2f76322f657068");
        conn.send("02 00000003 00 0000000000000000 001a 010008000000000000000c 020008000000006553f100 05000101");
        conn.send_fd(&content);
        conn.expect("01 00000004 00 34 0005 2f76322f61");
        conn.send(
            "05 00000004 00 0002 001a 010008000000000000000c 020008000000006553f100 05000101
             00000000000000100000000000000010 00000000000000000000000000000010
             0101000000000000000000000000000c 0000000000000000000000000000000c
             7369787465656e2062797465732e2e2e",
        );
        conn.send_fd(&content);
        // Refused: a plain response to a segmented request.
        conn.expect("01 00000005 00 34 0005 2f76322f61");
        conn.send("02 00000005 05 0000000000000000 0005 ff0002 6e6f");
        assert!(conn.closed());
    });
    let client = peer.config().pipeline(16).connect().unwrap();
    assert_eq!(client.get_or_create(&uri("/v2/a"), V01Tier::Default).unwrap().len(), 12);
    assert!(client.delete(&uri("/v2/a"), IfVersion::Any).unwrap());
    assert_eq!(client.get_or_create(&uri("/v2/eph"), V01Tier::Ephemeral).unwrap().len(), 12);
    let segmented = client.get_segmented(&uri("/v2/a")).unwrap();
    assert_eq!((segmented.segments.len(), &*segmented.inline, segmented.fds.len()), (2, &b"sixteen bytes..."[..], 1));
    let why = client.get_segmented(&uri("/v2/a")).unwrap_err();
    assert_eq!(why.status(), Some(Status::Unsupported));
    assert!(why.to_string().ends_with("unsupported: no"), "{why}");
    drop(client);
    peer.finish();
}

/// Many threads on one connection; the answers come in the reverse order of the requests.
#[test]
fn answers_out_of_order_reach_their_callers() {
    const THREADS: usize = 16;
    const ROUNDS: usize = 50;
    let (peer, _dir) = extended(|mut conn| {
        for _ in 0..ROUNDS {
            let mut requests: Vec<_> = (0..THREADS).map(|_| conn.request().unwrap()).collect();
            requests.reverse();
            for (id, request) in requests {
                let Request::Lookup { uri, .. } = request else { panic!() };
                let number: u64 = std::str::from_utf8(&uri.as_bytes()[1..]).unwrap().parse().unwrap();
                conn.reply(id, Op::Lookup, &Reply::Entry(entry(number)));
            }
        }
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    std::thread::scope(|scope| {
        let barrier = Arc::new(std::sync::Barrier::new(THREADS));
        for thread in 0..THREADS {
            let (client, barrier) = (client.clone(), Arc::clone(&barrier));
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    barrier.wait();
                    let number = (thread * 1000 + round) as u64;
                    let found = client.lookup(&uri(&format!("/{number}")), Want::ENTRY).unwrap().unwrap();
                    assert_eq!(found.entry.object, number);
                }
            });
        }
    });
    assert_eq!(client.counters().connects, 1);
    drop(client);
    peer.finish();
}

/// One call waits long; the others are not held up by it, whoever of them reads.
#[test]
fn a_slow_answer_holds_up_no_other() {
    let (release, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    let (peer, _dir) = extended(move |mut conn| {
        let (mut slow, mut answered) = (None, 0);
        while slow.is_none() || answered < 400 {
            let (id, request) = conn.request().unwrap();
            match request {
                Request::Lease { .. } => slow = Some(id),
                Request::Lookup { .. } => {
                    conn.reply(id, Op::Lookup, &Reply::Entry(entry(1)));
                    answered += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        wait.lock().unwrap().take().unwrap().recv().unwrap();
        conn.reply(slow.unwrap(), Op::Lease, &Reply::Lease(LeaseOutcome::Refused { retry: 7 }));
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    std::thread::scope(|scope| {
        let slow = client.clone();
        let leased = scope.spawn(move || slow.lease(&uri("/a"), PATIENCE, PATIENCE, Want::ENTRY).unwrap());
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    client.lookup(&uri("/a"), Want::ENTRY).unwrap().unwrap();
                }
            });
        }
        eventually("all look-ups", || client.counters().answers >= 400);
        release.send(()).unwrap();
        let Leased::Refused { retry } = leased.join().unwrap() else { panic!() };
        assert_eq!(retry, Duration::from_millis(7));
    });
    drop(client);
    peer.finish();
}

/// After a timeout the connection stays if others are answered on it, and the late answer's descriptor is
/// closed.
#[test]
fn a_late_answer_is_thrown_away() {
    let (late, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    let (peer, _dir) = extended(move |mut conn| {
        let (slow, _) = conn.request().unwrap();
        let (id, _) = conn.request().unwrap();
        conn.reply(id, Op::Lookup, &Reply::Entry(entry(2)));
        wait.lock().unwrap().take().unwrap().recv().unwrap();
        let file = tempfile::tempfile().unwrap();
        conn.send_fds(&Conn::entry_bytes(slow, 1), &[file.as_fd()]);
        let (id, _) = conn.request().unwrap();
        conn.reply(id, Op::Lookup, &Reply::Entry(entry(3)));
        assert!(conn.closed());
    });
    let client = peer.config().call_timeout(Duration::from_millis(300)).connect().unwrap();
    let pipeline = client.pipeline().unwrap();
    let slow = pipeline.lookup(&uri("/slow"), Want::FD).unwrap();
    let quick = pipeline.lookup(&uri("/quick"), Want::ENTRY).unwrap();
    assert_eq!(quick.wait().unwrap().unwrap().entry.object, 2);
    assert!(matches!(slow.wait(), Err(Error::Timeout { .. })));
    late.send(()).unwrap();
    assert_eq!(client.lookup(&uri("/next"), Want::ENTRY).unwrap().unwrap().entry.object, 3);
    let counters = client.counters();
    assert_eq!((counters.late_answers, counters.connects, counters.disconnects), (1, 1, 0));
    drop((pipeline, client));
    peer.finish();
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
            conn.expect("4f424a4d02801300ff");
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
        .on_event(move |event| log.lock().unwrap().push(*event))
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
    assert!(begun.elapsed() < Duration::from_millis(200), "calls wait for a store that is down");
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
            Event::Down,
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
    let client = peer.config().on_event(move |e| event.lock().unwrap().send(*e).unwrap()).connect().unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE), Ok(Event::SessionStarted { session: 1, .. })));
    let mut object = client.create(10, None, None).unwrap();
    assert_eq!((object.handle(), object.tier(), is_cloexec(object.fd().unwrap())), (7, Tier::Memory, true));
    kill.send(()).unwrap();
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), Event::Down);
    assert_eq!(
        events.recv_timeout(PATIENCE).unwrap(),
        Event::SessionStarted { session: 2, instance: Token([2; 16]), lost_previous: true, instance_changed: true }
    );
    let why = object.commit(&uri("/a"), 0, CommitOptions::default()).unwrap_err();
    assert!(matches!(why, Error::SessionLost) && why.gives_up());
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

/// Whatever the descriptor is that nobody announced: it is closed and the connection dropped.
#[test]
fn extra_and_missing_fds_are_refused() {
    type Answer = fn(&mut Conn, u32, &File);
    let rounds: [(Answer, ProtocolError); 4] = [
        (
            |conn, id, file| {
                let mut bytes = Vec::new();
                Reply::Entry(entry(1)).encode(id, Op::Lookup, 0, &mut bytes).unwrap();
                conn.send_fds(&bytes, &[file.as_fd()]);
            },
            ProtocolError::ExtraFds(1),
        ),
        (
            |conn, id, file| conn.send_fds(&Conn::entry_bytes(id, 1), &[file.as_fd(), file.as_fd()]),
            ProtocolError::FdCount { expected: 1, got: 2 },
        ),
        (
            |conn, id, _| {
                use std::io::Write;
                conn.stream.write_all(&Conn::entry_bytes(id, 1)).unwrap();
            },
            ProtocolError::FdCount { expected: 1, got: 0 },
        ),
        (
            |conn, id, _| {
                use std::io::Write;
                let mut bytes = Conn::entry_bytes(id, 1);
                *bytes.last_mut().unwrap() = b'Y';
                conn.stream.write_all(&bytes).unwrap();
            },
            ProtocolError::NoFdByte(b'Y'),
        ),
    ];
    for (answer, expected) in rounds {
        let (peer, dir) = extended(move |mut conn| {
            if conn.number > 0 {
                return;
            }
            let (id, _) = conn.request().unwrap();
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let (reader, writer) = (File::from(reader), File::from(writer));
            answer(&mut conn, id, &writer);
            drop(writer);
            // The pipe ends when nobody holds its other end, the client neither.
            let mut byte = [0];
            assert_eq!(std::io::Read::read(&mut &reader, &mut byte).unwrap(), 0);
            assert!(conn.closed());
        });
        let client = peer.config().connect().unwrap();
        let want = if matches!(expected, ProtocolError::ExtraFds(_)) { Want::ENTRY } else { Want::FD };
        let why = client.lookup(&uri("/a"), want).unwrap_err();
        assert_eq!(why, Error::Protocol(expected));
        assert!(why.should_reconnect());
        assert_eq!(client.counters().protocol_errors, 1);
        drop(client);
        peer.finish();
        drop(dir);
    }
}

#[test]
fn garbage_and_answers_to_nothing_end_the_connection() {
    for bytes in
        ["ff", "11 00000063 02 00 00 00000000", "11 00000001 08 00 00 00000000", "02 00000001 00 0000000000000000 0000"]
    {
        let (peer, _dir) = extended(move |mut conn| {
            if conn.number == 0 {
                conn.request().unwrap();
                conn.send(bytes);
                assert!(conn.closed());
            }
        });
        let client = peer.config().connect().unwrap();
        let why = client.lookup(&uri("/a"), Want::ENTRY).unwrap_err();
        assert!(matches!(why, Error::Protocol(_)), "{bytes}: {why}");
        drop(client);
        peer.finish();
    }
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
        let gone = rustix::io::Errno::NOENT.raw_os_error();
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
    let client = peer.config().on_event(move |event| log.lock().unwrap().push(*event)).connect().unwrap();
    assert_eq!(client.lookup(&uri("/a"), Want::ENTRY).unwrap_err(), Error::Closed);
    client.wait_connected(PATIENCE).unwrap();
    assert_eq!(client.session().unwrap().id(), 1);
    eventually("the event", || events.lock().unwrap().len() == 3);
    assert!(matches!(events.lock().unwrap()[1..], [Event::Down, Event::SessionResumed { session: 1, .. }]));
    drop(client);
    peer.finish();
}

/// A caller that comes late for its answer still gets it, and the connection stays.
#[test]
fn a_pending_answer_is_kept_for_a_slow_caller() {
    let (peer, _dir) = extended(|mut conn| {
        while let Some((id, _)) = conn.request() {
            conn.reply(id, Op::Lookup, &Reply::Entry(entry(1)));
        }
    });
    let timeout = Duration::from_millis(300);
    let client = peer.config().call_timeout(timeout).connect().unwrap();
    let pipeline = client.pipeline().unwrap();
    let begun = Instant::now();
    let pending = pipeline.lookup(&uri("/a"), Want::ENTRY).unwrap();
    pipeline.flush().unwrap();
    eventually("time passes", || begun.elapsed() > 2 * timeout);
    assert!(pending.wait().unwrap().is_some());
    assert_eq!(client.counters().disconnects, 0);
    drop((pipeline, client));
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
