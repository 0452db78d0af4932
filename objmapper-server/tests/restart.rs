//! How fast a disk tier with many records is back.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::*;
use objmapper_proto::ext::{Request, Token, Want};
use objmapper_proto::{ObjUri, Status};
use objmapper_server::store::{DiskTier, Store, StoreConfig, body_path};

/// A disk tier as a daemon that stored `count` empty objects leaves it when it is killed.
fn fill(dir: &Path, count: u64) {
    let disk = DiskTier { dir: dir.into(), limit: 1 << 40 };
    drop(Store::open(StoreConfig { disk: Some(disk), ..StoreConfig::default() }).unwrap());
    let private = dir.join("objmapper-store");
    let mut db = rusqlite::Connection::open(private.join("index.sqlite3")).unwrap();
    let t = db.transaction().unwrap();
    {
        let mut insert = t.prepare("INSERT INTO objects VALUES(?,?,0,4096,1700000000000,0,0,NULL)").unwrap();
        for id in 1..=count {
            let uri = format!("/cdn.example/video/{:016x}/segment-{id}.m4s", id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            insert.execute(rusqlite::params![id as i64, uri.as_bytes()]).unwrap();
            fs::File::create(private.join("objects").join(body_path(id))).unwrap();
        }
    }
    t.commit().unwrap();
}

/// Returns the time from the start of the process to the first answer, and what the store counts.
fn restart(count: u64) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    fill(&dir.path().join("d"), count);
    let socket = dir.path().join("s");
    let mut command = Daemon::command(&socket);
    command.arg("--dir").arg(dir.path().join("d")).args(["--disk", "1T"]);
    let started = Instant::now();
    let _daemon = Daemon::start(command, &socket);
    let mut peer = Peer::connect(&socket);
    peer.extended();
    peer.attach(Token::NEW);
    let answered = started.elapsed();
    let count_now = |peer: &mut Peer| match peer.call(&Request::Stat) {
        Ok((Answer::Stat(stat), _)) => (stat.tiers[0].objects, stat.tiers[0].used),
        other => panic!("{other:?}"),
    };
    let (objects, used) = count_now(&mut peer);
    let index = fs::metadata(dir.path().join("d/objmapper-store/index.sqlite3")).unwrap().len();
    assert_eq!(objects, count);
    // Its log may have some more.
    assert!((count * 4096 + index..count * 4096 + 2 * index).contains(&used), "{used} bytes, {index} of index");
    for id in [1, count / 2, count] {
        let uri = format!("/cdn.example/video/{:016x}/segment-{id}.m4s", id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let uri = ObjUri::parse(uri.as_bytes()).unwrap();
        let (_, fds) = peer.call(&Request::Lookup { uri, want: Want::FD }).unwrap();
        assert_eq!(fds.len(), 1);
    }
    let none = Request::Lookup { uri: ObjUri::parse(b"/none").unwrap(), want: Want::FD };
    assert_eq!(peer.call(&none).unwrap_err(), Status::NotFound);
    answered
}

#[test]
fn a_hundred_thousand_records_are_back() {
    let answered = restart(100_000);
    println!("100,000 records: {answered:?} to the first answer");
    // Some 0.3 s on an idle machine; one record at a time from the disk would be minutes.
    assert!(answered < Duration::from_secs(30), "{answered:?}");
}

#[test]
#[ignore = "takes a minute; run it with --release"]
fn a_million_records_are_back_within_two_seconds() {
    let answered = restart(1_000_000);
    println!("1,000,000 records: {answered:?} to the first answer");
    assert!(answered < Duration::from_secs(2), "{answered:?}");
}
