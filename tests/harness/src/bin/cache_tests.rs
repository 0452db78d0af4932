//! The public suite http-cache-tests (<https://cache-tests.fyi>, from the npm registry) against varnishd with `-s malloc` alone, and
//! with the engine, the director and `objmapper.vcl`: the difference, test by test.
//!
//! `cache-tests [--arrangement NAME]...`

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{Process, open_directory};
use objmapper_harness::varnishd::{Options, Varnishd};

const PACKAGE: &str = "http-cache-tests";
/// The version that is compared: results of one say nothing of another.
const VERSION: &str = "0.4.5";
/// A test that differs is run so often again, in both arrangements: the suite waits for seconds to pass.
const REPEATS: usize = 2;

/// Results by the test's name: `true`, or category and message.
type Results = BTreeMap<String, serde_json::Value>;

fn main() -> Result<()> {
    let arrangements = arguments()?;
    let suite = install()?;
    let dir = open_directory()?;
    let origin = Origin::start(&suite, dir.path())?;
    let malloc = Stage::set(dir.path(), Arrangement::Malloc, origin.address)?;
    let baseline = malloc.run(&suite, &[])?;
    println!("malloc: {} of {} tests pass", passed(&baseline), baseline.len());
    let mut worse = 0;
    for arrangement in arrangements {
        let stage = Stage::set(dir.path(), arrangement, origin.address)?;
        let results = stage.run(&suite, &[])?;
        ensure!(results.len() == baseline.len(), "{} tests were run, {} with malloc", results.len(), baseline.len());
        let mut different = differences(&baseline, &results);
        for _ in 0..REPEATS {
            if different.is_empty() {
                break;
            }
            let ids: Vec<_> = different.keys().cloned().collect();
            let still = differences(&malloc.run(&suite, &ids)?, &stage.run(&suite, &ids)?);
            different = still;
        }
        println!("{}: {} tests pass, {} differ from malloc", arrangement.name(), passed(&results), different.len());
        for (id, [with_malloc, with_engine]) in &different {
            println!("  {id}\n    malloc: {with_malloc}\n    {}: {with_engine}", arrangement.name());
        }
        worse += different.len();
        let counters = stage.varnishd.counters("OBJM.boot.om.")?;
        let counter = |name: &str| counters.get(name).copied().unwrap_or(0);
        let (published, hits, renewed) = (counter("c_published"), counter("c_hits"), counter("c_revalidated"));
        println!("{}: {published} responses published, {hits} hits, {renewed} revalidated", arrangement.name());
        ensure!(published > 0, "the director published nothing: {counters:?}");
        ensure!(stage.varnishd.panic().is_none(), "varnishd has panicked:\n{}", stage.varnishd.output());
    }
    if worse > 0 {
        bail!("{worse} results differ from malloc's");
    }
    println!("no difference");
    Ok(())
}

fn arguments() -> Result<Vec<Arrangement>> {
    let mut arrangements = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        ensure!(word == "--arrangement", "unknown argument {word:?}; known: --arrangement NAME");
        let name = words.next().context("--arrangement wants a value")?;
        arrangements.push(Arrangement::parse(&name).with_context(|| format!("no arrangement {name:?}"))?);
    }
    if arrangements.is_empty() {
        arrangements = vec![Arrangement::Embedded, Arrangement::DaemonT0];
    }
    Ok(arrangements)
}

/// The suite's directory; installs it first if it is not there.
fn install() -> Result<PathBuf> {
    let work = artefacts::target_dir().join("cache-tests");
    let suite = work.join("node_modules").join(PACKAGE);
    if !suite.join("package.json").is_file() {
        std::fs::create_dir_all(&work)?;
        let output = Command::new("npm")
            .args(["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev", "--prefix"])
            .arg(&work)
            .arg(format!("{PACKAGE}@{VERSION}"))
            .output()
            .context("npm cannot be started: install Node.js (>= 14.8) and npm")?;
        ensure!(output.status.success(), "npm install: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = std::fs::read_to_string(suite.join("package.json"))?;
    let package: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(package["version"] == VERSION, "{} is not {VERSION}: remove {}", package["version"], work.display());
    Ok(suite)
}

fn script(name: &str) -> PathBuf {
    artefacts::workspace().join("tests/cache-tests").join(name)
}

/// The suite's own origin, which answers as each test wants.
struct Origin {
    _process: Process,
    address: SocketAddr,
}

impl Origin {
    fn start(suite: &Path, dir: &Path) -> Result<Origin> {
        let log = dir.join("origin.log");
        let mut command = Command::new("node");
        command.arg("--no-warnings").arg("--require").arg(script("loopback.cjs")).arg("server/server.mjs");
        command.current_dir(suite).env("npm_config_protocol", "http").env("npm_config_port", "0");
        command.env("npm_config_pidfile", dir.join("origin.pid"));
        let mut process = Process::start("the suite's server", &mut command, &log)?;
        let mut address = None;
        process.wait_ready(|| {
            let text = std::fs::read_to_string(&log)?;
            let url = text.lines().find_map(|line| line.strip_prefix("Listening on http://"));
            address = url.and_then(|url| url.trim_end_matches('/').parse().ok());
            Ok(address.is_some())
        })?;
        Ok(Origin { _process: process, address: address.context("the suite's server listens nowhere")? })
    }
}

/// A varnishd in front of the suite's origin.
struct Stage {
    varnishd: Varnishd,
    _daemon: Option<Objmapperd>,
}

impl Stage {
    fn set(dir: &Path, arrangement: Arrangement, origin: SocketAddr) -> Result<Stage> {
        let dir = dir.join(arrangement.name());
        std::fs::create_dir(&dir)?;
        let backend = format!("backend origin {{ .host = \"{}\"; .port = \"{}\"; }}", origin.ip(), origin.port());
        let vcl = if arrangement.has_engine() {
            // varnishd compiles VCL as another user, who may not see where we are built.
            let vmod = artefacts::stage(&artefacts::vmod()?, &dir)?;
            let include = artefacts::stage(&artefacts::workspace().join("vcl/objmapper.vcl"), &dir)?;
            format!(
                "vcl 4.1;\nimport objmapper from \"{}\";\ninclude \"{}\";\n{backend}\n\
                 sub vcl_init {{ new om = objmapper.director(); om.set_backend(origin); }}\n\
                 sub vcl_recv {{ set req.backend_hint = om.backend(); }}\n",
                vmod.display(),
                include.display()
            )
        } else {
            format!("vcl 4.1;\n{backend}\n")
        };
        let daemon = arrangement.has_daemon().then(|| Objmapperd::start(&dir, "1g")).transpose()?;
        let socket = daemon.as_ref().map(Objmapperd::socket);
        let storage = [arrangement.storage("s0", "200m", socket.as_deref(), "")];
        let options = Options::new(arrangement, &storage, &vcl);
        Ok(Stage { varnishd: Varnishd::start(&dir, &options)?, _daemon: daemon })
    }

    /// The results of these tests; of all without any.
    fn run(&self, suite: &Path, ids: &[String]) -> Result<Results> {
        let output = Command::new("node")
            .arg("--no-warnings")
            .arg(script("run.mjs"))
            .arg(suite)
            .arg(self.varnishd.url(""))
            .args(ids)
            .output()
            .context("node cannot be started: install Node.js (>= 14.8)")?;
        ensure!(output.status.success(), "the suite: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).context("the suite's results cannot be read")
    }
}

fn passed(results: &Results) -> usize {
    results.values().filter(|result| **result == serde_json::Value::Bool(true)).count()
}

/// Tests whose results are not of one category, with both results.
fn differences(malloc: &Results, engine: &Results) -> BTreeMap<String, [serde_json::Value; 2]> {
    let ids: BTreeSet<_> = malloc.keys().chain(engine.keys()).collect();
    let both = |id: &String| [malloc, engine].map(|results| results.get(id).cloned().unwrap_or_default());
    let category = |result: &serde_json::Value| result.get(0).unwrap_or(result).clone();
    ids.into_iter().map(|id| (id.clone(), both(id))).filter(|(_, [a, b])| category(a) != category(b)).collect()
}
