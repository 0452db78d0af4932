//! What a director uses ends when no VCL has it any more; a reload that keeps its prefix keeps its connections.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::proc::{open_fds, threads_named};
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(120);
/// VCLs that are loaded and discarded.
const RELOADS: usize = 8;
/// The connections of each prefix.
const CONNECTIONS: usize = 4;

/// What the directors of a varnishd use: descriptors and threads of its own, descriptors of objmapperd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
struct Used {
    descriptors: usize,
    threads: usize,
    peer: usize,
}

struct Stage {
    varnishd: Varnishd,
    daemon: Objmapperd,
    directory: tempfile::TempDir,
}

fn vcl(dir: &Path, socket: &Path, prefix: &str) -> String {
    format!(
        "vcl 4.1;\nimport objmapper from \"{}/libvmod_objmapper.so\";\nbackend b {{ .host = \"127.0.0.1\"; .port = \"9\"; }}\n\
         sub vcl_init {{ new om = objmapper.director(\"{}\", \"{prefix}\"); om.set_backend(b); }}\n",
        dir.display(),
        socket.display()
    )
}

impl Stage {
    fn set() -> Result<Self> {
        let directory = open_directory()?;
        let dir = directory.path();
        artefacts::stage(&artefacts::vmod()?, dir)?;
        let daemon = Objmapperd::start(dir, "64m")?;
        let vcl = vcl(dir, &daemon.socket(), "kept");
        let storage = ["s0=malloc,10m".to_owned()];
        let varnishd = Varnishd::start(dir, &Options::new(Arrangement::Malloc, &storage, &vcl))?;
        let stage = Self { varnishd, daemon, directory };
        stage.wait_up("boot")?;
        Ok(stage)
    }

    fn used(&self) -> Result<Used> {
        let child = self.varnishd.child_pid()?;
        Ok(Used {
            descriptors: open_fds(child)?,
            threads: threads_named(child, "objm-")?,
            peer: open_fds(self.daemon.pid().context("objmapperd does not run")?)?,
        })
    }

    /// Waits until all connections of a VCL's director are there.
    fn wait_up(&self, name: &str) -> Result<()> {
        wait_for("the director to be up", BOUND, || {
            let list = self.varnishd.cli(&["backend.list", "-p", &format!("{name}.om")])?;
            Ok(list.contains("State:    up").then_some(()))
        })
    }

    fn load(&self, name: &str, prefix: &str) -> Result<()> {
        let path = self.directory.path().join(format!("{name}.vcl"));
        std::fs::write(&path, vcl(self.directory.path(), &self.daemon.socket(), prefix))?;
        self.varnishd.cli(&["vcl.load", name, &path.display().to_string()])?;
        self.wait_up(name)
    }

    /// Waits until no more is used than that.
    fn wait_used(&self, most: Used) -> Result<()> {
        let settled = wait_for("what is not used to end", BOUND, || {
            let used = self.used()?;
            Ok((used.descriptors <= most.descriptors && used.threads <= most.threads && used.peer <= most.peer)
                .then_some(()))
        });
        settled.with_context(|| format!("{:?} of {most:?}", self.used()))
    }

    fn connected(&self, prefix: &str) -> usize {
        self.varnishd.output().lines().filter(|l| l.contains(prefix) && l.contains("objmapper is up")).count()
    }
}

#[test]
fn what_a_discarded_vcl_used_ends() -> Result<()> {
    let stage = Stage::set()?;
    let one = stage.used()?;
    for round in 0..RELOADS {
        let name = format!("other{round}");
        stage.load(&name, &name)?;
    }
    let many = stage.used()?;
    ensure!(many.threads >= one.threads + 3 * RELOADS, "{many:?} after {one:?}: the test sees no threads");
    ensure!(many.descriptors >= one.descriptors + RELOADS && many.peer >= one.peer + RELOADS, "{many:?} after {one:?}");
    for round in 0..RELOADS {
        stage.varnishd.cli(&["vcl.discard", &format!("other{round}")])?;
    }
    // Further connections of the first one were made meanwhile.
    let (descriptors, peer) = (one.descriptors + CONNECTIONS, one.peer + CONNECTIONS);
    stage.wait_used(Used { descriptors, peer, ..one })?;
    ensure!(!stage.varnishd.output().contains("is down"), "an end is no outage: {}", stage.varnishd.output());
    // What is used stays: also a prefix that had ended comes back.
    ensure!(stage.varnishd.cli(&["backend.list", "-p", "boot.om"])?.contains("State:    up"), "the kept one is gone");
    stage.load("again", "other0")?;
    ensure!(stage.connected("other0") == 2, "{}", stage.varnishd.output());
    ensure!(stage.connected("kept") == 1, "{}", stage.varnishd.output());
    stage.varnishd.stop()
}

#[test]
fn a_reload_keeps_the_connections() -> Result<()> {
    let stage = Stage::set()?;
    let mut former = "boot".to_owned();
    let mut threads = None;
    for round in 0..RELOADS {
        let name = format!("reload{round}");
        stage.load(&name, "kept")?;
        stage.varnishd.cli(&["vcl.use", &name])?;
        stage.varnishd.cli(&["vcl.discard", &former])?;
        former = name;
        let now = threads_named(stage.varnishd.child_pid()?, "objm-")?;
        ensure!(threads.replace(now).is_none_or(|before| before == now), "{now} threads, {threads:?}");
    }
    ensure!(stage.connected("kept") == 1, "it was connected anew: {}", stage.varnishd.output());
    stage.varnishd.stop()
}
