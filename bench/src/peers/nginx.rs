//! nginx with proxy_cache and sendfile, as its documentation tunes it, but for tcp_nopush: over loopback, whose segments hold
//! 64 KiB, the last part of a response then waits 40 ms for a delayed acknowledgement, and what is measured is that.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit};
use objmapper_harness::process::Process;

use super::Server;
use crate::bed::Bed;
use crate::machine::cpus::Cpus;

/// A running nginx. Stopped when dropped.
#[derive(Debug)]
pub(super) struct Nginx {
    process: Option<Process>,
    dir: PathBuf,
    address: SocketAddr,
    children: Vec<u32>,
    cpus: Cpus,
}

impl Nginx {
    /// Starts one with its cache, limited to `bytes`, and its files in `dir`.
    pub(crate) fn start(bed: &Bed, dir: &Path, bytes: u64) -> Result<Self> {
        // nginx cannot tell a port that it chose itself.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let conf = configuration(address, bed.origin.address(), dir, bytes, bed.servers.count(), files.min(65536))?;
        std::fs::write(dir.join("nginx.conf"), conf)?;
        let cpus = bed.servers.clone();
        let mut nginx = Self { process: None, dir: dir.to_owned(), address, children: Vec::new(), cpus };
        nginx.run()?;
        Ok(nginx)
    }

    fn run(&mut self) -> Result<()> {
        let mut command = Command::new("nginx");
        command
            .arg("-e")
            .arg(self.dir.join("error.log"))
            .arg("-p")
            .arg(&self.dir)
            .arg("-c")
            .arg(self.dir.join("nginx.conf"));
        let log = self.dir.join("nginx.log");
        let mut process = self.cpus.run(|| Process::start("nginx", &mut command, &log))?;
        let address = self.address;
        process.wait_ready(|| Ok(TcpStream::connect(address).is_ok()))?;
        let pid = process.pid();
        let expected = self.cpus.count() + 1;
        process.wait_ready(|| {
            self.children = children(pid)?;
            Ok(self.children.len() == expected)
        })?;
        self.process = Some(process);
        Ok(())
    }
}

impl Server for Nginx {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pids(&self) -> Vec<u32> {
        self.children.clone()
    }

    fn clear(&mut self) -> Result<()> {
        // It has no command for that: it is started again without its files.
        if let Some(process) = self.process.take() {
            process.stop()?;
        }
        std::fs::remove_dir_all(self.dir.join("cache")).context("nginx's cache")?;
        self.run()
    }
}

/// The workers and the cache's manager. The loader of an existing cache is left out: it finds none, and ends a minute
/// after the start.
fn children(pid: u32) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .context("this kernel does not tell a process's children")?;
    let mut found = Vec::new();
    for word in text.split_whitespace() {
        let title = std::fs::read(format!("/proc/{word}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title);
        // A child that has not given itself a title yet is counted when it has.
        if title.contains("worker process") || title.contains("cache manager") {
            found.push(word.parse().context("pid")?);
        }
    }
    Ok(found)
}

/// `files`: how many a worker may have open. What its cache of open files leaves is for connections: without any, nginx
/// would accept no more, and say nothing.
fn configuration(
    listen: SocketAddr,
    origin: SocketAddr,
    dir: &Path,
    bytes: u64,
    workers: usize,
    files: u64,
) -> Result<String> {
    let dir = dir.display();
    let kept_open = files.saturating_sub(1024).clamp(16, 20_000);
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(temporary, "    {kind}_temp_path {dir}/temp-{kind};")?;
    }
    Ok(format!(
        "daemon off;
worker_processes {workers};
worker_rlimit_nofile {files};
error_log {dir}/error.log;
pid {dir}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
{temporary}    proxy_cache_path {dir}/cache levels=1:2 keys_zone=bench:256m max_size={bytes} inactive=1d use_temp_path=off;
    open_file_cache max={kept_open} inactive=1d;
    open_file_cache_valid 1d;
    open_file_cache_min_uses 1;
    upstream origin {{ server {origin}; keepalive 64; keepalive_requests 1000000000; }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_cache bench;
            proxy_cache_key $request_uri;
            proxy_cache_lock on;
            proxy_cache_valid 200 1d;
        }}
    }}
}}
"
    ))
}
