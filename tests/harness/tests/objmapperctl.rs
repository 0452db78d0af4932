//! The operator's program at a real objmapperd that a varnishd uses: what it shows is what the director goes by.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::{SIZES, Stage, socket};
use objmapper_harness::process::wait_for;
use objmapper_harness::shared::status;
use objmapper_harness::site;
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(30);

struct Operator<'a> {
    stage: &'a Stage,
}

impl Operator<'_> {
    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let program = artefacts::objmapperctl()?;
        Ok(Command::new(program).arg("--socket").arg(socket(self.stage.dir())).args(arguments).output()?)
    }

    /// Runs a command, which must end with this code. Returns what it printed.
    fn expect(&self, code: i32, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = self.run(arguments)?;
        ensure!(output.status.code() == Some(code), "{arguments:?}: {output:?}");
        Ok(output.stdout)
    }

    /// Returns what `show` says of the record that answers a path.
    fn show(&self, path: &str) -> Result<Value> {
        let url = format!("http://site.example{path}");
        Ok(serde_json::from_slice(&self.expect(0, &["show", "--json", &url])?)?)
    }
}

#[test]
fn what_a_varnishd_published_is_shown_banned_purged_and_verified() -> Result<()> {
    let stage = Stage::set(Arrangement::Daemon, |dir| Objmapperd::start_on_disk(dir, "1g").map(Some))?;
    let operator = Operator { stage: &stage };
    operator.expect(0, &["check"])?;
    for size in SIZES {
        let path = stage.published(size)?;
        let shown = operator.show(&path)?;
        ensure!(shown["state"] == "fresh" && shown["kind"] == "record" && shown["tier"] == "disk", "{shown}");
        ensure!(shown["status"] == 200 && shown["body"] == size, "{shown}");
        let line = "content-type: application/octet-stream";
        ensure!(shown["headers"].as_array().is_some_and(|lines| lines.iter().any(|l| l == line)), "{shown}");
        let body = operator.expect(0, &["get", &format!("site.example{path}")])?;
        ensure!(body == site::bytes(size as u64, size), "{path}: the body differs");
    }
    let path = stage.published(SIZES[2])?;
    let listed = operator.expect(0, &["list", "--json", "/varnish/r/site.example/"])?;
    let listed: Vec<Value> = serde_json::Deserializer::from_slice(&listed).into_iter().collect::<Result<_, _>>()?;
    ensure!(listed.len() > SIZES.len(), "{listed:?}");
    operator.expect(0, &["verify"])?;

    // A pattern of varnishd's, which the director records in the background.
    stage.cache.ban(&stage.client, &format!("req.url ~ ^{}$", path.replace('?', "[?]")))?;
    wait_for("the ban to be shown", BOUND, || {
        let shown = operator.show(&path)?;
        Ok((shown["state"] == "invalidated").then_some(()))
    })?;
    ensure!(status(&stage.miss(&path)?) == "miss", "the director goes by the same ban");

    let path = stage.published(SIZES[1])?;
    operator.expect(0, &["purge", &format!("site.example{path}")])?;
    operator.expect(1, &["show", &format!("site.example{path}")])?;
    ensure!(status(&stage.miss(&path)?) == "miss", "it was purged");

    // The operator's ban is in the same log, which varnishd follows for its own cache.
    let path = stage.published(SIZES[3])?;
    operator.expect(0, &["ban", &format!("req.url ~ ^{}$", path.replace('?', "[?]"))])?;
    ensure!(status(&stage.miss(&path)?) == "miss", "it was banned");

    let path = stage.published(SIZES[0])?;
    let object = operator.show(&path)?["object"].as_u64().context("no object")?;
    damage(&stage.daemon.as_ref().context("no objmapperd")?.bodies(), object)?;
    let report = String::from_utf8(operator.expect(1, &["verify", "/varnish/"])?)?;
    ensure!(report.contains("checksum of the body") && report.contains("1 damaged, 0 removed"), "{report}");
    operator.expect(1, &["verify", "--delete"])?;
    operator.expect(0, &["verify"])?;
    ensure!(status(&stage.miss(&path)?) == "miss", "it was removed");
    stage.end()
}

/// Changes the first byte of a body.
fn damage(bodies: &Path, object: u64) -> Result<()> {
    let file = bodies.join(objmapper_client::BodyPath::new(object).as_str());
    std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    let file = File::options().read(true).write(true).open(&file)?;
    let mut first = [0];
    file.read_exact_at(&mut first, 0)?;
    Ok(file.write_all_at(&[!first[0]], 0)?)
}

#[test]
fn the_programs_say_their_version_and_their_commit() -> Result<()> {
    let is_in_git = artefacts::workspace().join(".git").exists();
    for program in [artefacts::objmapperctl()?, artefacts::objmapperd()?] {
        let output = Command::new(&program).arg("--version").output()?;
        let text = String::from_utf8(output.stdout)?;
        let mut words = text.trim().splitn(3, ' ').skip(1);
        ensure!(words.next() == Some(env!("CARGO_PKG_VERSION")), "{text}");
        let commit = words.next().and_then(|rest| rest.strip_prefix("(commit ")?.strip_suffix(')'));
        ensure!(!is_in_git || commit.is_some_and(|commit| commit.len() == 12), "{text}");
    }
    Ok(())
}
