//! A plain varnishd, as an operator starts it, on the servers' CPUs.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{Process, wait_for};

use super::{Kind, Server, vcl};
use crate::bed::Bed;
use crate::machine::interrupt;

/// What every varnishd of the benchmark has. A ban frees at once, so that every round begins with an empty cache; an object
/// may evict as many as it needs, so that a mix of sizes does not fail in one engine and not in another; what lives for less
/// than ten seconds is in the storage that is measured, and not in Varnish's Transient.
pub const PARAMETERS: [&str; 6] = [
    "ban_lurker_age=0.1",
    "ban_lurker_sleep=0.01",
    "ban_lurker_batch=1000",
    "thread_pool_min=50",
    "nuke_limit=100000",
    "shortlived=0",
];

/// What a varnishd is started with.
#[derive(Debug, Default)]
pub struct Options {
    /// Whether our storage engine is loaded.
    pub engine: bool,
    /// The `-s` arguments.
    pub storage: Vec<String>,
    /// The VCL's text.
    pub vcl: String,
}

/// A running varnishd. Stopped when dropped, and after it the objmapperd that it uses.
#[derive(Debug)]
pub struct Varnishd {
    process: Process,
    workdir: PathBuf,
    address: SocketAddr,
    child: u32,
    objmapperd: Option<Objmapperd>,
}

impl Varnishd {
    /// Starts one with its files in `dir`, and waits until it takes connections.
    pub fn start(bed: &Bed, dir: &Path, options: &Options) -> Result<Self> {
        let (mut process, workdir) = Self::spawn(bed, dir, options, "127.0.0.1:0")?;
        let mut address = None;
        process.wait_ready(|| {
            address = listen_address(&workdir);
            Ok(address.is_some_and(|a| TcpStream::connect(a).is_ok()))
        })?;
        let address = address.context("varnishd listens nowhere")?;
        Self::adopt(process, workdir, address)
    }

    /// Starts the program and waits for nothing.
    pub(crate) fn spawn(bed: &Bed, dir: &Path, options: &Options, listen: &str) -> Result<(Process, PathBuf)> {
        let vcl = dir.join("bench.vcl");
        std::fs::write(&vcl, &options.vcl)?;
        let workdir = dir.join("v");
        let mut command = Command::new("varnishd");
        command.arg("-F").arg("-n").arg(&workdir).args(["-a", listen, "-f"]).arg(&vcl);
        if options.engine {
            command.arg("-E").arg(&bed.engine);
        }
        for storage in &options.storage {
            command.args(["-s", storage]);
        }
        for parameter in PARAMETERS {
            command.args(["-p", parameter]);
        }
        let process = bed.servers.run(|| Process::start("varnishd", &mut command, &dir.join("varnishd.log")))?;
        Ok((process, workdir))
    }

    /// Takes over what [`Self::spawn`] started, once it listens.
    pub(crate) fn adopt(process: Process, workdir: PathBuf, address: SocketAddr) -> Result<Self> {
        let answer = varnishadm(&workdir, &["pid"])?;
        let child = answer.lines().find_map(|line| line.strip_prefix("Worker:")).context("varnishd has no child")?;
        let child = child.trim().parse().context("unreadable pid")?;
        Ok(Self { process, workdir, address, child, objmapperd: None })
    }

    /// The peer of this kind, with a storage of `bytes`; requests may ask our engine's for the delivery filter.
    pub(crate) fn for_hits(bed: &Bed, kind: Kind, dir: &Path, bytes: u64) -> Result<Self> {
        let mut objmapperd = None;
        let storage = match kind {
            Kind::Malloc => format!("s0=malloc,{bytes}b"),
            Kind::File => format!("s0=file,{},{bytes}b", dir.join("storage").display()),
            Kind::Memory => format!("s0=objmapper,{bytes}b"),
            Kind::Disk => format!("s0=objmapper,{bytes}b,dir={}", store_directory(dir)?.display()),
            Kind::Socket => {
                // By its pages' rounding, and by the largest body, larger than what varnishd counts.
                let memory = format!("{}m", (bytes >> 20) + (bytes >> 23) + 300);
                let daemon = bed.servers.run(|| Objmapperd::start(dir, &memory))?;
                let storage = format!("s0=objmapper,{bytes}b,socket={}", daemon.socket().display());
                objmapperd = Some(daemon);
                storage
            }
            Kind::Nginx => bail!("nginx is no varnishd"),
        };
        let ours = matches!(kind, Kind::Memory | Kind::Disk | Kind::Socket);
        let vcl = match ours {
            true => vcl::with_zero_copy(bed.origin.address(), &bed.vmod),
            false => vcl::plain(bed.origin.address()),
        };
        let mut varnishd = Self::start(bed, dir, &Options { engine: ours, storage: vec![storage], vcl })?;
        varnishd.objmapperd = objmapperd;
        Ok(varnishd)
    }

    /// A CLI command's answer; an error when the CLI refuses it.
    pub fn cli(&self, command: &[&str]) -> Result<String> {
        varnishadm(&self.workdir, command)
    }

    /// The sum of all counters whose name ends so (`MAIN.cache_hit`, `.c_hits`); `None` if there is none.
    pub fn counter(&self, suffix: &str) -> Result<Option<u64>> {
        let output = Command::new("varnishstat").arg("-n").arg(&self.workdir).args(["-1", "-j"]).output()?;
        let stats: serde_json::Value = serde_json::from_slice(&output.stdout).context("varnishstat")?;
        let counters = stats["counters"].as_object().context("varnishstat has no counters")?;
        let values = counters.iter().filter(|(name, _)| name.ends_with(suffix)).map(|(_, c)| c["value"].as_u64());
        Ok(values.flatten().reduce(|a, b| a + b))
    }

    /// The lines of one kind in the log so far (vsl(7)).
    pub(crate) fn log(&self, tag: &str) -> Result<String> {
        let output =
            Command::new("varnishlog").arg("-n").arg(&self.workdir).args(["-d", "-g", "raw", "-i", tag]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Server for Varnishd {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        let daemon = self.objmapperd.as_ref().and_then(Objmapperd::pid);
        [Some(self.child), daemon].into_iter().flatten().collect()
    }

    fn clear(&mut self) -> Result<()> {
        self.cli(&["ban", "obj.status != 0"])?;
        let emptied = wait_for("an empty cache after a ban of everything", Duration::from_secs(300), || {
            interrupt::check()?;
            let empty = self.counter("MAIN.n_object")? == Some(0)
                && [".s0.g_bytes", ".s0.g_body_bytes"].iter().all(|name| {
                    // Not every engine has both.
                    matches!(self.counter(name), Ok(None | Some(0)))
                });
            Ok(empty.then_some(()))
        });
        match emptied {
            Err(why) if !interrupt::asked() => Err(why).with_context(|| self.process.output()),
            other => other,
        }
    }
}

/// A directory for a store that varnishd's child may write.
fn store_directory(dir: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let store = dir.join("store");
    std::fs::create_dir(&store)?;
    // The child runs as another user than its manager, and whoever measures owns everything above.
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o777))?;
    Ok(store)
}

fn varnishadm(workdir: &Path, command: &[&str]) -> Result<String> {
    let output = Command::new("varnishadm").arg("-n").arg(workdir).args(["-t", "10"]).args(command).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("varnishadm {command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

fn listen_address(workdir: &Path) -> Option<SocketAddr> {
    let answer = varnishadm(workdir, &["debug.listen_address"]).ok()?;
    let mut words = answer.split_whitespace().skip(1);
    let (host, port) = (words.next()?, words.next()?);
    format!("{host}:{port}").parse().ok()
}
