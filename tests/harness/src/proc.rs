//! What a process uses, from /proc.

use std::path::PathBuf;

use anyhow::Result;

/// Open file descriptors of a process.
pub fn open_fds(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(proc(pid, "fd"))?.count())
}

/// Memory mappings (VMAs) of a process.
pub fn mappings(pid: u32) -> Result<usize> {
    Ok(std::fs::read_to_string(proc(pid, "maps"))?.lines().count())
}

/// Threads of a process whose names begin with `prefix`.
pub fn threads_named(pid: u32, prefix: &str) -> Result<usize> {
    let mut count = 0;
    for thread in std::fs::read_dir(proc(pid, "task"))? {
        // A thread may end meanwhile.
        let name = std::fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        count += usize::from(name.starts_with(prefix));
    }
    Ok(count)
}

/// Returns true if all threads of a process are stopped by a signal.
pub fn all_stopped(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(proc(pid, "task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        // `pid (name) state …`; the name may hold parentheses.
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
        if state != Some("T") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn proc(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}
