//! Damage below a store's directory: neither objmapperd nor varnishd is kept from starting by it.
//!
//! Each kind is done to a real objmapperd with a disk tier, and to a varnishd with a storage in `dir=`, between two starts. The start
//! after it is an ordinary one with an empty tier, says why in one line, and keeps the index aside. docs/outages.md has a row for each.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use objmapper_client::{Client, CommitOptions, ObjUri, Tier, Want};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client as Http;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(30);
const SIZE: usize = 1 << 20;

fn uri(text: &str) -> Result<ObjUri<'_>> {
    ObjUri::try_from(text).map_err(|why| anyhow::anyhow!("{text}: {why}"))
}

fn publish(client: &Client, name: &str) -> Result<()> {
    let mut object = client.create(5, Some(Tier::Disk), None)?;
    File::from(object.take_fd().context("no descriptor")?).write_all(b"hello")?;
    object.commit(&uri(name)?, 5, CommitOptions::default())?;
    Ok(())
}

fn is_there(client: &Client, name: &str) -> Result<bool> {
    Ok(client.lookup(&uri(name)?, Want::ENTRY)?.is_some())
}

fn connect(daemon: &Objmapperd) -> Result<Client> {
    Ok(Client::builder(daemon.socket()).connections(1).connect()?)
}

/// The lines that say that an index was put away.
fn lines(log: &str) -> usize {
    log.matches("cannot be used").count()
}

/// Does `damage` to the index of an objmapperd that was stopped, so that all of it is in one file; it starts again.
fn objmapperd_starts(damage: fn(&Path) -> Result<()>) -> Result<()> {
    let dir = open_directory()?;
    let mut daemon = Objmapperd::start_on_disk(dir.path(), "64m")?;
    publish(&connect(&daemon)?, "/before")?;
    daemon.stop()?;
    let private = dir.path().join("store/objmapper-store");
    damage(&private.join("index.sqlite3"))?;
    daemon.start_again()?;
    let client = connect(&daemon)?;
    ensure!(!is_there(&client, "/before")?, "the tier is not empty");
    publish(&client, "/after")?;
    ensure!(lines(&daemon.log()) == 1, "{}", daemon.log());
    ensure!(fs::symlink_metadata(private.join("set-aside-1/index.sqlite3")).is_ok(), "the index was not kept");
    drop(client);
    daemon.kill()?;
    daemon.start_again()?;
    ensure!(is_there(&connect(&daemon)?, "/after")?, "the start after it lost what was published");
    ensure!(lines(&daemon.log()) == 1, "{}", daemon.log());
    Ok(())
}

/// Does `damage` to the index of a varnishd that was stopped; another one starts there.
fn varnishd_starts(damage: fn(&Path) -> Result<()>) -> Result<()> {
    let dir = open_directory()?;
    let root = dir.path().join("site");
    fs::create_dir(&root)?;
    site::write(&root, "body", 1, SIZE)?;
    let h2o = H2o::start(dir.path(), &root)?;
    let (host, port) = (h2o.address().ip(), h2o.address().port());
    let vcl = format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n");
    let store = dir.path().join("store");
    fs::create_dir(&store)?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777))?;
    let storage = [Arrangement::EmbeddedT0.storage("s0", "64m", None, &format!("dir={}", store.display()))];
    let start = |name: &str| -> Result<Varnishd> {
        let workdir = dir.path().join(name);
        fs::create_dir(&workdir)?;
        fs::set_permissions(&workdir, fs::Permissions::from_mode(0o755))?;
        Varnishd::start(&workdir, &Options::new(Arrangement::EmbeddedT0, &storage, &vcl))
    };
    let fetch = |varnishd: &Varnishd| -> Result<()> {
        let response = Http::new().fetch(&varnishd.url("/body"))?;
        ensure!(response.status == 200 && response.body == site::bytes(1, SIZE), "status {}", response.status);
        Ok(())
    };
    let first = start("first")?;
    fetch(&first)?;
    first.stop()?;
    let private = store.join("objmapper-store");
    // A child ends without closing its store: its log would repair what is damaged here.
    for log in ["index.sqlite3-wal", "index.sqlite3-shm"] {
        let _ = fs::remove_file(private.join(log));
    }
    damage(&private.join("index.sqlite3"))?;
    let varnishd = start("second")?;
    fetch(&varnishd)?;
    fetch(&varnishd)?;
    ensure!(varnishd.counter("MAIN.cache_hit")? == 1 && varnishd.counter("OBJM.s0.c_published")? == 1);
    ensure!(varnishd.counter("OBJM.s0.g_happy")? == 1, "{}", varnishd.output());
    // The manager passes on what its child prints when it comes to it.
    wait_for("the line about the index", BOUND, || Ok((lines(&varnishd.output()) > 0).then_some(())))?;
    ensure!(lines(&varnishd.output()) == 1, "{}", varnishd.output());
    ensure!(fs::symlink_metadata(private.join("set-aside-1/index.sqlite3")).is_ok(), "the index was not kept");
    varnishd.stop()
}

fn both_start(damage: fn(&Path) -> Result<()>) -> Result<()> {
    objmapperd_starts(damage).context("objmapperd")?;
    varnishd_starts(damage).context("varnishd")
}

/// Writes `number` over the format's, at its place in the header of an SQLite file.
fn set_format(index: &Path, number: u32) -> Result<()> {
    Ok(File::options().write(true).open(index)?.write_all_at(&number.to_be_bytes(), 60)?)
}

#[test]
fn an_index_of_noise() -> Result<()> {
    both_start(|index| Ok(fs::write(index, vec![0x5a; 50_000])?))
}

#[test]
fn a_half_written_index() -> Result<()> {
    both_start(|index| {
        let mut bytes = fs::read(index)?;
        // As after a machine that went down while it was written: its beginning, then nothing.
        bytes.truncate(20);
        bytes.resize(20_000, 0);
        Ok(fs::write(index, bytes)?)
    })
}

#[test]
fn an_index_of_a_newer_version() -> Result<()> {
    both_start(|index| set_format(index, 99))
}

#[test]
fn an_index_of_an_older_version() -> Result<()> {
    both_start(|index| set_format(index, u32::MAX))
}

#[test]
fn an_index_that_is_a_directory() -> Result<()> {
    both_start(|index| {
        fs::remove_file(index)?;
        fs::create_dir(index)?;
        fs::write(index.join("x"), "x")?;
        // Of the store's user: another user's directory cannot be moved, and the index is in memory until it is removed.
        let owner = fs::metadata(index.with_file_name("lock"))?;
        for path in [index.join("x"), index.to_owned()] {
            std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(())
    })
}

#[test]
fn an_index_that_is_a_link() -> Result<()> {
    both_start(|index| {
        fs::remove_file(index)?;
        Ok(symlink("/nowhere/else", index)?)
    })
}

#[test]
fn an_index_of_another_user() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make what belongs to another user");
        return Ok(());
    }
    both_start(|index| Ok(std::os::unix::fs::chown(index, Some(65534), Some(65534))?))
}

/// What starts that were killed while they loaded leave; see also [`starts_that_are_killed_while_they_load`].
#[test]
fn an_index_that_has_ended_two_starts() -> Result<()> {
    both_start(|index| Ok(fs::write(index.with_file_name("loading"), "..")?))
}

/// Holds SQLite's locks on an index, so that its next user waits.
fn lock(index: &Path) -> Result<File> {
    /// SQLite's PENDING_BYTE, RESERVED_BYTE and SHARED range (the file format's documentation, "The lock-byte page").
    const LOCK_BYTES: (i64, i64) = (0x4000_0000, 512);
    let file = File::options().read(true).write(true).open(index)?;
    let range = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: LOCK_BYTES.0,
        l_len: LOCK_BYTES.1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLK(&range))?;
    Ok(file)
}

/// A start that is killed in the midst loses nothing; two in a row are taken for the index's doing.
#[test]
fn starts_that_are_killed_while_they_load() -> Result<()> {
    let dir = open_directory()?;
    let mut daemon = Objmapperd::start_on_disk(dir.path(), "64m")?;
    publish(&connect(&daemon)?, "/before")?;
    daemon.kill()?;
    let store = dir.path().join("store");
    let private = store.join("objmapper-store");
    let killed = |starts: u64| -> Result<()> {
        let locked = lock(&private.join("index.sqlite3"))?;
        let mut command = Command::new(artefacts::objmapperd()?);
        command.arg("--socket").arg(dir.path().join("other.sock")).arg("--dir").arg(&store).args(["--disk", "64m"]);
        let mut child = command.stderr(Stdio::null()).spawn()?;
        let marked = wait_for("the start to load", BOUND, || {
            let mark = fs::metadata(private.join("loading")).map_or(0, |mark| mark.len());
            Ok((mark == starts).then_some(()))
        });
        child.kill()?;
        child.wait()?;
        drop(locked);
        marked
    };
    killed(1)?;
    daemon.start_again()?;
    ensure!(is_there(&connect(&daemon)?, "/before")?, "one interrupted start has lost the cache");
    ensure!(!private.join("loading").exists(), "a start that is done leaves its mark");
    daemon.kill()?;
    killed(1)?;
    killed(2)?;
    daemon.start_again()?;
    let client = connect(&daemon)?;
    ensure!(!is_there(&client, "/before")?, "what ended two starts is loaded again");
    publish(&client, "/after")?;
    ensure!(daemon.log().contains("2 starts in a row ended while they loaded it"), "{}", daemon.log());
    ensure!(lines(&daemon.log()) == 1 && private.join("set-aside-1/index.sqlite3").exists(), "{}", daemon.log());
    Ok(())
}

/// What stays a failed launch: a directory that another process uses, and one that cannot be written.
#[test]
fn mistakes_of_an_operator_still_fail_the_start() -> Result<()> {
    let dir = open_directory()?;
    let daemon = Objmapperd::start_on_disk(dir.path(), "64m")?;
    let start = |store: &Path| -> Result<String> {
        let mut command = Command::new(artefacts::objmapperd()?);
        command.arg("--socket").arg(dir.path().join("other.sock")).arg("--dir").arg(store).args(["--disk", "64m"]);
        let output = command.output()?;
        ensure!(!output.status.success(), "it starts");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let told = start(&dir.path().join("store"))?;
    ensure!(told.contains("in use by another store") && told.contains("remedy"), "{told}");
    ensure!(daemon.bodies().exists() && !dir.path().join("store/objmapper-store/set-aside-1").exists());
    let told = start(Path::new("/proc/self"))?;
    ensure!(told.contains("/proc/self") && told.contains("remedy"), "{told}");
    Ok(())
}
