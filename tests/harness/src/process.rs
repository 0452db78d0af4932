//! A child process that is ended with its owner, and waiting for conditions.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

/// How long a program may take to become ready, and to end.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running program whose output goes to a file. Ended when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with standard output and error appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let err = out.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start {name} ({command:?})"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the program has printed so far.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `ready` says so; an error with the program's output if it ends or takes too long.
    pub fn wait_ready(&mut self, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if ready()? {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it was ready:\n{}", self.name, self.output());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {PATIENCE:?}:\n{}", self.name, self.output());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end; SIGKILL when that takes too long.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end().with_context(|| format!("cannot stop {}", self.name))
    }

    /// Whether the program has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let deadline = Instant::now() + PATIENCE;
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGTERM)?;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The end of a test: there is nobody left to tell that the program was gone already.
        let _ = self.end();
    }
}

const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` gives a value; an error that names `what` when it does not within `bound`.
pub fn wait_for<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {bound:?} for {what}");
        }
        std::thread::sleep(POLL);
    }
}

/// A directory that every user may enter and read, as varnishd's child runs as another user than its
/// manager. Removed when dropped.
///
/// From then on this process, and what it starts, makes files that every user may read: varnishtest's directories
/// have modes by the umask, and varnishd's jail has to enter them.
pub fn open_directory() -> Result<tempfile::TempDir> {
    umask(Mode::from_bits_truncate(0o022));
    let parent = open_parent(std::env::temp_dir())?;
    let dir = tempfile::Builder::new().prefix("objm.").tempdir_in(parent)?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// The directory for temporary files, or `/tmp` if other users cannot reach that one (a TMPDIR below a home directory).
fn open_parent(preferred: PathBuf) -> Result<PathBuf> {
    let fallback = PathBuf::from("/tmp");
    for dir in [preferred, fallback] {
        let is_open = |dir: &Path| dir.metadata().is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        if dir.canonicalize().is_ok_and(|dir| dir.ancestors().all(is_open)) {
            return Ok(dir);
        }
    }
    bail!("no directory for temporary files that other users can enter: neither TMPDIR nor /tmp")
}
