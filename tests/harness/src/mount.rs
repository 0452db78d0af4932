//! Small file systems, in a mount namespace of the calling thread and of the programs that it starts.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};

/// Makes the directory `at` a file system of `size` (`64m`) that the child of a varnishd started by this thread may write
/// to. It goes with the thread and its programs. The machine must have [`Need::Mounts`](crate::needs::Need::Mounts).
pub fn small(at: &Path, size: &str) -> Result<()> {
    std::fs::create_dir_all(at)?;
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace")?;
    mount(Command::new("mount").args(["--make-rprivate", "/"]))?;
    // varnishd's jail runs the child as this user.
    let owner = nix::unistd::User::from_name("vcache")?.map_or_else(nix::unistd::getuid, |user| user.uid);
    let options = format!("mode=0755,uid={owner},size={size}");
    mount(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "objm"]).arg(at))
}

fn mount(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
