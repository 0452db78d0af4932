//! A real objmapperd on a Unix socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::artefacts;
use crate::process::Process;

/// A running objmapperd. Stopped when dropped.
#[derive(Debug)]
pub struct Objmapperd {
    process: Option<Process>,
    dir: PathBuf,
    memory: String,
}

impl Objmapperd {
    /// Starts one with its socket and log in `dir` and a memory tier of `memory` (`1g`).
    pub fn start(dir: &Path, memory: &str) -> Result<Self> {
        let mut daemon = Self { process: None, dir: dir.to_owned(), memory: memory.to_owned() };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("objm.sock")
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// SIGKILL. The socket's file stays, as after a crash.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts the daemon with the arguments that it had.
    pub fn start_again(&mut self) -> Result<()> {
        let socket = self.socket();
        let mut command = Command::new(artefacts::objmapperd()?);
        // varnishd's child has another uid than we, so the socket is open to everybody: it lies in a
        // directory of this test alone.
        command.arg("--socket").arg(&socket).args(["--socket-mode", "0666"]);
        command.args(["--memory", &self.memory]);
        let mut process = Process::start("objmapperd", &mut command, &self.dir.join("objmapperd.log"))?;
        process.wait_ready(|| Ok(UnixStream::connect(&socket).is_ok()))?;
        self.process = Some(process);
        Ok(())
    }
}
