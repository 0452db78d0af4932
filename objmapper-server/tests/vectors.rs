//! The vectors of protocol V1 and V2, byte for byte, on the real server, as a client sees them that reads with `read` and
//! takes descriptors with `recvmsg`.

mod common;

use std::io::Write;

use common::*;
use objmapper_server::store::{Commit, StoreConfig};

#[test]
fn v1_get_creates_and_gets_again() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    let get = hex("3100082f742f6d69737331");
    peer.send(&get);
    peer.expect("0000000000000000000000");
    let mut file = peer.expect_fd();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.write_all(b"hello").unwrap();
    peer.send(&get);
    peer.expect("0000000000000000000000");
    let mut again = peer.expect_fd();
    assert_eq!(again.metadata().unwrap().len(), 5);
    assert!(again.write_all(b"x").is_err(), "a later get is read-only");
}

#[test]
fn v1_legacy_writable_keeps_the_old_descriptors() {
    let config = StoreConfig { legacy_writable: true, ..StoreConfig::default() };
    let server = InProcess::with(config, |_| {});
    let mut peer = server.v01_peer();
    for _ in 0..2 {
        peer.send(&hex("3100082f742f6d69737331"));
        peer.expect("0000000000000000000000");
        peer.expect_fd().write_all(b"x").unwrap();
    }
}

#[test]
fn v1_delete() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    peer.send(&hex("3100082f742f6d69737331"));
    peer.expect("0000000000000000000000");
    drop(peer.expect_fd());
    let delete = hex("31000f2f64656c6574652f742f6d69737331");
    peer.send(&delete);
    peer.expect("0000000000000000010000");
    peer.send(&delete);
    peer.expect("0100000000000000000013 ff00104f626a656374206e6f7420666f756e64");
    // v0.1's clients put the whole URI behind "/delete/" too.
    peer.send(&hex("3100082f742f6d69737331"));
    peer.expect("0000000000000000000000");
    drop(peer.expect_fd());
    peer.send(&hex("3100102f64656c6574652f2f742f6d69737331"));
    peer.expect("0000000000000000010000");
}

#[test]
fn v1_list_and_backend_are_unsupported() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    for uri in ["/list", "/backend/x"] {
        peer.send(&[&hex("3100")[..], &[uri.len() as u8], uri.as_bytes()].concat());
        peer.expect("0500000000000000000028 ff0025");
        peer.take(0x25);
    }
}

#[test]
fn v1_mode_2_is_unsupported_but_creates() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    peer.send(&hex("3200052f742f6d32"));
    peer.expect("0500000000000000000026 ff0023");
    peer.take(0x23);
    assert_eq!(server.store.lookup(b"/t/m2").unwrap().unwrap().length, 0);
}

#[test]
fn v1_empty_uri_is_refused_and_the_connection_stays() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    for _ in 0..2 {
        peer.send(&hex("310000"));
        peer.expect("110000000000000000001a ff0017");
        peer.take(0x17);
    }
}

#[test]
fn v1_uri_of_4097_bytes_ends_the_connection() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    peer.send(&[&hex("311001")[..], &[b'/'; 4097]].concat());
    peer.expect_end();
}

#[test]
fn v1_uris_that_alias_or_escape_are_refused() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    for uri in ["/../x", "/a//b", "/a/./b", "a", "/a/", "/a\0b"] {
        peer.send(&[&hex("3100")[..], &[uri.len() as u8], uri.as_bytes()].concat());
        let head = peer.take(11);
        assert_eq!(head[0], 0x02, "{uri:?}");
        peer.take(usize::from(u16::from_be_bytes([head[9], head[10]])));
    }
    assert!(server.store.list(b"", b"", 10).entries.is_empty());
}

#[test]
fn v1_a_committed_object_is_served_read_only() {
    let server = InProcess::new();
    let session = server.store.session(None).unwrap();
    let mut private = session.create(None, 0, None).unwrap();
    private.commit(Commit::new(b"/t/m2", 0)).unwrap();
    let mut peer = server.v01_peer();
    peer.send(&hex("3100052f742f6d32"));
    peer.expect("0000000000000000000000");
    assert!(peer.expect_fd().write_all(b"x").is_err());
}

#[test]
fn v2_hello() {
    let server = InProcess::new();
    for (sent, received) in
        [("4f424a4d0200130010", "4f424a4d020000000102"), ("4f424a4d0200000000", "4f424a4d020000000002")]
    {
        let mut peer = server.v01_peer();
        peer.send(&hex(sent));
        peer.expect(received);
    }
}

#[test]
fn v2_wrong_version_or_magic_ends_the_connection() {
    let server = InProcess::new();
    for sent in ["4f424a4d0300130010", "4f424b4d0200130010"] {
        let mut peer = server.v01_peer();
        peer.send(&hex(sent));
        peer.expect_end();
    }
}

fn v2(server: &InProcess) -> V01Peer {
    let mut peer = server.v01_peer();
    peer.send(&hex("4f424a4d0200130010"));
    peer.expect("4f424a4d020000000102");
    peer
}

#[test]
fn v2_create_get_delete() {
    let server = InProcess::new();
    let mut peer = v2(&server);
    peer.send(&hex("0101020304003100052f76322f61"));
    peer.expect("02010203040000000000000000000000");
    let mut file = peer.expect_fd();
    file.write_all(b"hello").unwrap();
    peer.send(&hex("0100000007003100052f76322f61"));
    peer.expect("02000000070000000000000000000000");
    assert_eq!(peer.expect_fd().metadata().unwrap().len(), 5);
    peer.send(&hex("01000000080031000c2f64656c6574652f76322f61"));
    peer.expect("02000000080000000000000000010000");
    assert!(server.store.lookup(b"/v2/a").unwrap().is_none());
}

#[test]
fn v2_flag_2_creates_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        memory: Some(objmapper_server::store::MemoryTier { limit: 1 << 20, mount: None }),
        disk: Some(objmapper_server::store::DiskTier { dir: dir.path().into(), limit: 1 << 20 }),
        ..StoreConfig::default()
    };
    let server = InProcess::with(config, |_| {});
    let mut peer = v2(&server);
    peer.send(&hex("0100000010023100072f76322f657068"));
    peer.expect("02000000100000000000000000000000");
    peer.expect_fd();
    let tier = |uri: &[u8]| server.store.lookup(uri).unwrap().unwrap().tier.to_string();
    assert_eq!(tier(b"/v2/eph"), "memory");
    peer.send(&hex("0100000011003100052f76322f61"));
    peer.expect("02000000110000000000000000000000");
    peer.expect_fd();
    assert_eq!(tier(b"/v2/a"), "disk");
}

#[test]
fn v2_close_is_acknowledged() {
    let server = InProcess::new();
    let mut peer = v2(&server);
    peer.send(&hex("0300"));
    peer.expect("040000000000");
    peer.expect_end();
}

#[test]
fn v2_unknown_type_or_a_second_hello_ends_the_connection() {
    let server = InProcess::new();
    for sent in ["77", "4f424a4d0200130010", "1000000001080000000000"] {
        let mut peer = v2(&server);
        peer.send(&hex(sent));
        peer.expect_end();
    }
    assert_eq!(server.server.as_ref().unwrap().protocol_errors(), 3);
}

#[test]
fn every_vector_works_byte_by_byte() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    for byte in hex("4f424a4d0200130010 0101020304003100052f76322f61 0300") {
        peer.send(&[byte]);
    }
    peer.expect("4f424a4d020000000102 02010203040000000000000000000000");
    peer.expect_fd();
    peer.expect("040000000000");
    peer.expect_end();
}

const GET: &str = "3100082f742f6d69737331";
const HEAD: &str = "0000000000000000000000";

#[test]
fn queued_replies_keep_their_descriptors() {
    let server = InProcess::new();
    let mut peer = server.v01_peer();
    peer.send(&hex(GET).repeat(40));
    // All that the server lets wait is in the socket before the first byte is read.
    eventually("replies wait", || rustix::io::ioctl_fionread(&peer.stream).unwrap() >= 30 * 12);
    for _ in 0..40 {
        peer.expect(HEAD);
        peer.expect_fd();
    }
}

#[test]
fn a_recvmsg_with_a_large_buffer_ends_behind_each_descriptor() {
    let server = InProcess::new();
    // Asserts that what comes with descriptors ends with their byte.
    let mut peer = server.peer();
    peer.send(&hex(GET).repeat(20));
    for _ in 0..20 {
        peer.expect(HEAD);
        peer.expect_fd();
    }
}

#[test]
fn v2_frames_reach_a_reading_client_with_their_descriptors_too() {
    let server = InProcess::new();
    let mut peer = v2(&server);
    peer.send(&hex("0100000007003100052f76322f61").repeat(30));
    for _ in 0..30 {
        peer.expect("02000000070000000000000000000000");
        peer.expect_fd();
    }
}
