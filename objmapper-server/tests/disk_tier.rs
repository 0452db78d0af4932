//! The disk tier on what disks do: full and small file systems, damaged and lost indexes, cleaners, foreign owners.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use common::small_disk::{ext4, fill, take_inodes, tmpfs};
use common::{Daemon, Peer, eventually};
use objmapper_proto::ObjUri;
use objmapper_proto::ext::{Commit as CommitRequest, Request, Tier, Token, Want};
use objmapper_server::store::*;

const MIB: u64 = 1 << 20;

fn config(dir: &Path, limit: u64) -> StoreConfig {
    StoreConfig { disk: Some(DiskTier { dir: dir.into(), limit }), ..StoreConfig::default() }
}

fn open(dir: &Path, limit: u64) -> (Store, Session) {
    let store = Store::open(config(dir, limit)).unwrap();
    let session = store.session(None).unwrap();
    (store, session)
}

fn put(session: &Session, uri: &str, body: &[u8]) -> Result<Entry, String> {
    let mut private = session.create(None, body.len() as u64, None).map_err(|e| e.to_string())?;
    let file = private.file().unwrap().try_clone_to_owned().unwrap();
    File::from(file).write_all(body).map_err(|e| format!("writing: {e}"))?;
    let mut outcome = Err(StoreError::Busy);
    // A process that another test starts has our descriptors for a moment.
    eventually("nobody else has the file", || {
        outcome = private.commit(Commit::new(uri.as_bytes(), body.len() as u64));
        !matches!(outcome, Err(StoreError::Busy))
    });
    outcome.map_err(|e| e.to_string())
}

fn found(store: &Store, uri: &str) -> bool {
    store.lookup(uri.as_bytes()).unwrap().is_some()
}

fn objects(dir: &Path) -> PathBuf {
    dir.join("objmapper-store/objects")
}

/// The bodies' files, with their bytes in whole pages.
fn files(dir: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for fan_out in fs::read_dir(objects(dir)).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        for file in fs::read_dir(fan_out).unwrap() {
            // One that is removed meanwhile counts the next time.
            if let Ok(meta) = file.unwrap().metadata() {
                sum = (sum.0 + 1, sum.1 + meta.len().max(1).div_ceil(4096) * 4096);
            }
        }
    }
    sum
}

/// What the store counts as bodies is what is there.
fn assert_accounted(store: &Store, dir: &Path) {
    eventually("every file is accounted for", || {
        let stat = store.stats().tiers[0];
        files(dir) == (stat.objects, stat.used - stat.index)
    });
}

#[test]
fn a_full_disk_is_freed_from_the_oldest_bodies_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = ext4(dir.path(), 64 * MIB, &[]) else { return };
    let (store, session) = open(&disk, 1024 * MIB);
    for i in 0..30 {
        put(&session, &format!("/{i}"), &vec![1; 1 << 20]).unwrap();
    }
    drop((session, store));
    fill(&disk.join("foreign")).unwrap();
    let (store, session) = open(&disk, 1024 * MIB);
    assert!(!found(&store, "/0") || store.open_uri(b"/0").unwrap().is_none(), "the oldest goes first");
    assert!(found(&store, "/29"), "more went than had to");
    put(&session, "/new", b"x").unwrap();
    assert!(found(&store, "/new"));
    assert_accounted(&store, &disk);
}

#[test]
fn a_disk_without_room_for_an_index_does_not_keep_the_store_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = ext4(dir.path(), 16 * MIB, &[]) else { return };
    drop(open(&disk, 8 * MIB));
    let private = disk.join("objmapper-store");
    for name in fs::read_dir(&private).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
        if !name.ends_with("lock") {
            fs::remove_file(name).unwrap();
        }
    }
    fill(&disk.join("foreign")).unwrap();
    let (store, session) = open(&disk, 8 * MIB);
    assert!(put(&session, "/a", &vec![1; 1 << 20]).is_err(), "there is no room");
    fs::remove_dir_all(disk.join("foreign")).unwrap();
    eventually("the room is seen", || put(&session, "/a", &vec![1; 1 << 20]).is_ok());
    assert!(found(&store, "/a"));
}

#[test]
fn a_disk_without_inodes_is_freed_too() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = ext4(dir.path(), 64 * MIB, &["-N", "1024"]) else { return };
    let (store, session) = open(&disk, 1024 * MIB);
    for i in 0..200 {
        put(&session, &format!("/{i}"), b"x").unwrap();
    }
    drop((session, store));
    for i in 0..8 {
        // As if the first start had not been finished.
        let _ = fs::remove_dir(objects(&disk).join(format!("{i:02x}")));
    }
    assert!(take_inodes(&disk.join("foreign")).unwrap() > 0);
    let (store, session) = open(&disk, 1024 * MIB);
    put(&session, "/new", b"x").unwrap();
    assert!(found(&store, "/new") && found(&store, "/199"));
}

/// The bytes, the inodes: either way each publication finds room.
#[test]
fn a_file_system_smaller_than_the_limit_is_a_limit() {
    for (options, count, length) in [(&[][..], 2000, 64 << 10), (&["-N", "1024"], 2000, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let Some(disk) = ext4(dir.path(), 64 * MIB, options) else { return };
        let (store, session) = open(&disk, 1024 * MIB);
        let body = vec![1; length];
        let failed: Vec<_> = (0..count).filter_map(|i| put(&session, &format!("/{i}"), &body).err()).collect();
        assert!(failed.is_empty(), "{} of {count} failed: {:?}", failed.len(), failed.first());
        let stats = store.stats();
        assert!(stats.tiers[0].evictions > 0 && found(&store, &format!("/{}", count - 1)), "{stats:?}");
        assert!(stats.tiers[0].objects > 200, "more was evicted than had to: {stats:?}");
        assert_accounted(&store, &disk);
    }
}

#[test]
fn what_others_write_to_the_file_system_makes_the_tier_smaller_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = ext4(dir.path(), 64 * MIB, &[]) else { return };
    let (store, session) = open(&disk, 32 * MIB);
    for i in 0..20 {
        put(&session, &format!("/{i}"), &vec![1; 1 << 20]).unwrap();
    }
    assert_eq!(store.stats().tiers[0].bound, 32 * MIB);
    fill(&disk.join("foreign")).unwrap();
    eventually("the bound comes down", || store.stats().tiers[0].bound < 32 * MIB);
    eventually("something is evicted", || store.stats().tiers[0].evictions > 0);
    // What the filler took since the last look may be missing once.
    eventually("there is room again", || put(&session, "/more", &vec![1; 1 << 20]).is_ok());
    fs::remove_dir_all(disk.join("foreign")).unwrap();
    eventually("the bound is the limit", || store.stats().tiers[0].bound == 32 * MIB);
}

/// Takes a kernel with CONFIG_TMPFS_QUOTA.
#[test]
fn a_quota_is_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = tmpfs(dir.path(), "mode=0777,size=64m,usrquota,usrquota_block_hardlimit=16m") else { return };
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = dir.path().join("s");
    let mut command = std::process::Command::new("setpriv");
    // Quotas do not bind root.
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(copy_of_daemon(dir.path()));
    command.arg("--socket").arg(&socket).arg("--dir").arg(disk.join("d")).args(["--disk", "1G"]);
    let _daemon = Daemon::start(command, &socket);
    let mut peer = Peer::connect(&socket);
    peer.extended();
    peer.attach(Token::NEW);
    let mut published = 0;
    // The writer meets the quota, for the file is its owner's; then the store finds out.
    eventually("far more than the quota is published", || {
        published += u32::from(peer_put(&mut peer, published, &vec![1; 256 << 10]));
        published > 200
    });
}

/// An ordinary user may not see where we are built.
fn copy_of_daemon(dir: &Path) -> PathBuf {
    let copy = dir.join("objmapperd");
    fs::copy(env!("CARGO_BIN_EXE_objmapperd"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

fn peer_put(peer: &mut Peer, number: u32, body: &[u8]) -> bool {
    let create = Request::Create { tier: Some(Tier::Disk), length: body.len() as u64, uri: None };
    let Ok((common::Answer::Created(handle), mut fds)) = peer.call(&create) else { return false };
    let written = File::from(fds.remove(0)).write_all(body);
    if written.is_err() {
        peer.call(&Request::Abort { handle }).unwrap();
        return false;
    }
    let uri = format!("/{number}");
    let commit = CommitRequest {
        handle,
        length: body.len() as u64,
        uri: ObjUri::parse(uri.as_bytes()).unwrap(),
        expires: 0,
        if_version: objmapper_proto::ext::IfVersion::Any,
        want: Want::ENTRY,
        ephemeral: false,
        fence: None,
    };
    peer.call(&Request::Commit(commit)).is_ok()
}

/// What can become of an index, and how.
type Damage = (&'static str, fn(&Path));

fn sql(index: &Path, statements: &str) {
    rusqlite::Connection::open(index).unwrap().execute_batch(statements).unwrap();
}

fn damages() -> Vec<Damage> {
    let mut damages: Vec<Damage> = vec![
        ("overwritten", |index| fs::write(index, vec![0x5a; 100_000]).unwrap()),
        ("cut", |index| File::options().write(true).open(index).unwrap().set_len(5000).unwrap()),
        ("of a newer format", |index| sql(index, "PRAGMA user_version=99")),
        ("of an older format", |index| sql(index, "PRAGMA user_version=-1")),
        ("of another program", |index| {
            fs::remove_file(index).unwrap();
            sql(index, "CREATE TABLE bookmarks(url TEXT)");
        }),
        ("without a table", |index| sql(index, "DROP TABLE pins")),
        ("with a negative length", |index| sql(index, "UPDATE objects SET length=-1 WHERE id=3")),
        ("with charges that no disk has", |index| sql(index, "UPDATE objects SET charge=0x7fffffffffffffff")),
        ("with a negative id", |index| sql(index, "UPDATE objects SET id=-7 WHERE id=3")),
        ("without ids left", |index| sql(index, "UPDATE meta SET value=x'ffffffffffffffff' WHERE key='next_id'")),
        ("with a URI that leaves its directory", |index| sql(index, "UPDATE objects SET uri='/../x' WHERE id=3")),
        ("a directory", |index| {
            fs::remove_file(index).unwrap();
            fs::create_dir(index).unwrap();
            fs::write(index.join("x"), "x").unwrap();
        }),
        ("a link", |index| {
            fs::remove_file(index).unwrap();
            symlink("/nowhere/else", index).unwrap();
        }),
        ("with a directory as its log", |index| fs::create_dir(index.with_file_name("index.sqlite3-wal")).unwrap()),
        ("what two interrupted starts leave", |index| fs::write(index.with_file_name("loading"), "..").unwrap()),
    ];
    if rustix::process::geteuid().is_root() {
        damages.push(("another user's", chown));
        // As root's sqlite3 leaves it in the directory of another user.
        damages.push(("with another user's log", |index| {
            let log = index.with_file_name("index.sqlite3-shm");
            fs::write(&log, "").unwrap();
            chown(&log);
        }));
    }
    damages
}

/// A store with eight objects, closed in order; returns the highest id.
fn with_objects(dir: &Path) -> u64 {
    let (store, session) = open(dir, 8 * MIB);
    let ids = (0..8).map(|i| put(&session, &format!("/{i}"), b"old").unwrap().object);
    let highest = ids.max().unwrap();
    drop((session, store));
    highest
}

#[test]
fn a_damaged_index_is_put_away_and_the_tier_starts_empty() {
    for (what, damage) in damages() {
        for damaged in [Damaged::Delete, Damaged::Keep] {
            let dir = tempfile::tempdir().unwrap();
            let old = with_objects(dir.path());
            let private = dir.path().join("objmapper-store");
            damage(&private.join("index.sqlite3"));
            let store = Store::open(StoreConfig { damaged, ..config(dir.path(), 8 * MIB) });
            let store = store.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(!found(&store, "/0") && !found(&store, "/3"), "{what}");
            let session = store.session(None).unwrap();
            let new = put(&session, "/new", b"new").unwrap().object;
            assert!(new > old, "{what}: number {old} may still be known, and was given again");
            let kept = private.join("set-aside-1");
            assert_eq!(kept.exists(), damaged == Damaged::Keep, "{what}");
            if damaged == Damaged::Keep {
                assert!(fs::symlink_metadata(kept.join("index.sqlite3")).is_ok(), "{what}");
                assert!(!fs::read_to_string(kept.join("why")).unwrap().is_empty(), "{what}");
            }
            assert!(!private.join("loading").exists(), "{what}: the mark stays");
            eventually("the bodies without a row are removed", || files(dir.path()).0 == 1);
            assert_accounted(&store, dir.path());
            drop((session, store));
            let (store, _session) = open(dir.path(), 8 * MIB);
            assert!(found(&store, "/new"), "{what}: the next start is an ordinary one");
        }
    }
}

/// An empty file, as a start leaves it that is killed right after making it, is no damage; nor is time that has not come yet.
#[test]
fn what_looks_odd_and_is_usable_is_used() {
    let dir = tempfile::tempdir().unwrap();
    with_objects(dir.path());
    let private = dir.path().join("objmapper-store");
    let index = private.join("index.sqlite3");
    let year_2100 = std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_102_444_800);
    sql(&index, "UPDATE objects SET mtime=4102444800000");
    File::options().append(true).open(&index).unwrap().set_modified(year_2100).unwrap();
    // One interrupted start loses nothing.
    fs::write(private.join("loading"), ".").unwrap();
    let (store, session) = open(dir.path(), 8 * MIB);
    assert_eq!(store.lookup(b"/7").unwrap().unwrap().mtime, 4_102_444_800_000);
    drop((session, store));
    File::create(&index).unwrap();
    let (store, session) = open(dir.path(), 8 * MIB);
    assert!(!found(&store, "/7"));
    put(&session, "/new", b"new").unwrap();
    assert!(!private.join("set-aside-1").exists() && !private.join("loading").exists());
}

/// A file where a directory of bodies is to be, as an interrupted repair of the file system leaves it.
#[test]
fn files_in_place_of_directories_do_not_keep_the_store_from_starting() {
    for (name, is_left) in [("07", true), ("", false)] {
        let dir = tempfile::tempdir().unwrap();
        with_objects(dir.path());
        let path = if name.is_empty() { objects(dir.path()) } else { objects(dir.path()).join(name) };
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "x").unwrap();
        let (store, session) = open(dir.path(), 8 * MIB);
        put(&session, "/new", b"new").unwrap();
        eventually("what has no file any more is dropped", || found(&store, "/1") == is_left);
        assert!(found(&store, "/new"));
        assert_accounted(&store, dir.path());
    }
}

#[test]
fn what_is_set_aside_is_bounded_in_number_and_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let private = dir.path().join("objmapper-store");
    let index = private.join("index.sqlite3");
    let start_damaged = |bytes: usize| {
        drop(open(dir.path(), 8 * MIB));
        fs::write(&index, vec![0x5a; bytes]).unwrap();
        drop(open(dir.path(), 8 * MIB));
        let names = fs::read_dir(&private).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut aside: Vec<_> = names.filter(|name| name.starts_with("set-aside-")).collect();
        aside.sort_unstable();
        aside
    };
    for expected in [&["set-aside-1"][..], &["set-aside-1", "set-aside-2"], &["set-aside-2", "set-aside-3"]] {
        assert_eq!(start_damaged(1 << 20), expected);
    }
    // 4 MiB are kept in all: the older ones make room, and what is larger is not kept.
    assert_eq!(start_damaged(3_500_000), ["set-aside-4"]);
    assert_eq!(start_damaged(5 << 20), ["set-aside-4"]);
}

#[test]
fn a_file_with_an_id_that_no_store_gives_does_not_use_the_ids_up() {
    let dir = tempfile::tempdir().unwrap();
    let old = with_objects(dir.path());
    fs::write(objects(dir.path()).join("ff/ffffffffffffffff"), "x").unwrap();
    let index = dir.path().join("objmapper-store/index.sqlite3");
    for fresh in [false, true] {
        if fresh {
            fs::remove_file(&index).unwrap();
        }
        let (store, session) = open(dir.path(), 8 * MIB);
        let new = put(&session, "/new", b"new").unwrap().object;
        assert!(new > old && new < 1 << 40, "{new}");
        drop((session, store));
        fs::write(objects(dir.path()).join("ff/ffffffffffffffff"), "x").unwrap();
    }
}

/// The index goes, or its end goes (with the machine): files stay that no row names.
#[test]
fn files_that_a_lost_index_does_not_name_are_removed_and_no_publication_fails() {
    for whole in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("objmapper-store");
        drop(open(dir.path(), 64 * MIB));
        let earlier = fs::read(private.join("index.sqlite3")).unwrap();
        let (store, session) = open(dir.path(), 64 * MIB);
        let old: Vec<_> = (0..500).map(|i| put(&session, &format!("/{i}"), b"old").unwrap().object).collect();
        drop((session, store));
        fs::remove_file(private.join("index.sqlite3")).unwrap();
        if !whole {
            fs::write(private.join("index.sqlite3"), earlier).unwrap();
        }
        let (store, session) = open(dir.path(), 64 * MIB);
        for i in 0..500 {
            let new = put(&session, &format!("/{i}"), b"new").unwrap();
            assert!(!old.contains(&new.object), "number {} was given again", new.object);
            assert_eq!(new.length, 3);
        }
        assert_accounted(&store, dir.path());
        assert_eq!(store.stats().tiers[0].objects, 500);
    }
}

#[test]
fn fan_out_directories_that_a_cleaner_removed_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, session) = open(dir.path(), 8 * MIB);
    let cleaned = std::process::Command::new("find").arg(dir.path()).args(["-type", "d", "-empty", "-delete"]).status();
    assert!(cleaned.unwrap().success());
    assert!(!objects(dir.path()).join("07").exists());
    for i in 0..300 {
        put(&session, &format!("/{i}"), b"x").unwrap();
    }
    assert_eq!(fs::metadata(objects(dir.path()).join("07")).unwrap().mode() & 0o7777, 0o755);
    assert!(store.open_uri(b"/299").unwrap().is_some());
    drop((session, store));
    let _ = fs::remove_dir_all(objects(dir.path()).join("07"));
    let (store, _session) = open(dir.path(), 8 * MIB);
    assert_accounted(&store, dir.path());
}

/// Four threads publish as fast as they can; the write-ahead log is looked at all the while.
#[test]
fn the_write_ahead_log_is_bounded_and_counted() {
    const LIMIT: u64 = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let (store, _session) = open(dir.path(), LIMIT);
    let wal = dir.path().join("objmapper-store/index.sqlite3-wal");
    let (done, longest) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|t| {
                let store = &store;
                scope.spawn(move || {
                    let session = store.session(None).unwrap();
                    for i in 0..1500 {
                        put(&session, &format!("/{t}/{}/{}", i % 300, "u".repeat(400)), b"x").unwrap();
                        // A listing must not hold the log.
                        if i % 50 == 0 {
                            assert!(!store.list(b"/", b"", 1000).entries.is_empty());
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                longest.fetch_max(fs::metadata(&wal).unwrap().len(), Relaxed);
                std::thread::yield_now();
            }
        });
        let outcomes: Vec<_> = publishers.into_iter().map(|p| p.join()).collect();
        done.store(true, Relaxed);
        assert!(outcomes.into_iter().all(|o| o.is_ok()));
    });
    // A 128th of the tier, twice that in a burst, and what one transaction adds.
    let longest = longest.into_inner();
    assert!(longest <= LIMIT / 64 + (512 << 10), "the log had {longest} bytes");
    assert!(longest >= LIMIT / 128, "nothing has tried the bound: {longest} bytes");
    let stat = store.stats().tiers[0];
    let private = dir.path().join("objmapper-store");
    let on_disk: u64 = ["", "-wal", "-shm"]
        .iter()
        .map(|end| fs::metadata(private.join(format!("index.sqlite3{end}"))).unwrap().len())
        .sum();
    assert_eq!((stat.index, stat.used >= stat.index), (on_disk, true));
}

#[test]
fn modes_do_not_come_from_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    for umask in ["077", "000"] {
        let root = dir.path().join("d");
        let socket = dir.path().join("s");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_objmapperd")]);
        command.arg("--socket").arg(&socket).args(["--socket-mode", "0640"]);
        command.arg("--dir").arg(&root).args(["--disk", "8M", "--memory", "8M"]);
        let daemon = Daemon::start(command, &socket);
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        let mut peer = Peer::connect(&socket);
        peer.extended();
        peer.attach(Token::NEW);
        assert!(peer_put(&mut peer, 1, b"x"));
        let attach = Request::Attach { session: Token::NEW, directories: true, board: false, number: false };
        for tier in peer.call(&attach).unwrap().1 {
            let stat = rustix::fs::statat(&tier, "00", rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!(format!("{:o}", stat.st_mode & 0o7777), "755", "umask {umask}");
        }
        let private = root.join("objmapper-store");
        let body = fs::read_dir(objects(&root).join("01")).unwrap().next().unwrap().unwrap().path();
        for (path, expected) in [
            (&root, 0o700),
            (&private, 0o700),
            (&private.join("lock"), 0o600),
            (&private.join("index.sqlite3"), 0o600),
            (&private.join("index.sqlite3-wal"), 0o600),
            (&private.join("index.sqlite3-shm"), 0o600),
            (&objects(&root), 0o755),
            (&objects(&root).join("00"), 0o755),
            (&objects(&root).join("ff"), 0o755),
            (&body, 0o444),
            (&socket, 0o640),
        ] {
            assert_eq!(format!("{:o}", mode(path)), format!("{expected:o}"), "umask {umask}: {}", path.display());
        }
        drop((peer, daemon));
        // What a former version left is put right, too.
        fs::set_permissions(objects(&root).join("00"), fs::Permissions::from_mode(0o700)).unwrap();
        drop(open(&root, 8 * MIB));
        assert_eq!(mode(&objects(&root).join("00")), 0o755);
        fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn links_and_foreign_owners_below_the_directory_are_refused_and_nothing_changes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make what belongs to another user");
        return;
    }
    type Prepare = fn(&Path, &Path);
    let cases: [(&str, Prepare, &str); 8] = [
        ("the directory is another user's", |dir, _| chown(dir), "belongs to user 65534"),
        ("the store's is a link", |dir, there| symlink(there, dir.join("objmapper-store")).unwrap(), "symbolic link"),
        (
            "the store's is another user's",
            |dir, _| {
                fs::create_dir(dir.join("objmapper-store")).unwrap();
                chown(&dir.join("objmapper-store"));
            },
            "belongs to user 65534",
        ),
        ("the bodies' is a link", |dir, there| prepared(dir, |p| symlink(there, p.join("objects"))), "symbolic link"),
        (
            "a fan-out directory is a link",
            |dir, there| {
                prepared(dir, |p| {
                    fs::create_dir(p.join("objects")).and_then(|()| symlink(there, p.join("objects/07")))
                });
            },
            "symbolic link",
        ),
        (
            "a fan-out directory is another user's",
            |dir, _| {
                prepared(dir, |p| fs::create_dir_all(p.join("objects/07")));
                chown(&dir.join("objmapper-store/objects/07"));
            },
            "belongs to user 65534",
        ),
        ("the lock is a link", |dir, there| prepared(dir, |p| symlink(there.join("made"), p.join("lock"))), "lock"),
        (
            "the lock is another user's",
            |dir, _| {
                prepared(dir, |p| fs::write(p.join("lock"), ""));
                chown(&dir.join("objmapper-store/lock"));
            },
            "belongs to user 65534",
        ),
    ];
    for (what, prepare, part) in cases {
        let temporary = tempfile::tempdir().unwrap();
        let (dir, there) = (temporary.path().join("d"), temporary.path().join("there"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&there).unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o701)).unwrap();
        prepare(&dir, &there);
        let error = Store::open(config(&dir, 8 * MIB)).map(drop).expect_err(what).to_string();
        assert!(
            error.contains(part) && error.contains("remedy") && error.contains(dir.to_str().unwrap())
                || error.contains("07"),
            "{what}: {error}"
        );
        assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o701, "{what}");
        assert_eq!(fs::read_dir(&there).unwrap().count(), 0, "{what}: something was made where the link points");
    }
    // The index is nothing that an operator has to put right: it goes, and what it pointed to stays.
    let temporary = tempfile::tempdir().unwrap();
    let there = temporary.path().join("there");
    fs::write(&there, "precious").unwrap();
    prepared(temporary.path(), |p| symlink(&there, p.join("index.sqlite3")));
    let (_store, session) = open(temporary.path(), 8 * MIB);
    put(&session, "/a", b"x").unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"precious");
}

fn prepared(dir: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) {
    let private = dir.join("objmapper-store");
    fs::create_dir(&private).unwrap();
    make(&private).unwrap();
}

fn chown(path: &Path) {
    std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
}
