//! Outages of the disk below a store: a full file system when varnishd starts a child, a directory that is gone.
//!
//! docs/outages.md has a row for each.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::small_disk::{ext4, fill};
use objmapper_harness::varnishd::{Options, Varnishd};

const SIZE: usize = 1 << 20;
const DISK: u64 = 64 << 20;
const BOUND: Duration = Duration::from_secs(30);

/// An origin, and a varnishd with every body in that store; they are to end in the opposite order.
fn start(dir: &Path, arrangement: Arrangement, size: &str, store: &str) -> Result<(H2o, Varnishd)> {
    let root = dir.join("site");
    std::fs::create_dir(&root)?;
    site::write(&root, "body", 1, SIZE)?;
    let h2o = H2o::start(dir, &root)?;
    let (host, port) = (h2o.address().ip(), h2o.address().port());
    let storage = arrangement.storage("s0", size, None, store);
    let varnishd = Varnishd::start(
        dir,
        &Options {
            arrangement,
            storage: &[storage],
            listen: &[],
            vcl: &format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n"),
            parameters: &["auto_restart=off"],
            user: None,
            descriptors: None,
        },
    )?;
    Ok((h2o, varnishd))
}

fn fetch(varnishd: &Varnishd, path: &str) -> Result<()> {
    let response = Client::new().fetch(&varnishd.url(path))?;
    ensure!(response.status == 200 && response.body == site::bytes(1, SIZE), "{path}: status {}", response.status);
    Ok(())
}

/// A file system that varnishd's child may write to.
fn small_disk(dir: &Path) -> Result<Option<PathBuf>> {
    let Some(disk) = ext4(dir, DISK, &[]) else { return Ok(None) };
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o777))?;
    Ok(Some(disk))
}

/// The cache has filled its disk, and others have taken the rest, when the child dies: the next one starts, stores bodies and
/// serves.
#[test]
fn a_full_disk_does_not_keep_a_dead_child_dead() -> Result<()> {
    let dir = open_directory()?;
    let Some(disk) = small_disk(dir.path())? else { return Ok(()) };
    let (_h2o, varnishd) = start(dir.path(), Arrangement::EmbeddedT0, "1g", &format!("dir={}", disk.display()))?;
    for i in 0..80 {
        fetch(&varnishd, &format!("/body?{i}"))?;
    }
    ensure!(varnishd.counter("OBJM.s0.c_published")? >= 30, "the disk was hardly used");
    kill(Pid::from_raw(i32::try_from(varnishd.child_pid()?)?), Signal::SIGKILL)?;
    wait_for("the child to be dead", BOUND, || {
        Ok(varnishd.cli(&["status"])?.contains("in state stopped").then_some(()))
    })?;
    // Also what its unfinished bodies had is free now.
    fill(&disk.join("foreign"))?;
    varnishd.cli(&["start"])?;
    wait_for("the child to serve", BOUND, || Ok(fetch(&varnishd, "/body?again").ok()))?;
    ensure!(varnishd.counter("OBJM.s0.g_happy")? == 1, "{}", varnishd.output());
    // What the dead child had in the store goes; it is nobody's.
    wait_for("bodies to be stored again", BOUND, || {
        fetch(&varnishd, &format!("/body?{}", varnishd.counter("MAIN.client_req")?))?;
        Ok((varnishd.counter("OBJM.s0.c_published")? > 0).then_some(()))
    })
}

/// A first start on a disk that others have filled is no mistake of the operator either.
#[test]
fn a_first_start_on_a_full_disk_serves_from_heap() -> Result<()> {
    let dir = open_directory()?;
    let Some(disk) = small_disk(dir.path())? else { return Ok(()) };
    fill(&disk.join("foreign"))?;
    let (_h2o, varnishd) = start(dir.path(), Arrangement::EmbeddedT0, "1g", &format!("dir={}", disk.display()))?;
    fetch(&varnishd, "/body?0")?;
    fetch(&varnishd, "/body?0")?;
    ensure!(varnishd.counter("MAIN.cache_hit")? == 1, "the body was not cached");
    let output = varnishd.output();
    ensure!(output.contains("no room"), "{output}");
    varnishd.stop()
}

/// The bodies' directory is removed under a running objmapperd: bodies are in heap, which is counted as the store's trouble and
/// not as bad protocol, and objmapperd says it once.
#[test]
fn the_bodies_directory_is_gone() -> Result<()> {
    let dir = open_directory()?;
    let daemon = Objmapperd::start_on_disk(dir.path(), "64m")?;
    let socket = format!("socket={}", daemon.socket().display());
    let (_h2o, varnishd) = start(dir.path(), Arrangement::DaemonT0, "1g", &socket)?;
    wait_for("the engine to find objmapperd", BOUND, || Ok((varnishd.counter("OBJM.s0.g_happy")? == 1).then_some(())))?;
    fetch(&varnishd, "/body?0")?;
    std::fs::remove_dir_all(daemon.bodies())?;
    for i in 1..20 {
        fetch(&varnishd, &format!("/body?{i}"))?;
    }
    let counters = varnishd.counters("OBJM.s0.")?;
    ensure!(counters["c_err_io"] >= 19 && counters["c_fallback_io"] >= 19, "{counters:?}");
    ensure!(counters["c_err_protocol"] == 0, "{counters:?}");
    let log = std::fs::read_to_string(dir.path().join("objmapperd.log"))?;
    let lines = log.lines().filter(|line| line.contains("creating a file")).count();
    ensure!(lines == 1, "{lines} lines:\n{log}");
    varnishd.stop()
}
