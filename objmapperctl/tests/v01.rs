//! With a peer of protocol v0.1: what it cannot do is said, with the reason.

mod common;
#[path = "../../objmapper-records/tests/common/v01_peer.rs"]
#[allow(dead_code, reason = "the defects are not needed here")]
mod v01_peer;

use common::*;
use objmapper_records::Finding;
use v01_peer::V01Peer;

#[test]
fn what_a_v01_peer_can_do_works_and_the_rest_is_refused() {
    let peer = V01Peer::start();
    let socket = peer.socket();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"content").unwrap();
    let file = file.path().to_str().unwrap();

    ctl(&socket, &["check"]).expect(0, &["V2 of objmapper v0.1", "list, stat and verify do not"]);
    for command in [&["list"][..], &["stat"], &["verify"]] {
        ctl(&socket, command).expect(5, &["not offered by an objmapper v0.1 peer", "objmapperd"]);
    }
    ctl(&socket, &["put", "/a", file]).expect(0, &["7 bytes", "not atomically"]);
    assert_eq!(ctl(&socket, &["get", "/a"]).expect(0, &[]).bytes, b"content");
    ctl(&socket, &["show", "/a"]).expect(0, &["plain object", "7 bytes"]);
    ctl(&socket, &["put", "--new", "/a", file]).expect(5, &["--new"]);
    ctl(&socket, &["delete", "/a"]).expect(0, &[]);
    ctl(&socket, &["get", "/a"]).expect(1, &["there is none", "has an empty object"]);

    let cache = Cache::new(&socket);
    cache.publish(&req("/r"), head(0.0, [3600.0, 0.0, 0.0], &[]), b"record");
    ctl(&socket, &["show", "h/r"]).expect(0, &["record", "fresh: for", "6 of them body"]);
    assert_eq!(ctl(&socket, &["get", "h/r"]).expect(0, &[]).bytes, b"record");
    ctl(&socket, &["purge", "h/r"]).expect(0, &["purged"]);
    ctl(&socket, &["show", "h/r"]).expect(1, &["there is none"]);
    assert!(matches!(cache.find(&req("/r")), Finding::Miss(_)));
}
