//! A place where files that name absolute paths and fixed ports can be used as they are: a mount and a network namespace
//! of its own, in which directories of the test stand for those of the system. Takes root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::Process;

/// The namespaces, alive as long as the value.
#[derive(Debug)]
pub struct Cell {
    holder: Process,
}

/// Mounts what its arguments say, brings the loopback interface up, says so, and stays.
const SETUP: &str = r#"
set -e
while [ "$1" != end ]; do mount --bind "$1" "$2"; shift 2; done
python3 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x1))'
echo ready
exec sleep infinity
"#;

impl Cell {
    /// Namespaces in which each second path of `mounts` shows what is in the first. Its files go to `dir`.
    pub fn new(dir: &Path, mounts: &[(PathBuf, &str)]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "sh", "-c", SETUP, "sh"]);
        for (here, there) in mounts {
            command.arg(here).arg(there);
        }
        command.arg("end");
        let log = dir.join("cell.log");
        let mut holder = Process::start("the cell", &mut command, &log)?;
        holder.wait_ready(|| Ok(std::fs::read_to_string(&log)?.lines().any(|line| line == "ready")))?;
        Ok(Self { holder })
    }

    /// A process inside.
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// A command that runs `program` inside; the process that is started becomes the program.
    pub fn command(&self, program: &str) -> Command {
        let pid = self.holder.pid();
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{pid}/ns/mnt")).arg(format!("--net=/proc/{pid}/ns/net"));
        command.args(["--", program]);
        command
    }

    /// What a command inside prints; an error unless it succeeds.
    pub fn output(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no program")?;
        let output = self.command(program).args(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }
}
