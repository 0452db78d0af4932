//! The program as a user runs it, with real caches, as small as it gets: what it measures is noise, what it does is not.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use objmapper_bench::figures::Figure;
use objmapper_bench::peers::{BASELINE, MEMORY, NOISE};
use objmapper_bench::report::Report;
use objmapper_bench::work::client;

/// Without nginx, which only the benchmark's own set-up installs.
const PEERS: &str = "memory";

fn bench(dir: &Path, parts: &str) -> Result<Report> {
    let (work, out) = (dir.join("work"), dir.join("out"));
    std::fs::create_dir(&work)?;
    open_to_all(dir)?;
    open_to_all(&work)?;
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--quick", "--keep-reporting", "--rounds", "2", "--seconds", "0.02", "--working-set", "32"])
        .args(["--peers", PEERS, "--only", parts, "--work-dir"])
        .arg(&work)
        .arg("--out")
        .arg(&out)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{text}");
    ensure!(out.join("report.html").is_file(), "no page");
    ensure!(std::fs::read_dir(&work)?.next().is_none(), "files were left behind");
    Report::read(&out.join("report.json")).context(text)
}

fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?)
}

#[test]
fn caches_are_measured_in_turn_and_reported() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let report = bench(dir.path(), "mixed,client")?;
    let section = |key: &str| report.sections.iter().find(|s| s.key == key).with_context(|| format!("no part {key}"));
    let mixed = section("mixed")?;
    for peer in [BASELINE, NOISE, MEMORY] {
        for figure in [Figure::GbPerSecond, Figure::CpuPerGb, Figure::P99, Figure::Resident] {
            let values = mixed.values("zipf", peer, figure).with_context(|| format!("{peer} has no {figure:?}"))?;
            ensure!(values.len() == 2 && values.iter().all(|v| *v > 0.0), "{peer}: {figure:?} {values:?}");
        }
        // More objects than fit: neither all of them hit nor none.
        let rate = mixed.spread("zipf", peer, Figure::HitRate).context("hit rate")?;
        ensure!(rate.median > 0.05 && rate.median < 0.999, "{peer}: hit rate {rate:?}");
    }
    ensure!(mixed.rows.iter().all(|row| row.remarks.is_empty()), "{:?}", mixed.rows);
    let rate = section("client")?.spread(client::PIPELINED, client::WITH_FDS, Figure::Rate).context("look-ups")?;
    ensure!(rate.low > 0.0, "{rate:?}");
    ensure!(report.verdicts.iter().any(|v| v.target.contains("pipelined")), "{:?}", report.verdicts);
    ensure!(report.facts.lines.iter().any(|(name, _)| name == "pinning"), "{:?}", report.facts);
    Ok(())
}

#[test]
fn what_cannot_be_is_said() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let run = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).arg("--out").arg(dir.path()).output()?;
        ensure!(!output.status.success(), "{arguments:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let text = run(&["--server-cpus", "9999999"])?;
    ensure!(text.contains("9999999"), "{text}");
    let text = run(&["--from", "/no/such/report.json"])?;
    ensure!(text.contains("/no/such/report.json"), "{text}");
    Ok(())
}
