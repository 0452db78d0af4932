//! What keeping objects costs a miss: the CPU time of varnishd's child for many misses, with and without `persist=on`. Printed, not judged:
//! `OBJM_PERSIST_MISSES` (2,000) sets how many.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::persist::Keeper;
use objmapper_harness::process::open_directory;
use objmapper_harness::site;

/// The CPU time of a process so far, in milliseconds, and the bytes that it wrote to files.
fn used(pid: u32) -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
    // Clock ticks of 10 ms (proc_pid_stat(5)): fields 14 and 15, of which two are before these.
    let cpu = (fields[11].parse::<u64>()? + fields[12].parse::<u64>()?) * 10;
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
    Ok((cpu, written.parse()?))
}

#[test]
#[ignore = "figures for a reader; run it with --release, --ignored and --nocapture on a machine that is idle"]
fn misses_with_and_without() -> Result<()> {
    let misses: usize = std::env::var("OBJM_PERSIST_MISSES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    for (size, misses) in [(1024, misses), (1 << 20, misses / 20)] {
        for options in ["", ",persist=on", "", ",persist=on"] {
            let dir = open_directory()?;
            let root = dir.path().join("site");
            std::fs::create_dir(&root)?;
            site::write(&root, "file", 1, size)?;
            let h2o = H2o::start(dir.path(), &root)?;
            let mut keeper = Keeper::new(dir.path(), &h2o)?;
            keeper.start("2g", options)?;
            keeper.get(&Client::new(), "/file")?;
            let child = keeper.varnishd()?.child_pid()?;
            let before = used(child)?;
            let next = AtomicUsize::new(0);
            let failed = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let client = Client::new();
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= misses {
                                break;
                            }
                            if keeper.get(&client, &format!("/file?{number}")).is_err() {
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            ensure!(failed.into_inner() == 0);
            if !options.is_empty() {
                keeper.wait_persisted(misses as u64)?;
            }
            let after = used(child)?;
            println!(
                "{size} bytes{options}: {:.1} us of CPU time a miss, {:.0} bytes written",
                (after.0 - before.0) as f64 * 1000.0 / misses as f64,
                (after.1 - before.1) as f64 / misses as f64
            );
            keeper.stop()?;
        }
    }
    Ok(())
}
