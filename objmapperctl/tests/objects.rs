//! Objects as an operator sees them: listed, stored, read, deleted.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use common::*;

/// More than ten pages.
const OBJECTS: usize = 10_050;

#[test]
fn a_listing_is_complete_in_order_and_ends_with_its_reader() {
    let daemon = Daemon::in_memory();
    let client = daemon.client();
    for at in 0..OBJECTS {
        put(&client, &format!("/many/{at:05}"), b"x");
    }
    put(&client, "/other/a", &[7; 5000]);

    let ran = daemon.ctl(&["list", "/many/"]).expect(0, &[]);
    let expected: Vec<String> = (0..OBJECTS).map(|at| format!("/many/{at:05}")).collect();
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), expected);

    let all = daemon.ctl(&["list", "--json"]).expect(0, &[]).json();
    assert_eq!(all.len(), OBJECTS + 1);
    let last = all.last().unwrap();
    assert_eq!((last["uri"].as_str(), last["length"].as_u64()), (Some("/other/a"), Some(5000)));
    assert_eq!((last["tier"].as_str(), &last["expires"]), (Some("memory"), &serde_json::Value::Null));
    daemon.ctl(&["list", "--long", "/other"]).expect(0, &["SIZE", "5000 memory", "never", "/other/a"]);
    daemon.ctl(&["list", "/absent"]).expect(0, &[]);
    daemon.ctl(&["list", "many"]).expect(2, &["many", "/many"]);

    // As `| head -n 3` does.
    let mut child =
        command(&daemon.socket(), &["list", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first: Vec<_> = lines.by_ref().take(3).map(Result::unwrap).collect();
    drop(lines);
    assert!(first[2].contains("/many/00002"), "{first:?}");
    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    assert_eq!((child.wait().unwrap().code(), complaint.as_str()), (Some(0), ""));

    let stat = daemon.ctl(&["stat", "--json"]).expect(0, &[]).json();
    let tier = &stat[0]["tiers"][0];
    assert_eq!((tier["tier"].as_str(), tier["objects"].as_u64()), (Some("memory"), Some(OBJECTS as u64 + 1)));
    assert_eq!(stat[0]["sessions"], 1, "that of this test, and not the program's");
    daemon.ctl(&["stat"]).expect(0, &["memory", "256M", "10051", "1 other sessions"]);
}

#[test]
fn a_file_goes_in_and_comes_out() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(&source, &content).unwrap();
    let (source, target) = (source.to_str().unwrap(), target.to_str().unwrap());

    daemon.ctl(&["put", "/a/file", source]).expect(0, &["/a/file", "3000000 bytes", "disk"]);
    assert_eq!(daemon.ctl(&["get", "/a/file"]).expect(0, &[]).bytes, content);
    daemon.ctl(&["get", "/a/file", "-o", target]).expect(0, &[]);
    assert_eq!(std::fs::read(target).unwrap(), content);
    daemon.ctl(&["put", "--new", "/a/file", source]).expect(1, &["/a/file", "there is one already"]);
    daemon.ctl(&["put", "--expires-in", "1h", "/a/other", source]).expect(0, &[]);
    daemon.ctl(&["show", "/a/other"]).expect(0, &["plain object", "3000000 bytes", "expires", "(in 1h", "disk, file "]);
    let shown = daemon.ctl(&["show", "--json", "/a/other"]).expect(0, &[]).json();
    assert_eq!((shown[0]["kind"].as_str(), shown[0]["body"].as_u64()), (Some("plain object"), Some(3_000_000)));

    // A stream, whose length is not known.
    let mut child = command(&daemon.socket(), &["put", "/a/stream", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&content).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(daemon.ctl(&["get", "/a/stream"]).expect(0, &[]).bytes, content);

    daemon.ctl(&["delete", "/a/stream"]).expect(0, &["deleted /a/stream"]);
    daemon.ctl(&["delete", "/a/stream"]).expect(1, &["/a/stream", "there is none"]);
    daemon.ctl(&["get", "/a/stream"]).expect(1, &["there is none"]);
    daemon.ctl(&["show", "/a/stream"]).expect(1, &["there is none"]);
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"no record").unwrap();
    let file = file.to_str().unwrap();

    daemon.ctl(&["delete", "/a/../b"]).expect(2, &["/a/../b", "no URI"]);
    daemon.ctl(&["show", "http:///x"]).expect(2, &["http:///x", "no host", "www.example.org/a"]);
    daemon.ctl(&["put", "/a", "/no/such/file"]).expect(6, &["/no/such/file", "No such file"]);
    daemon.ctl(&["get", "/a", "--timeout", "soon"]).expect(2, &["soon", "30s"]);
    daemon.ctl(&["frob"]).expect(2, &["frob"]);
    // A cache would remove it.
    daemon.ctl(&["put", "/varnish/r/h/%2Fa", file]).expect(2, &["/varnish/r/h/%2Fa", "record", "get --raw"]);
    assert_eq!(daemon.ctl(&["list"]).expect(0, &[]).out, "");

    let socket = dir.path().join("socket");
    ctl(&socket, &["stat"]).expect(3, &["--socket", "No such file", "start objmapperd"]);
    ctl(dir.path(), &["stat"]).expect(3, &["no socket"]);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    ctl(&socket, &["stat"]).expect(3, &["no process listens", "start objmapperd"]);
    ctl(&socket, &["check"]).expect(3, &["FAILED  connect", "no process listens", "the store cannot be used"]);
}

#[test]
fn a_check_says_what_works_and_what_is_refused() {
    let daemon = Daemon::start();
    daemon.ctl(&["check"]).expect(0, &["ok      connect", "extensions", "disk tier", "ok      write", "absent  read"]);
    put(&daemon.client(), "/varnish/x", b"x");
    let steps = daemon.ctl(&["check", "--json"]).expect(0, &[]).json();
    assert_eq!(steps[0]["ok"], true);
    assert!(steps[0]["steps"].as_array().unwrap().iter().all(|step| step["outcome"] == "ok"), "{steps:?}");

    let strict = Daemon::with(|listen| listen.allow_uids = vec![4_294_967_000]);
    strict.ctl(&["check"]).expect(3, &["FAILED  connect", "--allow-uid"]);
    strict.ctl(&["list"]).expect(3, &["--allow-uid"]);
}

#[test]
fn completions_and_the_version() {
    let daemon = Daemon::start();
    for shell in ["bash", "zsh", "fish"] {
        daemon.ctl(&["completion", shell]).expect(0, &["objmapperctl", "verify"]);
    }
    daemon.ctl(&["completion", "csh"]).expect(2, &["csh", "bash"]);
    daemon.ctl(&["--version"]).expect(0, &["objmapperctl ", env!("CARGO_PKG_VERSION")]);
    daemon.ctl(&["--help"]).expect(0, &["Exit codes", "completion", "OBJMAPPER_SOCKET"]);
}
