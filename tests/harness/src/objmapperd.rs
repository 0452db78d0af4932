//! A real objmapperd on a Unix socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use objmapper_client::{Client, Stat};

use crate::artefacts;
use crate::proc::all_stopped;
use crate::process::{PATIENCE, Process, wait_for};

/// An objmapperd that does not get on. Goes on when dropped.
#[derive(Debug)]
pub struct Stalled(Pid);

impl Drop for Stalled {
    fn drop(&mut self) {
        // It may have been killed meanwhile; then there is nothing to let go on.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A running objmapperd. Stopped when dropped.
#[derive(Debug)]
pub struct Objmapperd {
    process: Option<Process>,
    dir: PathBuf,
    tiers: Vec<String>,
    /// What a shell does before it becomes the daemon, in a mount namespace of its own.
    mount: Option<String>,
}

impl Objmapperd {
    /// Starts one with its socket and log in `dir` and a memory tier of `memory` (`1g`).
    pub fn start(dir: &Path, memory: &str) -> Result<Self> {
        Self::with_tiers(dir, vec!["--memory".to_owned(), memory.to_owned()])
    }

    /// [`Objmapperd::start`] with a memory tier of 1 GiB and more arguments.
    pub fn start_with(dir: &Path, arguments: &[&str]) -> Result<Self> {
        let mut daemon = Self { process: None, dir: dir.to_owned(), tiers: Vec::new(), mount: None };
        daemon.start_again_with(arguments)?;
        Ok(daemon)
    }

    /// Starts the daemon with a memory tier of 1 GiB and these arguments instead of those that it had.
    pub fn start_again_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.tiers = [&["--memory", "1g"], arguments].concat().into_iter().map(str::to_owned).collect();
        self.start_again()
    }

    /// What it has logged, of former runs too.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("objmapperd.log")).unwrap_or_default()
    }

    /// Starts one with a disk tier of `size` alone, in the directory `store` below `dir`.
    pub fn start_on_disk(dir: &Path, size: &str) -> Result<Self> {
        let store = dir.join("store").display().to_string();
        Self::with_tiers(dir, vec!["--dir".to_owned(), store, "--disk".to_owned(), size.to_owned()])
    }

    /// [`Objmapperd::start_on_disk`], on a file system that has only `room`. Takes root.
    pub fn start_on_small_disk(dir: &Path, size: &str, room: &str) -> Result<Self> {
        let store = dir.join("store").display().to_string();
        std::fs::create_dir(&store)?;
        let tiers = vec!["--dir".to_owned(), store.clone(), "--disk".to_owned(), size.to_owned()];
        let mount = format!("mount -t tmpfs -o mode=0755,size={room} objm {store} && exec \"$@\"");
        let mut daemon = Self { process: None, dir: dir.to_owned(), tiers, mount: Some(mount) };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// The directory of the bodies of [`Objmapperd::start_on_disk`].
    pub fn bodies(&self) -> PathBuf {
        self.dir.join("store/objmapper-store/objects")
    }

    fn with_tiers(dir: &Path, tiers: Vec<String>) -> Result<Self> {
        let mut daemon = Self { process: None, dir: dir.to_owned(), tiers, mount: None };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("objm.sock")
    }

    /// What it says of itself.
    pub fn stat(&self) -> Result<Stat> {
        let client = Client::builder(self.socket()).connections(1).connect()?;
        let stat = client.stat()?;
        client.detach()?;
        Ok(stat)
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// SIGSTOP: it takes connections and requests, and answers none until the value is dropped.
    pub fn stall(&self) -> Result<Stalled> {
        let number = self.pid().context("objmapperd does not run")?;
        let pid = Pid::from_raw(i32::try_from(number)?);
        kill(pid, Signal::SIGSTOP)?;
        let stalled = Stalled(pid);
        // A thread that runs may still answer something.
        wait_for("all threads of objmapperd to stop", PATIENCE, || Ok(all_stopped(number)?.then_some(())))?;
        Ok(stalled)
    }

    /// SIGKILL. The socket's file stays, as after a crash.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.stop()?;
        }
        Ok(())
    }

    /// Starts the daemon with the arguments that it had.
    pub fn start_again(&mut self) -> Result<()> {
        let socket = self.socket();
        let program = artefacts::objmapperd()?;
        let mut command = match &self.mount {
            None => Command::new(program),
            Some(mount) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", mount, "sh"]).arg(program);
                command
            }
        };
        // varnishd's child has another uid than we, so the socket is open to everybody: it lies in a
        // directory of this test alone.
        command.arg("--socket").arg(&socket).args(["--socket-mode", "0666"]);
        command.args(&self.tiers);
        let mut process = Process::start("objmapperd", &mut command, &self.dir.join("objmapperd.log"))?;
        process.wait_ready(|| Ok(UnixStream::connect(&socket).is_ok()))?;
        self.process = Some(process);
        Ok(())
    }
}
