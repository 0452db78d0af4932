//! Connections that are lost, refused, or given up; what their unread answers gave; and the pace of new attempts.

mod fake_peer;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use fake_peer::{Conn, PATIENCE, Peer, entry, eventually};
use objmapper_client::{
    Client, ConnectionState, Entry, EntryFlags, Error, Event, ObjUri, Op, Outage, Status, Tier, Token, Want,
};
use objmapper_proto::ext::{LeaseOutcome, Reply, Request};

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap()
}

fn pinned(object: u64) -> Entry {
    Entry { flags: EntryFlags::PINNED, ..entry(object) }
}

/// A peer that numbers its connections from 100 and says which LOST came.
fn numbered(
    script: impl Fn(&mut Conn) + Send + Sync + 'static,
) -> (Peer, mpsc::Receiver<(u64, u64)>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (send, lost) = mpsc::channel();
    let send = Mutex::new(send);
    let peer = Peer::start(move |mut conn| {
        let number = 100 + conn.number as u64;
        if conn.hello_numbered(1, &path, Some(number)).is_none() {
            return;
        }
        if conn.number == 0 {
            return script(&mut conn);
        }
        while let Some((id, request)) = conn.request() {
            match request {
                Request::Lost { connection, read } => {
                    conn.reply(id, Op::Lost, &Reply::Empty);
                    send.lock().unwrap().send((connection, read)).unwrap();
                }
                Request::Lookup { .. } => conn.reply(id, Op::Lookup, &Reply::Entry(entry(1))),
                other => panic!("{other:?}"),
            }
        }
    });
    (peer, lost, dir)
}

#[test]
fn the_store_is_told_how_much_was_read_on_a_lost_connection() {
    let (peer, lost, _dir) = numbered(|conn| {
        for _ in 0..3 {
            let (id, _) = conn.request().unwrap();
            conn.reply(id, Op::Lookup, &Reply::Entry(entry(1)));
        }
        // A failure is an answer too.
        let (id, _) = conn.request().unwrap();
        conn.fail(id, Op::Lookup, Status::NotFound);
        // Half of an answer is none.
        let (id, _) = conn.request().unwrap();
        let mut bytes = Vec::new();
        Reply::Lease(LeaseOutcome::Granted { lease: 5 }).encode(id, Op::Lease, 0, &mut bytes).unwrap();
        std::io::Write::write_all(&mut conn.stream, &bytes[..bytes.len() - 1]).unwrap();
    });
    let client = peer.config().connect().unwrap();
    for _ in 0..4 {
        client.lookup(&uri("/a"), Want::ENTRY).unwrap();
    }
    let why = client.lease(&uri("/a"), Duration::ZERO, PATIENCE, Want::ENTRY).unwrap_err();
    assert_eq!(why, Error::Closed);
    assert_eq!(lost.recv_timeout(PATIENCE).unwrap(), (100, 4));
    assert!(client.flush_deferred(PATIENCE));
    let counters = client.counters();
    assert_eq!((counters.deferred, counters.deferred_dropped), (0, 0));
    drop(client);
    peer.finish();
}

/// A pin cannot be released for one caller: another one may have been told of the same.
#[test]
fn a_pin_that_comes_too_late_costs_its_connection() {
    let (answer, answers) = mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    let (peer, lost, _dir) = numbered(move |conn| {
        let (first, _) = conn.request().unwrap();
        // A sign of life, so that the client does not take the connection for dead.
        let (second, _) = conn.request().unwrap();
        conn.reply(second, Op::Lookup, &Reply::Entry(entry(1)));
        answers.lock().unwrap().recv().unwrap();
        conn.reply(first, Op::Lookup, &Reply::Entry(pinned(7)));
        assert!(conn.closed(), "nothing more is asked on it");
    });
    let client = peer.config().call_timeout(Duration::from_millis(300)).connect().unwrap();
    std::thread::scope(|scope| {
        let late = scope.spawn(|| client.lookup(&uri("/late"), Want::PIN));
        eventually("it is asked", || client.counters().requests == 1);
        client.lookup(&uri("/a"), Want::ENTRY).unwrap();
        assert!(matches!(late.join().unwrap(), Err(Error::Timeout { .. })));
    });
    assert!(client.is_up(), "being late costs nothing yet");
    answer.send(()).unwrap();
    // No call reads it.
    eventually("the connection is given up", || client.counters().disconnects == 1);
    // The answer that brought the pin does not count as read.
    assert_eq!(lost.recv_timeout(PATIENCE).unwrap(), (100, 1));
    drop(client);
    peer.finish();
}

#[test]
fn what_a_late_answer_gave_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (answer, answers) = mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    let (given, back) = mpsc::channel();
    let given = Mutex::new(given);
    let peer = Peer::start(move |mut conn| {
        if conn.hello_numbered(1, &path, Some(9)).is_none() {
            return;
        }
        let file = tempfile::tempfile().unwrap();
        let late: Vec<_> = (0..2).map(|_| conn.request().unwrap()).collect();
        let (id, _) = conn.request().unwrap();
        conn.reply(id, Op::Lookup, &Reply::Entry(entry(1)));
        answers.lock().unwrap().recv().unwrap();
        for (id, request) in late {
            if let Request::Create { .. } = request {
                let mut bytes = Vec::new();
                Reply::Created { handle: 7, tier: Tier::Memory }.encode(id, Op::Create, 1, &mut bytes).unwrap();
                bytes.push(b'X');
                conn.send_fds(&bytes, &[file.as_fd()]);
            } else {
                conn.reply(id, Op::Lease, &Reply::Lease(LeaseOutcome::Granted { lease: 5 }));
            }
        }
        while let Some((id, request)) = conn.request() {
            conn.reply(id, request.op(), &Reply::Empty);
            given.lock().unwrap().send(request).unwrap();
        }
    });
    let client = peer.config().call_timeout(Duration::from_millis(300)).connect().unwrap();
    std::thread::scope(|scope| {
        let created = scope.spawn(|| client.create(1, None, None).map(drop));
        let leased = scope.spawn(|| client.lease(&uri("/a"), Duration::ZERO, PATIENCE, Want::ENTRY).map(drop));
        eventually("both are asked", || client.counters().requests == 2);
        client.lookup(&uri("/a"), Want::ENTRY).unwrap();
        assert!(matches!(created.join().unwrap(), Err(Error::Timeout { .. })));
        assert!(matches!(leased.join().unwrap(), Err(Error::Timeout { .. })));
    });
    // No call reads it.
    answer.send(()).unwrap();
    let back: Vec<_> = (0..2).map(|_| back.recv_timeout(PATIENCE).unwrap()).collect();
    assert!(back.contains(&Request::Abort { handle: 7 }) && back.contains(&Request::Unlease { lease: 5, refuse: 0 }));
    assert_eq!(client.counters().disconnects, 0);
    drop(client);
    peer.finish();
}

/// An answer that the caller does not take, having given its pipeline up.
#[test]
fn a_pin_that_is_not_taken_is_released() {
    let (released, releases) = mpsc::channel();
    let released = Mutex::new(released);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if conn.hello_numbered(1, &path, Some(9)).is_none() {
            return;
        }
        while let Some((id, request)) = conn.request() {
            match request {
                Request::Release { objects } => {
                    conn.reply(id, Op::Release, &Reply::Empty);
                    released.lock().unwrap().send(objects).unwrap();
                }
                _ => conn.reply(id, Op::Lookup, &Reply::Entry(pinned(7))),
            }
        }
    });
    let client = peer.config().connect().unwrap();
    let pipeline = client.pipeline().unwrap();
    let dropped = pipeline.lookup(&uri("/a"), Want::PIN).unwrap();
    let unpinned = pipeline.lookup(&uri("/a"), Want::ENTRY).unwrap();
    let taken = pipeline.lookup(&uri("/a"), Want::PIN).unwrap();
    // Its answer is the last one, so that the others have come as well.
    assert_eq!(taken.wait().unwrap().unwrap().entry.object, 7);
    drop((dropped, unpinned));
    assert_eq!(releases.recv_timeout(PATIENCE).unwrap(), [7]);
    assert!(client.flush_deferred(PATIENCE));
    drop((pipeline, client));
    peer.finish();
    assert!(releases.try_recv().is_err(), "what was taken, or was no pin, is not released");
}

/// A peer that does not serve this client looks like one of protocol V1 until it is asked something.
#[test]
fn a_peer_that_accepts_and_closes_is_not_connected() {
    const FAILURES: u64 = 6;
    let peer = Peer::start(|_| {});
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let client = peer.config().on_event(move |event| log.lock().unwrap().push(event.clone())).build().unwrap();
    eventually("several attempts", || client.counters().connect_failures >= FAILURES);
    assert!(matches!(client.state(), ConnectionState::Down { .. }));
    let counters = client.counters();
    assert_eq!((counters.connects, counters.fallbacks), (0, 0));
    // Each attempt tries what a peer might speak: a bounded number of connections.
    assert!(peer.accepted() as u64 <= 8 * (counters.connect_failures + 1), "{} connections", peer.accepted());
    assert_eq!(*events.lock().unwrap(), [Event::Down { why: Error::HungUp }], "once");
    drop(client);
    peer.finish();
}

#[test]
fn a_refusal_is_told_in_the_stores_words() {
    let peer = Peer::start(|mut conn| {
        if conn.hello("4f424a4d02800000ff02")
            && let Some((id, Request::Attach { number: true, .. })) = conn.request()
        {
            conn.fail(id, Op::Attach, Status::Refused);
        }
    });
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let client = peer.config().on_event(move |event| log.lock().unwrap().push(event.clone())).build().unwrap();
    eventually("several attempts", || client.counters().connect_failures >= 5);
    let events = std::mem::take(&mut *events.lock().unwrap());
    let [Event::Down { why }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((why.status(), Outage::from(why)), (Some(Status::Refused), Outage::Down));
    assert_eq!(peer.accepted() as u64, client.counters().connect_failures, "one connection for each attempt");
    drop(client);
    peer.finish();
}

/// However many attempts fail: an outage begins once, and its refusal is reported once.
#[test]
fn an_outage_is_one_event_and_its_refusal_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let refuses = Arc::new(AtomicBool::new(true));
    let refusing = Arc::clone(&refuses);
    let peer = Peer::start(move |mut conn| {
        if conn.hello("4f424a4d02800000ff02")
            && let Some((id, _)) = conn.request()
        {
            if conn.number > 0 && refusing.load(Ordering::SeqCst) {
                conn.fail(id, Op::Attach, Status::Refused);
            } else {
                conn.attached(id, 1, 1, &path);
                // The first connection ends with its first request.
                conn.request();
            }
        }
    });
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let client = peer.config().on_event(move |event| log.lock().unwrap().push(event.clone())).connect().unwrap();
    assert!(client.lookup(&uri("/a"), Want::ENTRY).is_err());
    eventually("the refusal", || events.lock().unwrap().len() == 3);
    let failures = client.counters().connect_failures;
    eventually("further attempts", || client.counters().connect_failures >= failures + 3);
    refuses.store(false, Ordering::SeqCst);
    eventually("the end of the outage", || client.counters().reconnects == 1);
    drop(client);
    peer.finish();
    let events = events.lock().unwrap();
    assert!(
        matches!(
            &events[..],
            [
                Event::SessionStarted { .. },
                Event::Down { why: Error::Closed },
                Event::Refused { why: Error::Status { status: Status::Refused, .. }, connections: 0 },
                Event::SessionResumed { .. },
            ]
        ),
        "{events:?}"
    );
}

/// The loss of the last connection, which a caller notices, may still be on its way to the listener when the next attempt to
/// connect fails.
#[test]
fn an_attempt_that_fails_while_the_loss_is_reported_is_no_second_outage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let serves = Arc::new(AtomicBool::new(true));
    let serving = Arc::clone(&serves);
    // Serves one connection up to its first request, and closes those that follow.
    let peer = Peer::start(move |mut conn| {
        if serving.swap(false, Ordering::SeqCst) {
            conn.hello_extended(1, &path).unwrap();
            conn.request();
        }
    });
    let client: Arc<OnceLock<Client>> = Arc::default();
    let downs = Arc::new(AtomicUsize::new(0));
    let noticed_by_caller = Arc::new(AtomicBool::new(false));
    let (seen, count, by_caller) = (Arc::clone(&client), Arc::clone(&downs), Arc::clone(&noticed_by_caller));
    let config = peer.config().on_event(move |event| {
        if matches!(event, Event::Down { .. }) {
            count.fetch_add(1, Ordering::SeqCst);
            if std::thread::current().name() != Some("objm-keeper") {
                let client = seen.get().unwrap();
                let before = client.counters().connect_failures;
                eventually("a failed attempt", || client.counters().connect_failures > before);
                by_caller.store(true, Ordering::SeqCst);
            }
        }
    });
    let client = client.get_or_init(|| config.connect().unwrap());
    let mut outages = 0;
    // The keeper may notice a loss first.
    while !noticed_by_caller.load(Ordering::SeqCst) {
        assert!(client.lookup(&uri("/a"), Want::ENTRY).is_err());
        outages += 1;
        let failures = client.counters().connect_failures;
        eventually("further attempts", || client.counters().connect_failures >= failures + 2);
        assert_eq!(downs.load(Ordering::SeqCst), outages);
        serves.store(true, Ordering::SeqCst);
        client.wait_connected(PATIENCE).unwrap();
    }
    drop(client.detach());
    peer.finish();
}

/// In V1 too a refusal is no sign of a V1 peer.
#[test]
fn a_v1_peer_that_is_not_available_is_not_connected() {
    let peer = Peer::start(|mut conn| {
        let mut first = [0];
        if conn.peek(&mut first).is_some() && first[0] == b'1' {
            conn.expect("31 001e 2f64656c6574652f6f626a6d61707065722d636c69656e742d70726f6265");
            conn.send("14 0000000000000000 0005 ff0002 6e6f");
        }
    });
    let client = peer.config().build().unwrap();
    eventually("several attempts", || client.counters().connect_failures >= 3);
    assert!(!client.is_up() && client.counters().connects == 0);
    drop(client);
    peer.finish();
}

/// A connection that was made proves nothing: only an answered call ends the back-off.
#[test]
fn a_peer_that_attaches_and_closes_is_asked_more_and_more_slowly() {
    const CONNECTIONS: usize = 12;
    const PAUSE: Duration = Duration::from_millis(20);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        conn.hello_extended(1, &path);
    });
    let began = Instant::now();
    let client = peer.config().max_backoff(PAUSE).build().unwrap();
    eventually("connections", || peer.accepted() >= CONNECTIONS);
    // At least half of the pause before each but the first ones.
    let least = PAUSE / 2 * (CONNECTIONS as u32 - 4);
    assert!(began.elapsed() >= least, "{CONNECTIONS} connections within {:?}", began.elapsed());
    drop(client);
    peer.finish();
}

/// The session goes on by its token, whatever became of a connection.
#[test]
fn an_older_store_knows_no_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if !conn.hello("4f424a4d02800000ff02") {
            return;
        }
        // Neither numbers nor a board: each is asked for once.
        for (board, number) in [(true, true), (true, false)] {
            let Some((id, request)) = conn.request() else { return };
            assert_eq!(request, Request::Attach { session: Token::NEW, directories: true, board, number });
            conn.fail(id, Op::Attach, Status::InvalidRequest);
        }
        let Some((id, request)) = conn.request() else { return };
        assert!(matches!(request, Request::Attach { board: false, number: false, .. }));
        conn.attached(id, 1, 1, &path);
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    assert!(matches!(client.state(), ConnectionState::Extended { .. }));
    drop(client);
    peer.finish();
}
