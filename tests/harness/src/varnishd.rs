//! A plain varnishd, outside varnishtest.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::arrangement::Arrangement;
use crate::process::{Process, wait_for};

/// What a varnishd is started with.
#[derive(Debug)]
pub struct Options<'a> {
    /// Whether, and with which library, a storage engine is loaded.
    pub arrangement: Arrangement,
    /// The `-s` arguments.
    pub storage: &'a [String],
    /// Where it listens besides 127.0.0.1, as `-a` takes it.
    pub listen: &'a [&'a str],
    /// The VCL's text.
    pub vcl: &'a str,
    /// Parameters, `name=value`.
    pub parameters: &'a [&'a str],
    /// As whom it runs; `None`: as we do, with varnishd's own jail.
    pub user: Option<User>,
    /// How many descriptors each of its processes may have; `None`: as many as we.
    pub descriptors: Option<u32>,
}

impl<'a> Options<'a> {
    /// The options of a varnishd with nothing but storage and VCL: it listens on loopback only, with its own parameters and
    /// jail, and this process's limit on descriptors.
    pub fn new(arrangement: Arrangement, storage: &'a [String], vcl: &'a str) -> Self {
        Self { arrangement, storage, listen: &[], vcl, parameters: &[], user: None, descriptors: None }
    }
}

/// An ordinary user, for a varnishd without a jail.
#[derive(Debug, Clone, Copy)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A running varnishd, manager and child. Stopped when dropped.
#[derive(Debug)]
pub struct Varnishd {
    process: Process,
    workdir: PathBuf,
    address: SocketAddr,
}

impl Varnishd {
    /// Starts one with its files in `dir` and waits until it takes connections.
    pub fn start(dir: &Path, options: &Options<'_>) -> Result<Self> {
        Self::start_behind(dir, options, &[])
    }

    /// [`Varnishd::start`], by the command `prefix`, which runs what follows it.
    pub fn start_behind(dir: &Path, options: &Options<'_>, prefix: &[&str]) -> Result<Self> {
        let vcl = dir.join("test.vcl");
        std::fs::write(&vcl, options.vcl)?;
        let workdir = dir.join("v");
        let load = options.arrangement.load_argument(dir)?;
        let mut command = match options.user {
            None => match options.descriptors {
                None => Command::new("varnishd"),
                Some(limit) => {
                    let mut command = Command::new("prlimit");
                    command.arg(format!("--nofile={limit}")).arg("varnishd");
                    command
                }
            },
            Some(user) => {
                std::fs::create_dir(&workdir)?;
                std::os::unix::fs::chown(&workdir, Some(user.uid), Some(user.gid))?;
                // No groups, and no capability to win back.
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
                command.args(["--clear-groups", "--no-new-privs", "--inh-caps=-all", "varnishd", "-jnone"]);
                command
            }
        };
        command.arg("-F").arg("-n").arg(&workdir).args(["-a", "127.0.0.1:0", "-f"]).arg(&vcl);
        if !load.is_empty() {
            command.arg(load);
        }
        for address in options.listen {
            command.args(["-a", address]);
        }
        for storage in options.storage {
            command.args(["-s", storage]);
        }
        // A worker thread keeps the VCL of its last request while it is idle, and vinyld stops only when none is in use.
        command.args(["-p", "debug=+vclrel"]);
        for parameter in options.parameters {
            command.args(["-p", parameter]);
        }
        if let Some((program, arguments)) = prefix.split_first() {
            let inner = command;
            command = Command::new(program);
            command.args(arguments).arg(inner.get_program()).args(inner.get_args());
        }
        let mut process = Process::start("varnishd", &mut command, &dir.join("varnishd.log"))?;
        let mut address = None;
        process.wait_ready(|| {
            address = listen_address(&workdir);
            Ok(address.is_some_and(|a| TcpStream::connect(a).is_ok()))
        })?;
        let address = address.context("varnishd listens nowhere")?;
        Ok(Self { process, workdir, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What the manager and the child have printed.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Stops it as an operator does, and waits for the end; an error unless that is a success.
    pub fn stop(self) -> Result<()> {
        let status = self.process.stop()?;
        if !status.success() {
            bail!("varnishd ended with {status}");
        }
        Ok(())
    }

    /// Kills manager and child at once, as the end of their machine's power does, but for the kernel's memory.
    pub fn kill(self) -> Result<()> {
        let child = self.child_pid()?;
        // The manager must not start another child.
        self.process.signal(Signal::SIGSTOP)?;
        kill(Pid::from_raw(i32::try_from(child)?), Signal::SIGKILL)?;
        self.process.kill()?;
        // The kernel has closed what the child had open when its parent, whoever that is now, can have its status.
        wait_for("the child to be gone", Duration::from_secs(20), || {
            Ok((!Path::new(&format!("/proc/{child}/fd")).exists() || is_zombie(child)).then_some(()))
        })
    }

    /// Kills the child, and waits until the manager has started another one that takes connections.
    pub fn kill_child(&self) -> Result<()> {
        let child = self.child_pid()?;
        kill(Pid::from_raw(i32::try_from(child)?), Signal::SIGKILL)?;
        self.wait_other_child(child)
    }

    /// Waits until the manager has started another child than this one, and it takes connections.
    pub fn wait_other_child(&self, child: u32) -> Result<()> {
        wait_for("another child", Duration::from_secs(60), || {
            let other = self.child_pid().ok().filter(|pid| *pid != child);
            Ok(other.filter(|_| TcpStream::connect(self.address).is_ok()))
        })?;
        Ok(())
    }

    /// A CLI command's answer; an error when the CLI refuses it.
    pub fn cli(&self, command: &[&str]) -> Result<String> {
        varnishadm(&self.workdir, command)
    }

    /// The child's process id.
    pub fn child_pid(&self) -> Result<u32> {
        let answer = self.cli(&["pid"])?;
        let worker = answer.lines().find_map(|line| line.strip_prefix("Worker:"));
        worker.context("there is no child")?.trim().parse().context("unreadable pid")
    }

    /// The panic message, if the child has panicked.
    pub fn panic(&self) -> Option<String> {
        self.cli(&["panic.show"]).ok()
    }

    /// A counter's value by its full name (`MAIN.cache_hit`, `SMA.s0.g_bytes`).
    pub fn counter(&self, name: &str) -> Result<u64> {
        let output =
            Command::new("varnishstat").arg("-n").arg(&self.workdir).args(["-1", "-j", "-f", name]).output()?;
        let stats: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("varnishstat has no {name}: {output:?}"))?;
        stats["counters"][name]["value"].as_u64().with_context(|| format!("no counter {name} in {stats}"))
    }

    /// All that varnishstat knows of all counters, as JSON.
    pub fn statistics(&self) -> Result<serde_json::Value> {
        let output = Command::new("varnishstat").arg("-n").arg(&self.workdir).args(["-1", "-j"]).output()?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("varnishstat: {output:?}"))
    }

    /// All counters whose full names begin with `prefix`, by what follows it.
    pub fn counters(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let output = Command::new("varnishstat")
            .arg("-n")
            .arg(&self.workdir)
            .args(["-1", "-j", "-f", &format!("{prefix}*")])
            .output()?;
        let stats: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("varnishstat has no {prefix}*: {output:?}"))?;
        let counters = stats["counters"].as_object().with_context(|| format!("no counters in {stats}"))?;
        let value = |v: &serde_json::Value| v["value"].as_u64();
        Ok(counters.iter().filter_map(|(n, v)| Some((n.strip_prefix(prefix)?.to_owned(), value(v)?))).collect())
    }

    /// The log so far, as `varnishlog -d` prints it in groups by request.
    pub fn log(&self) -> Result<String> {
        let output = Command::new("varnishlog").arg("-n").arg(&self.workdir).args(["-d", "-g", "request"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

fn varnishadm(workdir: &Path, command: &[&str]) -> Result<String> {
    let output = Command::new("varnishadm").arg("-n").arg(workdir).args(["-t", "60"]).args(command).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("varnishadm {command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// The first address that varnishd listens on, as soon as it says one.
fn listen_address(workdir: &Path) -> Option<SocketAddr> {
    let answer = varnishadm(workdir, &["debug.listen_address"]).ok()?;
    let mut words = answer.split_whitespace().skip(1);
    let (host, port) = (words.next()?, words.next()?);
    format!("{host}:{port}").parse().ok()
}
