//! Connections that are not served: what their clients are told, and what is logged.

mod common;

use std::fs;
use std::process::Stdio;

use common::*;
use objmapper_proto::ext::{Request, Token};
use objmapper_proto::v2::{Dialect, ServerFrame};
use objmapper_proto::{Status, v1};
use objmapper_server::net::ListenConfig;
use objmapper_server::store::StoreConfig;

/// A server that serves no client of this user.
fn refusing(listen: &mut ListenConfig) {
    listen.allow_uids = vec![rustix::process::geteuid().as_raw() + 1];
}

/// The status and the text of the next extension reply, behind which the connection ends.
fn refused(peer: &mut Peer) -> (Status, String) {
    let refused = loop {
        if let Ok((ServerFrame::Ext(frame), used)) = ServerFrame::decode(&peer.input, Dialect::Extended) {
            let refused = (frame.status, frame.message());
            peer.input.drain(..used);
            break refused;
        }
        assert!(peer.receive().unwrap(), "the end");
    };
    peer.expect_end();
    refused
}

fn attach(number: bool) -> Request<'static> {
    Request::Attach { session: Token::NEW, directories: true, board: true, number }
}

#[test]
fn a_client_on_no_list_is_told_so_in_its_protocol() {
    let server = InProcess::with(StoreConfig::default(), refusing);
    let remedy = format!("--allow-uid {}", rustix::process::geteuid().as_raw());
    for (request, status) in [
        (attach(true), Status::Refused),
        // Of an older client.
        (attach(false), Status::Unavailable),
        (Request::Stat, Status::Unavailable),
    ] {
        let mut peer = server.peer();
        peer.extended();
        peer.request(&request);
        let (got, text) = refused(&mut peer);
        assert!(got == status && text.contains(&remedy), "{got}: {text}");
    }

    let mut peer = server.peer();
    peer.send(&hex("4f424a4d0200000000 01 00000007 00 31 0002 2f61"));
    peer.expect("4f424a4d020000000002");
    while peer.receive().unwrap_or(false) {}
    let (ServerFrame::Response(response), _) = ServerFrame::decode(&peer.input, Dialect::V2).unwrap() else { panic!() };
    let text = String::from_utf8_lossy(response.body.metadata.error_text().unwrap()).into_owned();
    assert_eq!((response.id, response.body.status), (7, Status::Unavailable));
    assert!(text.contains(&remedy), "{text}");

    let mut peer = server.peer();
    peer.send(&hex("31 0002 2f61"));
    while peer.receive().unwrap_or(false) {}
    let (response, _) = v1::Response::decode(&peer.input).unwrap();
    let text = String::from_utf8_lossy(response.metadata.error_text().unwrap()).into_owned();
    assert_eq!(response.status, Status::Unavailable);
    assert!(text.contains(&remedy), "{text}");
    assert!(server.store.lookup(b"/a").unwrap().is_none(), "nothing was carried out");
    assert_eq!(server.server.as_ref().unwrap().refused(), 5);
}

#[test]
fn one_connection_too_many_is_told_so_and_takes_no_place() {
    let server = InProcess::with(StoreConfig::default(), |listen| listen.max_connections = 1);
    let one = server.attached();
    for _ in 0..3 {
        let mut peer = server.peer();
        peer.extended();
        peer.request(&attach(true));
        let (status, text) = refused(&mut peer);
        assert!(status == Status::Unavailable && text.contains("--max-connections"), "{status}: {text}");
    }
    drop(one);
    eventually("the place is free", || server.server.as_ref().unwrap().connections() == 0);
    server.attached();
}

/// A client that is refused and says nothing does not keep its place: the ones behind it are told, too.
#[test]
fn silent_clients_do_not_keep_refusals_from_others() {
    let server = InProcess::with(StoreConfig::default(), refusing);
    let silent: Vec<Peer> = (0..200).map(|_| server.peer()).collect();
    eventually("another one is told", || {
        let mut peer = server.peer();
        let mut hello = hex("4f424a4d0280000064");
        attach(true).encode(1, &mut hello).unwrap();
        // It may be closed at once: there are as many as may wait.
        let sent = std::io::Write::write_all(&mut peer.stream, &hello).is_ok();
        sent && peer.receive().unwrap_or(false)
    });
    for mut peer in silent {
        peer.expect_end();
    }
}

#[test]
fn lines_about_refusals_are_bounded() {
    const REFUSALS: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let (socket, log) = (dir.path().join("s"), dir.path().join("log"));
    let mut command = Daemon::command(&socket);
    let other = (rustix::process::geteuid().as_raw() + 1).to_string();
    command.args(["--memory", "8M", "--allow-uid", &other]).stderr(Stdio::from(fs::File::create(&log).unwrap()));
    let child = command.spawn().unwrap();
    let _daemon = Daemon { child, socket: socket.clone() };
    eventually("the daemon listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    for _ in 0..REFUSALS {
        let mut peer = Peer::connect(&socket);
        peer.extended();
        peer.request(&attach(true));
        assert_eq!(refused(&mut peer).0, Status::Refused);
    }
    let log = fs::read_to_string(&log).unwrap();
    let lines = log.lines().filter(|line| line.contains("a connection is refused")).count();
    assert!((1..=10).contains(&lines), "{lines} lines for {REFUSALS} refusals:\n{log}");
    assert!(log.contains("--allow-uid"), "{log}");
}
