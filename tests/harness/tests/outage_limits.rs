//! Outages for want of something: room in the store, room on its disk, descriptors of the store, descriptors of varnishd.
//!
//! docs/outages.md has a row for each.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_client::{Client, PrivateObject};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::needs::Need;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::Stage;
use objmapper_harness::proc::open_fds;
use objmapper_harness::process::wait_for;
use objmapper_harness::shared::status;

/// Bodies are copied; bodies are adopted.
const BOTH: [Arrangement; 2] = [Arrangement::Malloc, Arrangement::Daemon];

fn memory(dir: &Path) -> Result<Option<Objmapperd>> {
    Objmapperd::start(dir, "1g").map(Some)
}

/// Takes all the room that the store has, pushing out what can be pushed out; it is back when the values are dropped.
fn fill(client: &Client) -> Result<Vec<PrivateObject>> {
    let stat = client.stat()?;
    let mut length = stat.tiers[0].limit;
    let mut taken = Vec::new();
    while length >= 4096 {
        match client.create(length, None, None) {
            Ok(object) => taken.push(object),
            Err(error) if error.status() == Some(objmapper_client::Status::Full) => length /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(taken)
}

#[test]
fn full() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, |dir| Objmapperd::start(dir, "64m").map(Some))?;
        stage.shares()?;
        let client = Client::builder(stage.daemon()?.socket()).connections(1).connect()?;
        let taken = fill(&client)?;
        stage.misses(5)?;
        let counters = stage.cache.counters()?;
        ensure!(counters["c_out_full"] >= 20, "{counters:?}");
        ensure!(counters["c_out_timeout"] + counters["c_out_down"] == 0, "{counters:?}");
        ensure!(stage.cache.counter("g_up")? == 1, "full is not down");

        drop(taken);
        client.detach()?;
        stage.shares()?;
        ensure!(stage.changes().0 == 0, "{}", stage.log());
        stage.end()?;
    }
    Ok(())
}

/// A body that is larger than the whole store: the others are shared as before.
#[test]
fn too_small_a_store() -> Result<()> {
    for arrangement in BOTH {
        let stage = Stage::set(arrangement, |dir| Objmapperd::start(dir, "1m").map(Some))?;
        for _ in 0..3 {
            let path = stage.new_path(1_500_000);
            stage.miss(&path)?;
            ensure!(status(&stage.miss(&path)?) != "hit", "it cannot be there");
            stage.published(700)?;
        }
        let counters = stage.cache.counters()?;
        ensure!(counters["c_out_full"] + counters["c_publish_too_large"] >= 6, "{counters:?}");
        stage.end()?;
    }
    Ok(())
}

/// The file system below a disk tier has less room than the tier's limit: that is a limit, and the tier goes on. What varnishd
/// itself holds (the engine pins it) is not evicted.
#[test]
fn disk_full() -> Result<()> {
    if Need::Mounts.skips("outage_limits::disk_full")? {
        return Ok(());
    }
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, |dir| Objmapperd::start_on_small_disk(dir, "1g", "16m").map(Some))?;
        stage.published(700)?;
        stage.misses(20)?;
        let counters = stage.cache.counters()?;
        ensure!(counters["c_out_timeout"] + counters["c_out_down"] == 0, "{counters:?}");
        ensure!(counters["c_damaged"] == 0, "{counters:?}");
        if arrangement == Arrangement::Malloc {
            ensure!(counters["c_out_full"] + counters["c_out_io"] + counters["c_out_protocol"] == 0, "{counters:?}");
            let stat = stage.daemon()?.stat()?;
            ensure!(stat.tiers[0].evictions > 0 && stat.tiers[0].objects > 10, "{stat:?}");
            for size in objmapper_harness::outage::SIZES {
                stage.published(size)?;
            }
        } else {
            ensure!(counters["c_out_full"] >= 1 && counters["c_out_io"] == 0, "{counters:?}");
        }
        stage.end()?;
    }
    Ok(())
}

/// The most descriptors that a process may have from now on.
fn limit_descriptors(pid: u32, limit: usize) -> Result<()> {
    let status = Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={limit}:")).status()?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}

/// The limit that a process has.
fn descriptor_limit(pid: u32) -> Result<usize> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit")?;
    Ok(line.split_whitespace().next().context("no limit")?.parse()?)
}

/// Takes all descriptors that the process could still open, while `act` runs.
fn without_descriptors(pid: u32, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = descriptor_limit(pid)?;
    // The lowest free number is what counts, and there may be gaps.
    limit_descriptors(pid, open_fds(pid)?.min(before) / 2)?;
    let outcome = act();
    limit_descriptors(pid, before)?;
    outcome
}

#[test]
fn objmapperd_out_of_descriptors() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, memory)?;
        stage.shares()?;
        let pid = stage.daemon()?.pid().context("objmapperd has ended")?;
        without_descriptors(pid, || {
            stage.misses(10)?;
            let counters = stage.cache.counters()?;
            let kinds = ["c_out_io", "c_out_full", "c_out_protocol", "c_out_timeout", "c_out_down"];
            ensure!(kinds.iter().map(|k| counters[*k]).sum::<u64>() >= 1, "{counters:?}");
            ensure!(counters["c_out_timeout"] <= 8, "{counters:?}");
            Ok(())
        })?;
        stage.wait_state(true)?;
        stage.shares()?;
        stage.end()?;
    }
    Ok(())
}

/// Idle clients take every descriptor that varnishd has left. Its connections to our client and to H2O are open already;
/// all else fails.
#[test]
fn varnishd_out_of_descriptors() -> Result<()> {
    const LIMIT: usize = 250;
    for arrangement in BOTH {
        let stage = Stage::with_descriptors(arrangement, Some(LIMIT as u32), memory)?;
        stage.shares()?;
        let kept = stage.published(200_000)?;
        let varnishd = stage.cache.varnishd()?;
        let idle: Vec<TcpStream> =
            (0..LIMIT).map(|_| TcpStream::connect(varnishd.address())).collect::<std::io::Result<_>>()?;
        wait_for("varnishd to have no descriptor left", Duration::from_secs(30), || {
            Ok((varnishd.counter("MAIN.sess_fail_emfile")? > 0).then_some(()))
        })?;
        stage.miss(&kept)?;
        stage.misses(5)?;
        let counters = stage.cache.counters()?;
        let kinds = ["c_out_io", "c_out_full", "c_out_protocol", "c_out_timeout", "c_out_down"];
        ensure!(kinds.iter().map(|k| counters[*k]).sum::<u64>() >= 1, "{counters:?}");
        ensure!(counters["c_out_timeout"] <= 8, "{counters:?}");

        drop(idle);
        wait_for("the kept record to be found again", Duration::from_secs(30), || {
            Ok((status(&stage.miss(&kept)?) == "hit").then_some(()))
        })?;
        stage.shares()?;
        stage.end()?;
    }
    Ok(())
}
