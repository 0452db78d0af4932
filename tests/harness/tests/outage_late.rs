//! Answers that come after their caller has gone still own something: it must not be missed by anything else.
//!
//! docs/outages.md has a row for each.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::{DEADLINE, Stage, WAIT, socket};
use objmapper_harness::process::wait_for;
use objmapper_harness::shared::{Cache, Setup, status};

const BOUND: Duration = Duration::from_secs(30);

fn memory(dir: &Path) -> Result<Option<Objmapperd>> {
    Objmapperd::start(dir, "1g").map(Some)
}

/// A second varnishd that shares the store of the stage.
fn second(stage: &Stage, arrangement: Arrangement) -> Result<Cache> {
    let socket = socket(stage.dir());
    let times = format!(", deadline = {}s, wait = {}s", DEADLINE.as_secs_f64(), WAIT.as_secs_f64());
    let setup = Setup {
        arrangement,
        engine_socket: Some(socket.as_path()).filter(|_| arrangement.has_daemon()),
        director_socket: Some(socket.as_path()).filter(|_| !arrangement.has_daemon()),
        arguments: &times,
        h2o: &stage.h2o,
        descriptors: None,
        vcl: "",
    };
    let cache = Cache::start(stage.dir(), "w", &setup)?;
    cache.wait_up()?;
    Ok(cache)
}

/// The store is stopped during a miss for longer than the deadline. The lease that it grants afterwards holds up no other
/// varnishd.
#[test]
fn lease_granted_late() -> Result<()> {
    for arrangement in [Arrangement::Malloc, Arrangement::Daemon] {
        let mut stage = Stage::set(arrangement, memory)?;
        let other = second(&stage, arrangement)?;
        stage.shares()?;
        let path = stage.new_path(200_000);
        let stalled = stage.daemon()?.stall()?;
        stage.miss(&path)?;
        ensure!(stage.cache.counter("c_out_timeout")? >= 1, "{:?}", stage.cache.counters());
        drop(stalled);
        stage.wait_state(true)?;
        other.wait_up()?;

        let response = other.miss(&stage.client, &path)?;
        ensure!(response.status == 200 && status(&response) == "miss", "{:?}", response.headers);
        ensure!(other.counter("c_wait_timeout")? == 0, "it waited in vain: {:?}", other.counters());
        // And its publication is found.
        wait_for("a hit", BOUND, || Ok((status(&stage.miss(&path)?) == "hit").then_some(())))?;
        let stat = stage.daemon()?.stat()?;
        ensure!((stat.leases, stat.private) == (0, 0), "{stat:?}");
        drop(other);
        stage.end()?;
    }
    Ok(())
}

/// Bytes that cannot be evicted.
fn pinned(stage: &Stage) -> Result<u64> {
    let stat = stage.daemon.as_ref().context("there is no objmapperd")?.stat()?;
    Ok(stat.tiers.iter().map(|tier| tier.pinned).sum())
}

/// The store is stopped again and again while bodies are fetched, published and evicted. When it goes on and nothing is asked,
/// nothing is held but what varnishd has.
#[test]
fn nothing_is_left_behind() -> Result<()> {
    for arrangement in [Arrangement::Malloc, Arrangement::Daemon] {
        let mut stage = Stage::set(arrangement, memory)?;
        // The log of bans is pinned for as long as varnishd uses it.
        stage.cache.ban(&stage.client, "obj.status == 999")?;
        let log = wait_for("the log of bans", BOUND, || Ok(Some(pinned(&stage)?).filter(|bytes| *bytes > 0)))?;
        stage.shares()?;
        for _ in 0..5 {
            let stalled = stage.daemon()?.stall()?;
            std::thread::scope(|scope| -> Result<()> {
                let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| stage.misses(1))).collect();
                clients.into_iter().try_for_each(|client| match client.join() {
                    Ok(outcome) => outcome,
                    Err(_) => Err(anyhow::anyhow!("a client panicked")),
                })
            })?;
            drop(stalled);
            stage.wait_state(true)?;
            // Some of it goes well.
            stage.misses(1)?;
        }
        // All objects of varnishd go, and their pins with them.
        stage.cache.ban(&stage.client, "obj.status == 200")?;
        wait_for("nothing is held", BOUND, || {
            let stat = stage.daemon()?.stat()?;
            Ok(((stat.leases, stat.private, pinned(&stage)?) == (0, 0, log)).then_some(()))
        })
        .with_context(|| format!("{arrangement:?}: {:?}", stage.daemon.as_ref().map(Objmapperd::stat)))?;
        stage.shares()?;
        stage.end()?;
    }
    Ok(())
}
