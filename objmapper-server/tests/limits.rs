//! A tier's limit holds against a client that has a writable descriptor and does what it likes with it.

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::*;
use objmapper_proto::ObjUri;
use objmapper_proto::Status;
use objmapper_proto::ext::{Commit, IfVersion, Request, Stat, Token, Want};

const LIMIT: u64 = 16 << 20;
/// A file system has metadata of its own.
const TOLERANCE: u64 = 1 << 20;

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::parse(text.as_bytes()).unwrap()
}

fn disk_tier(dir: &Path) -> Daemon {
    let mut command = Daemon::command(&dir.join("s"));
    command.arg("--dir").arg(dir.join("disk")).args(["--disk", "16M"]);
    Daemon::start(command, &dir.join("s"))
}

fn memory_tier(dir: &Path) -> Daemon {
    let mut command = Daemon::command(&dir.join("s"));
    command.args(["--memory", "16M"]);
    Daemon::start(command, &dir.join("s"))
}

fn attached(daemon: &Daemon) -> Peer {
    let mut peer = Peer::connect(&daemon.socket);
    peer.extended();
    peer.attach(Token::NEW);
    peer
}

fn create(peer: &mut Peer, length: u64) -> Result<(u64, File), Status> {
    match peer.call(&Request::Create { tier: None, length, uri: None })? {
        (Answer::Created(handle), mut fds) => Ok((handle, File::from(fds.remove(0)))),
        other => panic!("{other:?}"),
    }
}

fn commit(peer: &mut Peer, handle: u64, length: u64, name: &str) -> Result<(Answer, Vec<OwnedFd>), Status> {
    peer.call(&Request::Commit(Commit {
        handle,
        length,
        expires: 0,
        if_version: IfVersion::Any,
        uri: uri(name),
        want: Want::ENTRY,
        ephemeral: false,
        fence: None,
    }))
}

fn stat(peer: &mut Peer) -> Stat {
    match peer.call(&Request::Stat) {
        Ok((Answer::Stat(stat), _)) => stat,
        other => panic!("{other:?}"),
    }
}

/// The most that the index of a disk tier takes in these tests; it counts in `used`.
const INDEX: u64 = 512 << 10;

/// Whether a tier uses `bytes` beside its index.
fn uses(peer: &mut Peer, bytes: u64) -> bool {
    (bytes..bytes + INDEX).contains(&used(peer))
}

fn used(peer: &mut Peer) -> u64 {
    let tier = stat(peer).tiers[0];
    assert!(tier.used <= tier.limit, "{tier:?}");
    tier.used
}

fn allocated(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

/// Writes `mib` MiB, however little of it stays.
fn write_on(file: &mut File, mib: usize) {
    let block = vec![b'x'; 1 << 20];
    file.seek(SeekFrom::End(0)).unwrap();
    for _ in 0..mib {
        file.write_all(&block).unwrap();
    }
}

fn is_held_to(file: &File, bytes: u64) {
    eventually("the file is cut", || allocated(file) <= bytes + TOLERANCE);
}

#[test]
fn a_private_object_without_a_reservation_cannot_outgrow_the_tier_nor_after_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = disk_tier(dir.path());
    let (mut watcher, mut writer) = (attached(&daemon), attached(&daemon));
    let (_, mut file) = create(&mut writer, 0).unwrap();
    write_on(&mut file, 64);
    is_held_to(&file, LIMIT);
    eventually("the session of the writer is ended", || {
        create(&mut writer, 0).is_err_and(|status| status == Status::UnknownSession)
    });
    write_on(&mut file, 64);
    is_held_to(&file, LIMIT);
    drop(writer);
    write_on(&mut file, 64);
    is_held_to(&file, LIMIT);
    drop(file);
    eventually("its bytes are given back", || uses(&mut watcher, 0) && stat(&mut watcher).private == 0);
    create(&mut watcher, LIMIT - INDEX).unwrap();
}

#[test]
fn what_is_given_up_stays_charged_until_its_last_writer_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = memory_tier(dir.path());
    let (mut watcher, mut writer) = (attached(&daemon), attached(&daemon));
    let (handle, mut aborted) = create(&mut writer, 4 << 20).unwrap();
    let (_, detached) = create(&mut writer, 4 << 20).unwrap();
    writer.call(&Request::Abort { handle }).unwrap();
    writer.call(&Request::Detach).unwrap();
    assert!(uses(&mut watcher, 8 << 20));
    assert_eq!(stat(&mut watcher).private, 2);
    // What was reserved may be written, and no more.
    write_on(&mut aborted, 4);
    assert_eq!(allocated(&aborted), 4 << 20);
    write_on(&mut aborted, 2);
    is_held_to(&aborted, 4 << 20);
    assert_eq!(create(&mut watcher, LIMIT).unwrap_err(), Status::Full);
    drop((aborted, detached));
    // Found when the room is needed, not only when it is looked for.
    create(&mut watcher, LIMIT).unwrap();
}

#[test]
fn what_is_written_without_a_reservation_is_charged_and_makes_others_go() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = memory_tier(dir.path());
    let (mut watcher, mut writer) = (attached(&daemon), attached(&daemon));
    for name in ["/a", "/b", "/c"] {
        let (handle, mut file) = create(&mut watcher, 4 << 20).unwrap();
        write_on(&mut file, 4);
        drop(file);
        commit(&mut watcher, handle, 4 << 20, name).unwrap();
    }
    let (handle, mut file) = create(&mut writer, 0).unwrap();
    write_on(&mut file, 6);
    eventually("it is charged", || uses(&mut watcher, 14 << 20));
    assert_eq!(stat(&mut watcher).tiers[0].objects, 2);
    // Less than is written cannot be had back.
    writer.call(&Request::Reserve { handle, length: 0 }).unwrap();
    assert!(uses(&mut watcher, 14 << 20));
    drop(file);
    commit(&mut writer, handle, 6 << 20, "/d").unwrap();
}

#[test]
fn a_v01_object_cannot_outgrow_the_tier_nor_after_its_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = disk_tier(dir.path());
    let mut watcher = attached(&daemon);
    let mut writer = Peer::connect(&daemon.socket);
    writer.send(&hex("3100082f742f6d69737331"));
    writer.expect("0000000000000000000000");
    let mut file = writer.expect_fd();
    write_on(&mut file, 64);
    is_held_to(&file, LIMIT);
    write_on(&mut file, 64);
    is_held_to(&file, LIMIT);
    drop(file);
    eventually("its bytes are given back", || uses(&mut watcher, 0));
    // Deleted while its writer goes on: charged until it is done.
    writer.send(&hex("3100082f742f6d69737331"));
    writer.expect("0000000000000000000000");
    let mut file = writer.expect_fd();
    write_on(&mut file, 4);
    eventually("it is charged", || used(&mut watcher) >= 4 << 20);
    let delete = Request::Delete { if_version: IfVersion::Any, uri: uri("/t/miss1"), evict: false };
    watcher.call(&delete).unwrap();
    assert!(used(&mut watcher) >= 4 << 20);
    write_on(&mut file, 64);
    is_held_to(&file, LIMIT);
    drop(file);
    eventually("its bytes are given back", || uses(&mut watcher, 0));
}

#[test]
fn a_body_in_memory_has_no_holes() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = memory_tier(dir.path());
    let mut peer = attached(&daemon);
    // More than a huge page, which is allocated whole.
    const LENGTH: u64 = 3 << 20;
    let (handle, file) = create(&mut peer, LENGTH).unwrap();
    file.set_len(LENGTH).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    // As much as the file's length is allocated, but not there.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, LENGTH, LENGTH).unwrap();
    drop(file);
    assert_eq!(commit(&mut peer, handle, LENGTH, "/a").unwrap_err(), Status::InvalidRequest);
    let (handle, mut file) = create(&mut peer, LENGTH).unwrap();
    file.set_len(LENGTH).unwrap();
    file.write_all(&vec![b'x'; LENGTH as usize]).unwrap();
    drop(file);
    let (Answer::Entry(entry), _) = commit(&mut peer, handle, LENGTH, "/a").unwrap() else { panic!() };
    let (_, mut fds) = peer.call(&Request::Lookup { uri: uri("/a"), want: Want::FD }).unwrap();
    assert_eq!((entry.length, read_fd(fds.remove(0)).len() as u64), (LENGTH, LENGTH));
    let (handle, file) = create(&mut peer, 0).unwrap();
    drop(file);
    commit(&mut peer, handle, 0, "/empty").unwrap();
}
