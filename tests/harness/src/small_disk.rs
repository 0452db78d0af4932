//! Real file systems of a few megabytes, mounted where this test alone sees them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounts a new ext4 of so many bytes below `dir`, in a mount namespace of the calling thread and of the threads and
/// processes that it starts; it is gone with the last of them. `None`, with a line, where that cannot be done.
pub fn ext4(dir: &Path, bytes: u64, options: &[&str]) -> Option<PathBuf> {
    let image = dir.join("image");
    let made = (|| -> Result<PathBuf, String> {
        File::create(&image).and_then(|f| f.set_len(bytes)).map_err(|e| e.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(options).arg(&image))?;
        mount(dir, |mount| mount.args(["-o", "loop"]).arg(&image))
    })();
    skip("an ext4", made)
}

/// The same with a tmpfs with these options.
pub fn tmpfs(dir: &Path, options: &str) -> Option<PathBuf> {
    skip("a tmpfs", mount(dir, |mount| mount.args(["-t", "tmpfs", "-o", options, "objm"])))
}

fn skip(what: &str, made: Result<PathBuf, String>) -> Option<PathBuf> {
    made.inspect_err(|why| eprintln!("SKIPPED: {what} of its own cannot be mounted: {why}")).ok()
}

fn mount(dir: &Path, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<PathBuf, String> {
    let point = dir.join("disk");
    std::fs::create_dir(&point).map_err(|e| e.to_string())?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|e| format!("unshare: {e}"))?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))?;
    run(arguments(&mut Command::new("mount")).arg(&point))?;
    Ok(point)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Fills a file system to its last block with a file in `dir`, which is not the store's.
pub fn fill(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut file = File::create(dir.join("filler"))?;
    let mut piece = 1 << 20;
    while piece > 0 {
        match file.write(&vec![7; piece]) {
            Ok(n) if n == piece => {}
            _ => piece /= 2,
        }
    }
    // What was only allocated in memory.
    file.sync_all()
}

/// Takes every inode that is left, with files in `dir`; returns how many.
pub fn take_inodes(dir: &Path) -> std::io::Result<u64> {
    std::fs::create_dir_all(dir)?;
    let mut n = 0;
    while File::create(dir.join(n.to_string())).is_ok() {
        n += 1;
    }
    Ok(n)
}
