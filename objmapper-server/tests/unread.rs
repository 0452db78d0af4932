//! What replies give that their client does not read: it is given back, and nothing else is.

mod common;

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use common::*;
use objmapper_proto::ObjUri;
use objmapper_proto::ext::{Commit, IfVersion, LeaseOutcome, Request, Token, Want};
use objmapper_server::store::StoreConfig;

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::parse(text.as_bytes()).unwrap()
}

fn lease(text: &str) -> Request<'_> {
    Request::Lease { wait: 0, hold: 60_000, uri: uri(text), want: Want::PIN }
}

fn lookup(text: &str) -> Request<'_> {
    Request::Lookup { uri: uri(text), want: Want::FD_AND_PIN }
}

fn create() -> Request<'static> {
    Request::Create { tier: None, length: 1 << 20, uri: None }
}

fn commit(handle: u64, text: &str, want: Want) -> Request<'_> {
    Request::Commit(Commit {
        handle,
        length: 4,
        expires: 0,
        if_version: IfVersion::Any,
        uri: uri(text),
        want,
        ephemeral: false,
        fence: None,
    })
}

/// A private object that is written and can be committed.
fn written(peer: &mut Peer) -> u64 {
    let (Answer::Created(handle), mut fds) = peer.call(&create()).unwrap() else { panic!() };
    File::from(fds.remove(0)).write_all(b"body").unwrap();
    handle
}

fn publish(peer: &mut Peer, text: &str) -> u64 {
    let handle = written(peer);
    let (Answer::Entry(entry), _) = peer.call(&commit(handle, text, Want::ENTRY)).unwrap() else { panic!() };
    entry.object
}

/// What sessions hold: private objects, leases, bytes of pins.
fn held(server: &InProcess) -> (usize, usize, u64) {
    let stats = server.store.stats();
    (stats.private, stats.leases, stats.tiers[0].pinned)
}

/// Two numbered connections of one session.
fn pair(server: &InProcess) -> (Peer, Peer) {
    let mut one = server.peer();
    one.extended();
    let session = one.attach_numbered(Token::NEW);
    let mut other = server.peer();
    other.extended();
    assert_eq!(other.attach_numbered(session), session);
    assert!(one.number.is_some() && one.number != other.number);
    (one, other)
}

fn lost(peer: &mut Peer, connection: &Peer, read: u64) {
    let connection = connection.number.unwrap();
    assert_eq!(peer.call(&Request::Lost { connection, read }).unwrap().0, Answer::Empty);
}

#[test]
fn what_unread_replies_gave_is_given_back_and_what_was_read_stays() {
    let server = InProcess::new();
    let (mut one, mut other) = pair(&server);
    publish(&mut other, "/a");
    publish(&mut other, "/b");
    let handle = written(&mut other);
    let page = 4096;

    // Read: 1 lease, 1 private object, 1 pin.
    one.call(&lease("/x")).unwrap();
    one.call(&create()).unwrap();
    one.call(&lookup("/a")).unwrap();
    assert_eq!(held(&server), (2, 1, page));
    // Not read: another lease, another private object, pins by LOOKUP, LEASE, COMMIT and BATCH.
    one.request(&lease("/y"));
    one.request(&create());
    one.request(&lookup("/b"));
    one.request(&lease("/a"));
    one.request(&commit(handle, "/c", Want::FD_AND_PIN));
    one.request(&Request::Batch(vec![lookup("/a"), lookup("/b"), lookup("/c")]));
    eventually("all is carried out", || held(&server) == (2, 2, 3 * page));

    lost(&mut other, &one, 3);
    let (_, leases, pinned) = held(&server);
    assert_eq!((leases, pinned), (1, page), "what was read stays, and only that");
    // Nothing more is carried out there.
    one.request(&lease("/z"));
    while one.receive().unwrap_or(false) {}
    assert_eq!(held(&server).1, 1);
    // A private object counts for as long as its descriptor is open somewhere.
    one.fds.clear();
    eventually("what was read stays, and only that", || held(&server) == (1, 1, page));
    // A second LOST, and one for a connection that is unknown, do nothing.
    lost(&mut other, &one, 0);
    assert_eq!(held(&server), (1, 1, page));
}

#[test]
fn a_connection_that_has_ended_is_settled_as_well() {
    let server = InProcess::new();
    let (mut one, mut other) = pair(&server);
    publish(&mut other, "/a");
    one.request(&lease("/x"));
    one.request(&create());
    one.request(&lookup("/a"));
    eventually("all is carried out", || held(&server) == (1, 1, 4096));
    one.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let running = server.server.as_ref().unwrap();
    eventually("the connection has ended", || running.connections() == 1);
    assert_eq!(held(&server), (1, 1, 4096), "the client may have read it all");
    lost(&mut other, &one, 1);
    drop(one);
    eventually("what was read stays, and only that", || held(&server) == (0, 1, 0));
}

/// Pins do not nest, so a pin that one reply reported must outlive another reply that reported it too.
#[test]
fn a_pin_that_another_reply_reported_stays() {
    let server = InProcess::new();
    let (mut one, mut other) = pair(&server);
    publish(&mut other, "/a");
    // Made by a reply that is lost, reported by one that is read.
    one.request(&lookup("/a"));
    eventually("it is pinned", || held(&server).2 > 0);
    other.call(&lookup("/a")).unwrap();
    lost(&mut other, &one, 0);
    assert_eq!(held(&server).2, 4096);
    // Made by a reply that is read, reported by one that is lost.
    let mut third = server.peer();
    third.extended();
    let mut session = server.peer();
    session.extended();
    let token = session.attach_numbered(Token::NEW);
    third.attach_numbered(token);
    session.call(&lookup("/a")).unwrap();
    third.request(&lookup("/a"));
    third.request(&create());
    eventually("the last one is carried out", || held(&server).0 == 1);
    lost(&mut session, &third, 0);
    drop(third);
    eventually("the pin that was read stays", || held(&server) == (0, 0, 4096));
    let released = Request::Release { objects: vec![server.store.lookup(b"/a").unwrap().unwrap().object] };
    session.call(&released).unwrap();
    other.call(&released).unwrap();
    assert_eq!(held(&server).2, 0, "one RELEASE ends a pin, whatever number of replies reported it");
}

/// With a pipeline of depth 100, request 101 proves that the first reply was read.
#[test]
fn what_a_full_pipeline_proves_to_be_read_stays() {
    let server = InProcess::new();
    let (mut one, mut other) = pair(&server);
    one.call(&lease("/x")).unwrap();
    one.call(&lease("/y")).unwrap();
    for _ in 0..99 {
        one.call(&Request::Stat).unwrap();
    }
    lost(&mut other, &one, 0);
    assert_eq!(held(&server).1, 1);
    let (answer, _) = other.call(&lease("/y")).unwrap();
    assert!(matches!(answer, Answer::Lease(LeaseOutcome::Granted { .. })), "the second one was given back: {answer:?}");
}

#[test]
fn a_lease_is_not_kept_for_a_client_without_a_connection() {
    let server = InProcess::new();
    let mut holder = server.attached();
    holder.call(&lease("/x")).unwrap();
    holder.call(&create()).unwrap();
    let mut waiting = server.attached();
    waiting.request(&Request::Lease { wait: 60_000, hold: 60_000, uri: uri("/x"), want: Want::ENTRY });
    drop(holder);
    let (_, answer) = waiting.reply();
    assert!(matches!(answer.unwrap().0, Answer::Lease(LeaseOutcome::Granted { .. })));
    assert_eq!(held(&server).0, 1, "a private object lives on for the grace time");
}

#[test]
fn nothing_is_left_of_a_client_that_was_killed() {
    let server =
        InProcess::with(StoreConfig { session_grace: Duration::from_millis(1), ..StoreConfig::default() }, |_| {});
    let baseline = server.store.stats();
    let (mut one, mut other) = pair(&server);
    publish(&mut one, "/a");
    let handle = written(&mut other);
    one.call(&lookup("/a")).unwrap();
    one.call(&lease("/x")).unwrap();
    one.request(&create());
    other.request(&lease("/y"));
    other.request(&commit(handle, "/b", Want::PIN));
    eventually("all is carried out", || held(&server) == (1, 2, 2 * 4096));
    drop((one, other));
    eventually("nothing is held", || held(&server) == (0, 0, 0) && server.store.stats().sessions == 0);
    for name in [&b"/a"[..], b"/b"] {
        server.store.delete(name, objmapper_server::store::ANY_VERSION).unwrap();
    }
    assert_eq!(server.store.stats().tiers[0].used, baseline.tiers[0].used);
}

/// The reply to ATTACH may be unread: its session would live for the grace time, and there may be few sessions only.
#[test]
fn a_session_whose_token_was_never_learnt_ends_soon() {
    let server = InProcess::new();
    let mut used = server.attached();
    used.call(&Request::Stat).unwrap();
    drop(used);
    drop(server.attached());
    // The grace time is a minute: only the other one can be it.
    eventually("one session is left", || server.store.stats().sessions == 1);
}

#[test]
fn a_refusal_lasts_an_hour_at_most() {
    let server = InProcess::new();
    let (mut one, mut other) = pair(&server);
    let (Answer::Lease(LeaseOutcome::Granted { lease: held }), _) = one.call(&lease("/x")).unwrap() else { panic!() };
    one.call(&Request::Unlease { lease: held, refuse: u32::MAX }).unwrap();
    let (Answer::Lease(LeaseOutcome::Refused { retry }), _) = other.call(&lease("/x")).unwrap() else { panic!() };
    assert!(retry <= 3_600_000, "{retry} ms");
}

#[test]
fn one_session_does_not_take_all_leases() {
    let server = InProcess::new();
    let (greedy, modest) = (server.store.session(None).unwrap(), server.store.session(None).unwrap());
    let ask = |session: &objmapper_server::store::Session, n: usize| {
        let name = format!("/{n}");
        session.lease(name.as_bytes(), Duration::ZERO, Duration::from_secs(60), false, Box::new(|_| {}))
    };
    let taken = (0..).take_while(|n| ask(&greedy, *n).is_ok()).count();
    assert!(taken >= 10_000, "{taken}");
    for n in 0..taken {
        assert!(ask(&modest, taken + n).is_ok(), "{n} beside {taken}");
    }
}
