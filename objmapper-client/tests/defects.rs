//! The defects of the public v0.1 program, each shown by a fake peer and survived.
//!
//! | number | defect |
//! |---|---|
//! | 1 | the descriptor rides on a byte of its own, which comes in any message |
//! | 2 | "OK" without a descriptor |
//! | 3 | descriptors are writable, and close-on-exec only if asked for |
//! | 4 | no overwrite: a second put sees the old content |
//! | 5 | two clients that create one URI at once: an error, or a file that is deleted already |
//! | 6 | it loses objects, which come back empty |
//! | 7 | resets at any time |
//! | 8, 9 | URIs that it misunderstands, and reserved names |
//! | 10 | it blocks while its answers are unread |
//! | 11 | it stops accepting without closing its socket |

mod fake_peer;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fake_peer::{Conn, PATIENCE, Peer, entry, eventually, file, is_cloexec, read_all};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use objmapper_client::{
    Client, ConnectionState, Error, IfVersion, ObjUri, Op, Protocol, Status, UriSpace, V01Tier, Version, Want,
};
use objmapper_proto::ext::{Reply, Request};

const OK_ID_1: &str = "02 00000001 00 0000000000000000 0000";
const GET_A: &str = "01 00000001 00 31 0002 2f61";

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap()
}

/// However header, byte and descriptor are cut into messages, each answer gets its own descriptor.
#[test]
fn d01_the_fd_rides_on_its_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if conn.hello_extended(1, &path).is_none() {
            return;
        }
        let mut ids = Vec::new();
        while ids.len() < 6 {
            let (id, request) = conn.request().unwrap();
            assert!(matches!(request, Request::Lookup { .. }));
            ids.push(id);
        }
        let files: Vec<_> = (0..6).map(|i| file(&path, &format!("f{i}"), format!("body {i}").as_bytes())).collect();
        // Header, then the byte on its own.
        let bytes = Conn::entry_bytes(ids[0], 0);
        conn.send_fds_split(&bytes, bytes.len() - 1, &files[0]);
        // A whole answer without a descriptor before it in the same message.
        let mut bytes = Vec::new();
        objmapper_proto::ext::ReplyFrame::encode_failure(ids[1], Op::Lookup.code(), Status::NotFound, "", &mut bytes);
        bytes.extend(Conn::entry_bytes(ids[2], 2));
        conn.send_fds(&bytes, &[files[2].as_fd()]);
        // The header cut in the middle, its rest with the byte.
        let bytes = Conn::entry_bytes(ids[3], 3);
        conn.send_fds_split(&bytes, 5, &files[3]);
        // Two right behind each other, in the other order.
        conn.send_fds(&Conn::entry_bytes(ids[5], 5), &[files[5].as_fd()]);
        conn.send_fds(&Conn::entry_bytes(ids[4], 4), &[files[4].as_fd()]);
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    let pipeline = client.pipeline().unwrap();
    let pending: Vec<_> = (0..6).map(|i| pipeline.lookup(&uri(&format!("/{i}")), Want::FD).unwrap()).collect();
    for (i, pending) in pending.into_iter().enumerate() {
        let found = pending.wait().unwrap();
        if i == 1 {
            assert!(found.is_none());
            continue;
        }
        let found = found.unwrap();
        assert_eq!(found.entry.object, i as u64);
        assert_eq!(read_all(found.fd.unwrap()), format!("body {i}").into_bytes());
    }
    drop((pipeline, client));
    peer.finish();
}

/// The wait for the descriptor is bounded; the connection is not used again, so that the next answer's first
/// byte is never taken for a `58`.
#[test]
fn d02_ok_without_an_fd() {
    let peer = Peer::start(|mut conn| {
        if !conn.hello_v01() {
            return;
        }
        conn.expect(GET_A);
        conn.send(OK_ID_1);
        if conn.number == 0 {
            assert!(conn.closed(), "the connection must not be used again");
        } else {
            let dir = tempfile::tempdir().unwrap();
            conn.send_fd(&file(dir.path(), "f", b"second"));
            assert!(conn.closed());
        }
    });
    let client = peer.config().call_timeout(Duration::from_millis(300)).connect().unwrap();
    let begun = Instant::now();
    let why = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap_err();
    assert!(matches!(why, Error::Timeout { .. }) && why.is_retryable(), "{why}");
    assert!(begun.elapsed() < PATIENCE);
    client.wait_connected(PATIENCE).unwrap();
    let object = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap();
    assert_eq!(read_all(object.into_fd()), b"second");
    assert_eq!(client.counters().timeouts, 1);
    drop(client);
    peer.finish();
}

/// The same, when the server goes on with the next answer at once.
#[test]
fn d02_another_byte_where_the_fd_should_be() {
    let peer = Peer::start(|mut conn| {
        if conn.hello_v01() && conn.number == 0 {
            conn.expect(GET_A);
            conn.send(OK_ID_1);
            conn.send(OK_ID_1);
        }
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    let why = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap_err();
    assert!(matches!(why, Error::Protocol(_)) && why.should_reconnect(), "{why}");
    assert_eq!(client.counters().missing_fds, 1);
    drop(client);
    peer.finish();
}

#[test]
fn d03_fds_are_close_on_exec_and_known_to_be_writable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if conn.hello_v01() {
            conn.expect(GET_A);
            conn.send(OK_ID_1);
            conn.send_fd(&file(&path, "f", b"content"));
            assert!(conn.closed());
        }
    });
    let client = peer.config().connect().unwrap();
    let object = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap();
    assert!(is_cloexec(&object));
    // Somebody else truncates it: reads come up short, and nothing maps it.
    assert_eq!(object.len(), 7);
    std::fs::File::options().write(true).open(dir.path().join("f")).unwrap().set_len(3).unwrap();
    let mut buf = [0; 7];
    assert_eq!(object.read_at(&mut buf, 0).unwrap(), 3);
    drop(client);
    peer.finish();
}

#[test]
fn d04_a_second_put_sees_the_old_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if !conn.hello_v01() {
            return;
        }
        for (id, content) in [("00000001", &b""[..]), ("00000002", b"half wri")] {
            conn.expect(&format!("01 {id} 00 31 0002 2f61"));
            conn.send(&format!("02 {id} 00 0000000000000000 0000"));
            conn.send_fd(&file(&path, "f", content));
        }
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    assert!(client.get_or_create(&uri("/a"), V01Tier::Default).unwrap().is_empty());
    // The store says nothing; the size does.
    let second = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap();
    assert_eq!((second.is_empty(), second.len()), (false, 8));
    drop(client);
    peer.finish();
}

#[test]
fn d05_two_clients_create_at_once() {
    let peer = Peer::start(|mut conn| {
        if !conn.hello_v01() {
            return;
        }
        conn.expect(GET_A);
        conn.send("02 00000001 11 0000000000000000 0000");
        conn.expect("01 00000002 00 31 0002 2f61");
        conn.send("02 00000002 00 0000000000000000 0000");
        let unlinked = tempfile::tempfile().unwrap();
        conn.send_fd(&unlinked);
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    let first = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap_err();
    assert_eq!((first.status(), first.is_retryable()), (Some(Status::Storage), true));
    let second = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap_err();
    assert_eq!((second.clone(), second.is_retryable()), (Error::Unlinked, true));
    drop(client);
    peer.finish();
}

#[test]
fn d06_a_lost_object_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        if conn.hello_v01() {
            conn.expect(GET_A);
            conn.send(OK_ID_1);
            conn.send_fd(&file(&path, "f", b""));
            assert!(conn.closed());
        }
    });
    let client = peer.config().connect().unwrap();
    let object = client.get_or_create(&uri("/a"), V01Tier::Default).unwrap();
    assert!(object.is_empty());
    assert_eq!(object.read_at(&mut [0; 10], 0).unwrap(), 0);
    drop(client);
    peer.finish();
}

/// At every point of an exchange: the call ends with an error that says so, and the next one works.
#[test]
fn d07_resets_at_any_time() {
    const POINTS: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let exchanges = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&exchanges);
    let peer = Peer::start(move |mut conn| {
        if !conn.hello_v01() {
            return;
        }
        let point = conn.number;
        if point == 0 {
            // Idle.
            return;
        }
        if point == 1 {
            // Closed with unread bytes: a reset rather than an end.
            conn.expect("01");
            return;
        }
        conn.expect(GET_A);
        match point {
            2 => {}
            3 => conn.send("02 0000"),
            4 => conn.send(OK_ID_1),
            _ => {
                conn.send(OK_ID_1);
                conn.send_fd(&file(&path, "f", b"at last"));
                count.fetch_add(1, Ordering::SeqCst);
                assert!(conn.closed());
            }
        }
    });
    let client = peer.config().connect().unwrap();
    let end = Instant::now() + PATIENCE;
    let content = loop {
        match client.get_or_create(&uri("/a"), V01Tier::Default) {
            Ok(object) => break read_all(object.into_fd()),
            Err(why) => {
                assert!(why.should_reconnect(), "{why}");
                assert!(Instant::now() < end);
                client.wait_connected(PATIENCE).unwrap();
            }
        }
    };
    assert_eq!(content, b"at last");
    eventually("the whole exchange", || exchanges.load(Ordering::SeqCst) == 1);
    let counters = client.counters();
    assert!(counters.closed >= 1 && counters.reconnects >= 1, "{counters:?}");
    assert_eq!(peer.accepted(), POINTS + 1);
    drop(client);
    peer.finish();
}

/// Nothing of the sort is ever sent.
#[test]
fn d08_d09_uris_that_it_would_misunderstand() {
    let peer = Peer::start(|mut conn| {
        conn.hello_v01();
        assert!(conn.closed(), "something was sent");
    });
    let client = peer.config().connect().unwrap();
    for text in ["/../x", "x", "/x//y", "/x\0y", "/x/./y", ""] {
        assert!(ObjUri::try_from(text).is_err(), "{text:?}");
    }
    let long = format!("/{}", ["a"; 300].join("/"));
    let wide = format!("/{}", "a".repeat(256));
    for text in ["/list", "/backend/x", "/delete/x", &long, &wide] {
        let why = client.get_or_create(&uri(text), V01Tier::Default).unwrap_err();
        assert!(matches!(why, Error::Uri(_)) && !why.is_retryable(), "{text}: {why}");
        assert!(matches!(client.delete(&uri(text), IfVersion::Any), Err(Error::Uri(_))), "{text}");
    }
    // What the helper makes is always taken.
    let parts = vec![b'/'; 5000];
    for space in [&b"list"[..], b"..", b"delete"] {
        let space = UriSpace::new(&[space]).unwrap();
        for part in [&parts[..], b"", b"..", b"list", b"a\0b"] {
            assert_eq!(space.uri(&[part]).check_v01(), Ok(()));
        }
    }
    drop(client);
    peer.finish();
}

/// A peer that stops reading as soon as 139 of its answers are unread: who only writes would wait for ever.
#[test]
fn d10_a_peer_that_blocks_when_its_answers_are_unread() {
    const REQUESTS: u32 = 3000;
    const UNREAD: usize = 139;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        // As many outstanding as the protocol allows.
        if !conn.hello("4f424a4d02800003e802") {
            return;
        }
        let Some((id, Request::Attach { .. })) = conn.request() else { return };
        conn.attached(id, 1, 1, &path);
        let bytes = Reply::Entry(entry(1));
        let mut answer = Vec::new();
        bytes.encode(0, Op::Lookup, 0, &mut answer).unwrap();
        nix::sys::socket::setsockopt(&conn.stream, nix::sys::socket::sockopt::SndBuf, &(UNREAD * answer.len()))
            .unwrap();
        for _ in 0..REQUESTS {
            let (id, _) = conn.request().unwrap();
            // Blocks while too much is unread, and reads nothing meanwhile.
            conn.reply(id, Op::Lookup, &bytes);
        }
        assert!(conn.closed());
    });
    let client = peer.config().pipeline(1000).connect().unwrap();
    let pipeline = client.pipeline().unwrap();
    let long = format!("/{}", "a".repeat(2000));
    let pending: Vec<_> = (0..REQUESTS).map(|_| pipeline.lookup(&uri(&long), Want::ENTRY).unwrap()).collect();
    for pending in pending {
        assert_eq!(pending.wait().unwrap().unwrap().entry.object, 1);
    }
    drop((pipeline, client));
    peer.finish();
}

/// A store that ended without accepting any more: connecting ends by its deadline.
#[test]
fn d11_a_full_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    // Fill it; the last one would block, so they are made from threads that are never joined.
    let filled = Arc::new(AtomicBool::new(false));
    let (to, done) = (path.clone(), Arc::clone(&filled));
    std::thread::spawn(move || {
        let mut streams = Vec::new();
        let address = UnixAddr::new(&to).unwrap();
        loop {
            let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
            if connect(socket.as_raw_fd(), &address).is_err() {
                break;
            }
            streams.push(UnixStream::from(socket));
        }
        done.store(true, Ordering::SeqCst);
        // Kept open for as long as the test runs.
        std::mem::forget(streams);
    });
    eventually("a full backlog", || filled.load(Ordering::SeqCst));
    let begun = Instant::now();
    let config = Client::builder(&path).connect_timeout(Duration::from_millis(200));
    let why = config.clone().connect().unwrap_err();
    assert!(matches!(why, Error::Down { .. }), "{why}");
    assert!(begun.elapsed() < PATIENCE);
    let client = config.build().unwrap();
    eventually("a failed attempt", || client.counters().connect_failures > 0);
    // Calls do not wait for it.
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(matches!(client.lookup(&uri("/a"), Want::ENTRY), Err(Error::Down { .. })));
    }
    // If each of them waited for an attempt, they would take 20 s.
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// The peer knows V1 only: it takes HELLO for a request that is too long and hangs up.
#[test]
fn v1_is_fallen_back_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let peer = Peer::start(move |mut conn| {
        let mut first = [0];
        assert_eq!(conn.peek(&mut first), Some(1));
        if first[0] == b'O' {
            return;
        }
        conn.answer_v1_probe();
        conn.expect("31 0002 2f61");
        conn.send("00 0000000000000000 0000");
        conn.send_fd(&file(&path, "f", b"old"));
        conn.expect("31 0009 2f64656c6574652f61");
        conn.send("00 0000000000000001 0000");
        assert!(conn.closed());
    });
    let client = peer.config().connect().unwrap();
    assert_eq!(client.state(), ConnectionState::V01 { version: Version::V1, connections: 1 });
    assert_eq!(read_all(client.get_or_create(&uri("/a"), V01Tier::Default).unwrap().into_fd()), b"old");
    assert!(client.delete(&uri("/a"), IfVersion::Any).unwrap());
    // What needs the extensions says so, and sends nothing.
    let why = client.lookup(&uri("/a"), Want::FD).unwrap_err();
    assert!(matches!(why, Error::Unsupported(_)) && !why.is_retryable());
    assert!(matches!(client.create(1, None, None), Err(Error::Unsupported(_))));
    assert!(matches!(client.delete(&uri("/a"), IfVersion::Absent), Err(Error::Unsupported(_))));
    drop(client);
    peer.finish();
}

#[test]
fn v1_can_be_asked_for() {
    let peer = Peer::start(|mut conn| {
        conn.answer_v1_probe();
        conn.expect("31 0009 2f64656c6574652f61");
        conn.send("01 0000000000000000 0013 ff0010 4f626a656374206e6f7420666f756e64");
        assert!(conn.closed());
    });
    let client = peer.config().protocol(Protocol::V1).connect().unwrap();
    assert!(!client.delete(&uri("/a"), IfVersion::Any).unwrap());
    drop(client);
    peer.finish();
}
