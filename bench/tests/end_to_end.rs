//! The program as a user runs it, with real caches, as small as it gets: what it measures is noise, what it does is not.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use objmapper_bench::figures::{Figure, Section};
use objmapper_bench::peers::{BASELINE, MEMORY, NOISE};
use objmapper_bench::report::Report;
use objmapper_bench::work::client;

/// Without nginx, which only the benchmark's own set-up installs.
const PEERS: &str = "memory";

/// The program, as small as it gets, with its directories below `dir`.
fn command(dir: &Path, parts: &str) -> Result<Command> {
    let work = dir.join("work");
    std::fs::create_dir(&work)?;
    open_to_all(dir)?;
    open_to_all(&work)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command
        .args(["--quick", "--keep-reporting", "--rounds", "2", "--seconds", "0.02", "--working-set", "32"])
        .args(["--peers", PEERS, "--only", parts, "--work-dir"])
        .arg(&work)
        .arg("--out")
        .arg(dir.join("out"));
    Ok(command)
}

/// What it wrote below `dir`, when it has ended.
fn report(dir: &Path) -> Result<Report> {
    ensure!(dir.join("out/report.html").is_file(), "no page");
    ensure!(std::fs::read_dir(dir.join("work"))?.next().is_none(), "files were left behind");
    Report::read(&dir.join("out/report.json"))
}

fn section<'r>(report: &'r Report, key: &str) -> Result<&'r Section> {
    report.sections.iter().find(|s| s.key == key).with_context(|| format!("no part {key}"))
}

fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?)
}

#[test]
fn caches_are_measured_in_turn_and_reported() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = command(dir.path(), "mixed,client")?.output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{text}");
    let report = report(dir.path()).context(text)?;
    let mixed = section(&report, "mixed")?;
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
    let rate =
        section(&report, "client")?.spread(client::PIPELINED, client::WITH_FDS, Figure::Rate).context("look-ups")?;
    ensure!(rate.low > 0.0, "{rate:?}");
    ensure!(report.verdicts.iter().any(|v| v.target.contains("pipelined")), "{:?}", report.verdicts);
    ensure!(report.facts.lines.iter().any(|(name, _)| name == "pinning"), "{:?}", report.facts);
    Ok(())
}

#[test]
fn an_interrupted_run_reports_what_it_has() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut bench = command(dir.path(), "client,mixed")?.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut text = String::new();
    let mut stderr = BufReader::new(bench.stderr.take().context("no stderr")?);
    while !text.contains("client: done") {
        ensure!(stderr.read_line(&mut text)? > 0, "it ended too early: {text}");
    }
    // Caches are being started.
    kill(Pid::from_raw(i32::try_from(bench.id())?), Signal::SIGINT)?;
    stderr.read_to_string(&mut text)?;
    ensure!(!bench.wait()?.success(), "an interrupted run succeeded");
    ensure!(text.contains("error: part mixed: interrupted"), "{text}");
    let report = report(dir.path()).context(text)?;
    ensure!(
        report.remarks.iter().any(|r| r.contains("ended early, in part mixed: interrupted")),
        "{:?}",
        report.remarks
    );
    let rate = section(&report, "client")?.spread(client::PIPELINED, client::WITH_FDS, Figure::Rate);
    ensure!(rate.is_some_and(|r| r.low > 0.0), "{rate:?}");
    ensure!(section(&report, "mixed").is_err(), "a part without figures is shown");
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
