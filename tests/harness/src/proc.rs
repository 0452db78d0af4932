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

fn proc(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}
