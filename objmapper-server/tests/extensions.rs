//! The extensions over the real socket.

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use common::*;
use objmapper_proto::ext::{BodyPath, Commit, IfVersion, LeaseOutcome, Request, Token, Want};
use objmapper_proto::{ObjUri, Status};
use objmapper_server::store::StoreConfig;

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::parse(text.as_bytes()).unwrap()
}

fn commit(handle: u64, length: usize, name: &str) -> Commit<'_> {
    Commit {
        handle,
        length: length as u64,
        expires: 0,
        if_version: IfVersion::Any,
        uri: uri(name),
        want: Want::ENTRY,
        ephemeral: false,
        fence: None,
    }
}

fn create(peer: &mut Peer, length: u64) -> (u64, OwnedFd) {
    match peer.call(&Request::Create { tier: None, length, uri: None }) {
        Ok((Answer::Created(handle), mut fds)) => (handle, fds.remove(0)),
        other => panic!("{other:?}"),
    }
}

fn put(peer: &mut Peer, name: &str, body: &[u8]) -> objmapper_proto::ext::Entry {
    let (handle, file) = create(peer, body.len() as u64);
    File::from(file).write_all(body).unwrap();
    match peer.call(&Request::Commit(commit(handle, body.len(), name))) {
        Ok((Answer::Entry(entry), _)) => entry,
        other => panic!("{other:?}"),
    }
}

fn lookup(peer: &mut Peer, name: &str, want: Want) -> Result<(Answer, Vec<OwnedFd>), Status> {
    peer.call(&Request::Lookup { uri: uri(name), want })
}

#[test]
fn nothing_works_without_a_session() {
    let server = InProcess::new();
    let mut peer = server.peer();
    peer.extended();
    assert_eq!(lookup(&mut peer, "/a", Want::FD).unwrap_err(), Status::UnknownSession);
    assert_eq!(peer.call(&Request::Stat).unwrap_err(), Status::UnknownSession);
    let unknown = Request::Attach { session: Token([7; 16]), directories: false, board: false, number: false };
    assert_eq!(peer.call(&unknown).unwrap_err(), Status::UnknownSession);
    peer.attach(Token::NEW);
    assert_eq!(lookup(&mut peer, "/a", Want::FD).unwrap_err(), Status::NotFound);
    assert!(server.store.list(b"", b"", 9).entries.is_empty(), "a look-up never creates");
}

#[test]
fn create_write_commit_look_up_delete() {
    let server = InProcess::new();
    let mut peer = server.attached();
    let (handle, file) = create(&mut peer, 5);
    let mut file = File::from(file);
    file.write_all(b"hello").unwrap();
    let request = Request::Commit(commit(handle, 5, "/a"));
    assert_eq!(peer.call(&request).unwrap_err(), Status::Busy);
    drop(file);
    let wrong = Request::Commit(commit(handle, 4, "/a"));
    assert_eq!(peer.call(&wrong).unwrap_err(), Status::InvalidRequest);
    assert_eq!(lookup(&mut peer, "/a", Want::FD).unwrap_err(), Status::NotFound);
    let with_fd = Request::Commit(Commit { want: Want::FD, ..commit(handle, 5, "/a") });
    let (Answer::Entry(entry), mut fds) = peer.call(&with_fd).unwrap() else { panic!() };
    assert_eq!(read_fd(fds.remove(0)), b"hello");
    assert_eq!(peer.call(&request).unwrap_err(), Status::UnknownHandle);
    let (Answer::Entry(found), mut fds) = lookup(&mut peer, "/a", Want::FD).unwrap() else { panic!() };
    assert_eq!(found, entry);
    let mut body = File::from(fds.remove(0));
    assert!(body.write_all(b"x").is_err());
    assert!(body.set_len(0).is_err());
    let delete = |v| Request::Delete { if_version: v, uri: uri("/a"), evict: false };
    let other = IfVersion::from_raw(entry.version + 1);
    assert_eq!(peer.call(&delete(other)).unwrap_err(), Status::Conflict);
    assert_eq!(peer.call(&delete(IfVersion::from_raw(entry.version))).unwrap().0, Answer::Empty);
    assert_eq!(peer.call(&delete(IfVersion::Any)).unwrap_err(), Status::NotFound);
}

#[test]
fn who_has_the_directory_opens_bodies_himself_and_cannot_change_it() {
    let server = InProcess::new();
    let mut peer = server.attached();
    let entry = put(&mut peer, "/a", b"hello");
    let attach = Request::Attach { session: Token::NEW, directories: true, board: false, number: false };
    let (_, mut fds) = peer.call(&attach).unwrap();
    let dir = fds.remove(0);
    let flags = rustix::fs::OFlags::RDONLY;
    let path = BodyPath::new(entry.object);
    let body = rustix::fs::openat(&dir, path.as_str(), flags, rustix::fs::Mode::empty()).unwrap();
    assert_eq!(read_fd(body), b"hello");
}

#[test]
fn a_session_is_shared_by_connections_and_ends_with_detach() {
    let server = InProcess::new();
    let (mut one, mut two) = (server.peer(), server.peer());
    one.extended();
    two.extended();
    let token = one.attach(Token::NEW);
    assert_eq!(two.attach(token), token);
    let (handle, file) = create(&mut one, 1);
    File::from(file).write_all(b"x").unwrap();
    let request = Request::Commit(Commit { want: Want::PIN, ephemeral: true, ..commit(handle, 1, "/e") });
    let (Answer::Entry(entry), _) = two.call(&request).unwrap() else { panic!() };
    assert_eq!(entry.flags.bits(), 3);
    let (abandoned, _) = create(&mut one, 1 << 20);
    one.call(&Request::Reserve { handle: abandoned, length: 2 << 20 }).unwrap();
    let (Answer::Stat(stat), _) = one.call(&Request::Stat).unwrap() else { panic!() };
    assert_eq!((stat.sessions, stat.private), (1, 1));
    assert_eq!((stat.tiers[0].used, stat.tiers[0].pinned), ((2 << 20) + 4096, 4096));
    assert_eq!(two.call(&Request::Detach).unwrap().0, Answer::Empty);
    let stats = server.store.stats();
    assert_eq!((stats.tiers[0].used, stats.sessions, stats.private), (0, 0, 0));
    assert_eq!(one.call(&Request::Abort { handle: abandoned }).unwrap_err(), Status::UnknownSession);
}

#[test]
fn a_full_tier_says_so() {
    let server = InProcess::new();
    let mut peer = server.attached();
    let (handle, file) = create(&mut peer, 8 << 20);
    let more = Request::Create { tier: None, length: 1, uri: None };
    assert_eq!(peer.call(&more).unwrap_err(), Status::Full);
    drop(file);
    peer.call(&Request::Abort { handle }).unwrap();
    create(&mut peer, 8 << 20);
}

#[test]
fn listings_page() {
    let server = InProcess::new();
    let mut peer = server.attached();
    for i in 0..30 {
        put(&mut peer, &format!("/p/{i:02}"), b"");
    }
    put(&mut peer, "/q", b"");
    let (mut seen, mut cursor) = (Vec::new(), Vec::new());
    loop {
        let request = Request::List { prefix: b"/p/", cursor: &cursor, max: 7 };
        let (Answer::List(uris, next), _) = peer.call(&request).unwrap() else { panic!() };
        seen.extend(uris);
        if next.is_empty() {
            break;
        }
        cursor = next;
    }
    assert_eq!(seen, (0..30).map(|i| format!("/p/{i:02}").into_bytes()).collect::<Vec<_>>());
    let none = Request::List { prefix: b"/p/", cursor: b"", max: 0 };
    assert_eq!(peer.call(&none).unwrap_err(), Status::InvalidRequest);
}

#[test]
fn batches_are_carried_out_in_order_each_for_itself() {
    let server = InProcess::new();
    let mut peer = server.attached();
    put(&mut peer, "/a", b"aa");
    put(&mut peer, "/b", b"b");
    let batch = Request::Batch(vec![
        Request::Lookup { uri: uri("/a"), want: Want::FD },
        Request::Lookup { uri: uri("/none"), want: Want::FD },
        Request::Delete { if_version: IfVersion::Any, uri: uri("/a"), evict: false },
        Request::Lookup { uri: uri("/a"), want: Want::FD },
        Request::Lookup { uri: uri("/b"), want: Want::FD },
    ]);
    let (Answer::Batch(replies), mut fds) = peer.call(&batch).unwrap() else { panic!() };
    let short: Vec<_> = replies.iter().map(|r| r.as_ref().map(|(_, n)| *n).map_err(|s| *s)).collect();
    let absent = Err(Status::NotFound);
    assert_eq!(short, [Ok(1), absent, Ok(0), absent, Ok(1)]);
    assert_eq!(read_fd(fds.remove(0)), b"aa");
    assert_eq!(read_fd(fds.remove(0)), b"b");
}

#[test]
fn a_batch_brings_at_most_253_descriptors() {
    let server = InProcess::new();
    let mut peer = server.attached();
    put(&mut peer, "/a", b"x");
    let want = Want::FD;
    let batch = Request::Batch(vec![Request::Lookup { uri: uri("/a"), want }; 256]);
    let (Answer::Batch(replies), fds) = peer.call(&batch).unwrap() else { panic!() };
    assert_eq!(fds.len(), 253);
    assert!(replies[..253].iter().all(Result::is_ok));
    assert!(replies[253..].iter().all(|r| r.as_ref().unwrap_err() == &Status::Unavailable));
    assert_eq!(put(&mut peer, "/b", b"x").length, 1, "the connection goes on");
}

#[test]
fn requests_that_mean_nothing_get_a_status_and_frames_without_bounds_the_end() {
    let server = InProcess::new();
    let mut peer = server.attached();
    for (sent, status) in [
        ("10 00000001 77 00 00000000", "11 00000001 77 05"), // unknown operation
        ("10 00000002 08 80 00000000", "11 00000002 08 02"), // reserved flag
        ("10 00000003 08 00 00000001 00", "11 00000003 08 02"), // trailing byte
        ("10 00000004 02 00 00000006 00042f2e2e2f", "11 00000004 02 02"), // escapes
        ("10 00000005 06 00 00000002 0000", "11 00000005 06 02"), // too short
    ] {
        peer.send(&hex(sent));
        peer.expect(status);
        let rest = peer.take(5);
        peer.take(u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize);
    }
    peer.call(&Request::Stat).unwrap();
    peer.send(&hex("10 00000006 02 00 00100001"));
    peer.expect_end();
}

fn lease(name: &str, wait: u32) -> Request<'_> {
    Request::Lease { wait, hold: 60_000, uri: uri(name), want: Want::FD }
}

#[test]
fn a_lease_is_waited_for_across_connections_out_of_order() {
    let server = InProcess::new();
    let (mut one, mut two) = (server.attached(), server.attached());
    let (Answer::Lease(LeaseOutcome::Granted { .. }), _) = one.call(&lease("/l", 0)).unwrap() else { panic!() };
    assert_eq!(two.call(&lease("/l", 0)).unwrap_err(), Status::Timeout);
    assert_eq!(two.call(&lease("/l", 30)).unwrap_err(), Status::Timeout);
    let waiting = two.request(&lease("/l", 60_000));
    // Later requests overtake it.
    two.call(&Request::Stat).unwrap();
    put(&mut one, "/l", b"hello");
    let (id, answer) = two.reply();
    let (Answer::Lease(LeaseOutcome::Present(entry)), mut fds) = answer.unwrap() else { panic!() };
    assert_eq!((id, entry.length), (waiting, 5));
    assert_eq!(read_fd(fds.remove(0)), b"hello");
}

#[test]
fn a_lease_passes_on_by_unlease_refusal_and_disconnection() {
    let server = InProcess::new();
    let (mut one, mut two, mut three) = (server.attached(), server.attached(), server.attached());
    let (Answer::Lease(LeaseOutcome::Granted { lease: id }), _) = one.call(&lease("/l", 0)).unwrap() else { panic!() };
    two.request(&lease("/l", 60_000));
    two.call(&Request::Stat).unwrap();
    three.request(&lease("/l", 60_000));
    three.call(&Request::Stat).unwrap();
    // Who waits and goes is passed over.
    drop(two);
    eventually("the connection is gone", || server.server.as_ref().unwrap().connections() == 2);
    one.call(&Request::Unlease { lease: id, refuse: 0 }).unwrap();
    let (_, answer) = three.reply();
    let (Answer::Lease(LeaseOutcome::Granted { lease: id }), _) = answer.unwrap() else { panic!() };
    one.request(&lease("/l", 60_000));
    one.call(&Request::Stat).unwrap();
    three.call(&Request::Unlease { lease: id, refuse: 60_000 }).unwrap();
    let (_, answer) = one.reply();
    assert!(matches!(answer.unwrap().0, Answer::Lease(LeaseOutcome::Refused { retry: 1.. })));
}

#[test]
fn close_tells_how_many_requests_wait() {
    let server = InProcess::new();
    let (mut one, mut two) = (server.attached(), server.attached());
    one.call(&lease("/l", 0)).unwrap();
    two.request(&lease("/l", 60_000));
    two.send(&hex("0300"));
    two.expect("0400 00000001");
    two.expect_end();
}

#[test]
fn pins_keep_a_body_for_who_opens_it_later() {
    let server = InProcess::new();
    let mut peer = server.attached();
    let entry = put(&mut peer, "/a", b"hello");
    lookup(&mut peer, "/a", Want::PIN).unwrap();
    put(&mut peer, "/a", b"other");
    let tier = objmapper_server::store::TierKind::Memory;
    assert!(server.store.open_body(tier, entry.object).is_ok());
    peer.call(&Request::Release { objects: vec![entry.object, 12345] }).unwrap();
    assert!(server.store.open_body(tier, entry.object).is_err());
}

#[test]
fn v01_and_extensions_share_one_connection_and_one_name_space() {
    let server = InProcess::with(StoreConfig::default(), |_| {});
    let mut peer = server.attached();
    put(&mut peer, "/v2/a", b"hello");
    peer.send(&hex("0100000007003100052f76322f61"));
    peer.expect("02000000070000000000000000000000");
    assert_eq!(peer.expect_fd().metadata().unwrap().len(), 5);
    let (Answer::Entry(entry), _) = lookup(&mut peer, "/v2/a", Want::ENTRY).unwrap() else { panic!() };
    assert_eq!(entry.flags.bits(), 0);
    peer.send(&hex("0100000008003100052f76322f62"));
    peer.expect("02000000080000000000000000000000");
    peer.expect_fd().write_all(b"foreign").unwrap();
    let (Answer::Entry(entry), _) = lookup(&mut peer, "/v2/b", Want::ENTRY).unwrap() else { panic!() };
    assert_eq!((entry.flags.bits(), entry.length), (4, 7));
}
