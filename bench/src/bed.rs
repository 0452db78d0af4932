//! The test bed: the origin, the CPUs, the directory, and the one way in which a peer is measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use objmapper_harness::artefacts;
use tempfile::TempDir;

use crate::load::{self, Load, Outcome};
use crate::machine::cpus::Cpus;
use crate::machine::interrupt;
use crate::options::Options;
use crate::origin::Origin;
use crate::plan::Plan;
use crate::proc::Cpu;
use crate::progress::Progress;

/// Everything that the parts of a run have in common.
#[derive(Debug)]
pub struct Bed {
    /// Where misses go.
    pub origin: Origin,
    /// CPUs of every server.
    pub servers: Cpus,
    /// CPUs of the load and of the origin.
    pub load: Cpus,
    /// How much is measured.
    pub plan: Plan,
    /// The terminal.
    pub progress: Progress,
    /// Our storage engine, where varnishd's user can read it.
    pub engine: PathBuf,
    /// Our VMOD, likewise.
    pub vmod: PathBuf,
    /// The peers that are asked for, by parts of their names; all, if there are none.
    pub peers: Vec<String>,
    directory: TempDir,
}

/// One measurement.
#[derive(Debug)]
pub struct Measured {
    /// What the client saw.
    pub outcome: Outcome,
    /// CPU time of the server's processes.
    pub cpu: Cpu,
    /// Requests that came to the origin.
    pub origin_requests: u64,
}

impl Measured {
    /// Adds what was measured later.
    pub fn add(&mut self, later: Self) -> Result<()> {
        self.outcome.add(later.outcome)?;
        self.cpu = self.cpu.plus(&later.cpu);
        self.origin_requests += later.origin_requests;
        Ok(())
    }
}

impl Bed {
    /// Prepares everything.
    pub fn new(options: &Options, plan: Plan) -> Result<Self> {
        let (first, second) = Cpus::allowed()?.halves();
        let servers = options.server_cpus.clone().unwrap_or(first);
        let load = options.load_cpus.clone().unwrap_or(second);
        let origin = Origin::start(&load)?;
        let parent = options.work_dir.clone().unwrap_or_else(std::env::temp_dir);
        let directory = open_directory(&parent)?;
        let progress = Progress::default();
        let peers = options.peers.clone();
        // What is built below a home directory can be read by its owner only.
        let engine = copied(&artefacts::engine()?, directory.path())?;
        let vmod = copied(&artefacts::vmod()?, directory.path())?;
        Ok(Self { origin, servers, load, plan, progress, engine, vmod, peers, directory })
    }

    /// A new directory that every user may read, as varnishd's child runs as another user than its manager. Removed when
    /// dropped.
    pub fn directory(&self) -> Result<TempDir> {
        open_directory(self.directory.path())
    }

    /// Puts a load on a server and takes the CPU time of its processes.
    pub fn measure(&self, pids: &[u32], load: &Load) -> Result<Measured> {
        interrupt::check()?;
        let origin_before = self.origin.requests();
        let before = Cpu::of(pids)?;
        let outcome = load::run(load, &self.load)?;
        let cpu = Cpu::of(pids)?.since(&before);
        interrupt::check()?;
        if outcome.requests == 0 {
            bail!("no request succeeded: {}", outcome.first_error.as_deref().unwrap_or("none was sent"));
        }
        Ok(Measured { outcome, cpu, origin_requests: self.origin.requests() - origin_before })
    }
}

fn copied(file: &Path, into: &Path) -> Result<PathBuf> {
    let copy = into.join(file.file_name().context("no file")?);
    std::fs::copy(file, &copy).with_context(|| format!("copy of {}", file.display()))?;
    Ok(copy)
}

fn open_directory(parent: &Path) -> Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("objm.").tempdir_in(parent);
    let dir = dir.with_context(|| format!("a directory in {}", parent.display()))?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// Where a relative path of the command line is meant from: cargo runs us in the caller's directory, make in the workspace's.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(std::path::absolute(path)?)
}
