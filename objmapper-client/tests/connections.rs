//! Connections and calls on them, against a peer that says what a test wants it to say.

mod fake_peer;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fake_peer::{Conn, PATIENCE, Peer, entry, eventually, file};
use objmapper_client::{
    ConnectionState, Error, IfVersion, Leased, ObjUri, Op, ProtocolError, Status, Tier, V01Tier, Version, Want,
};
use objmapper_proto::ext::{LeaseOutcome, Reply, Request};

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
        conn.expect("4f424a4d02 8003 0010");
        conn.send("4f424a4d020000000102");
        conn.expect("01 00000001 00 31 0005 2f76322f61");
        conn.send("02 00000001 00 0000000000000000 0000");
        conn.send_fd(&content);
        conn.expect("01 00000002 00 31 000c 2f64656c6574652f76322f61");
        conn.send("02 00000002 00 0000000000000001 0000");
        conn.expect("01 00000003 02 31 0007 2f76322f657068");
        conn.send("02 00000003 00 0000000000000000 001a 010008000000000000000c 020008000000006553f100 05000101");
        conn.send_fd(&content);
        // Refused.
        conn.expect("01 00000004 00 31 0005 2f76322f61");
        conn.send("02 00000004 05 0000000000000000 0005 ff0002 6e6f");
        assert!(conn.closed());
    });
    let client = peer.config().pipeline(16).connect().unwrap();
    assert_eq!(client.get_or_create(&uri("/v2/a"), V01Tier::Default).unwrap().len(), 12);
    assert!(client.delete(&uri("/v2/a"), IfVersion::Any).unwrap());
    assert_eq!(client.get_or_create(&uri("/v2/eph"), V01Tier::Ephemeral).unwrap().len(), 12);
    let why = client.get_or_create(&uri("/v2/a"), V01Tier::Default).unwrap_err();
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

/// A private object or a lease that arrives when its caller has gone is given up at once, not with the session.
#[test]
fn what_a_late_answer_brings_is_given_back() {
    let (asked, both_asked) = mpsc::channel();
    let (late, wait) = mpsc::channel::<()>();
    let (given_back, gone) = mpsc::channel();
    let ends = std::sync::Mutex::new(Some((asked, wait, given_back)));
    let (peer, _dir) = extended(move |mut conn| {
        let (asked, wait, given_back) = ends.lock().unwrap().take().unwrap();
        let slow = [conn.request().unwrap(), conn.request().unwrap()];
        asked.send(()).unwrap();
        let (id, _) = conn.request().unwrap();
        conn.reply(id, Op::Lookup, &Reply::Entry(entry(2)));
        wait.recv().unwrap();
        for (id, request) in slow {
            if matches!(request, Request::Create { .. }) {
                let mut bytes = Vec::new();
                Reply::Created { handle: 7, tier: Tier::Memory }.encode(id, Op::Create, 1, &mut bytes).unwrap();
                bytes.push(b'X');
                conn.send_fds(&bytes, &[tempfile::tempfile().unwrap().as_fd()]);
            } else {
                conn.reply(id, Op::Lease, &Reply::Lease(LeaseOutcome::Granted { lease: 9 }));
            }
        }
        while let Some((id, request)) = conn.request() {
            match request {
                Request::Lookup { .. } => conn.reply(id, Op::Lookup, &Reply::Entry(entry(3))),
                Request::Abort { handle } => {
                    conn.reply(id, Op::Abort, &Reply::Empty);
                    given_back.send(handle).unwrap();
                }
                Request::Unlease { lease, refuse: 0 } => {
                    conn.reply(id, Op::Unlease, &Reply::Empty);
                    given_back.send(lease).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let client = peer.config().connections(1).call_timeout(Duration::from_millis(500)).connect().unwrap();
    std::thread::scope(|scope| {
        let create = scope.spawn(|| client.create(1, None, None).map(|_| ()));
        let lease = scope.spawn(|| client.lease(&uri("/a"), Duration::ZERO, PATIENCE, Want::ENTRY).map(|_| ()));
        both_asked.recv_timeout(PATIENCE).unwrap();
        // A sign of life keeps the connection.
        assert_eq!(client.lookup(&uri("/quick"), Want::ENTRY).unwrap().unwrap().entry.object, 2);
        assert!(matches!(create.join().unwrap(), Err(Error::Timeout { .. })));
        assert!(matches!(lease.join().unwrap(), Err(Error::Timeout { .. })));
    });
    late.send(()).unwrap();
    assert_eq!(client.lookup(&uri("/next"), Want::ENTRY).unwrap().unwrap().entry.object, 3);
    let mut back = [gone.recv_timeout(PATIENCE).unwrap(), gone.recv_timeout(PATIENCE).unwrap()];
    back.sort_unstable();
    assert_eq!(back, [7, 9]);
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
            let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
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
