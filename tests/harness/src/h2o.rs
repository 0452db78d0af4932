//! A real H2O that serves a directory, on loopback and on Unix sockets, with and without PROXY headers.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::artefacts;
use crate::process::Process;

/// A running H2O. Stopped when dropped.
#[derive(Debug)]
pub struct H2o {
    process: Option<Process>,
    dir: PathBuf,
    address: SocketAddr,
    proxy_address: SocketAddr,
}

/// A line of H2O's access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Who asked: the peer, or on a PROXY listener whom its header names.
    pub peer: String,
    /// The number of the connection.
    pub connection: u64,
    /// The response's status.
    pub status: u16,
    /// The request's method.
    pub method: String,
    /// The request's path and query.
    pub path: String,
}

impl H2o {
    /// Serves `root` with the configuration `tests/h2o/h2o.conf` and the listeners of
    /// `tests/h2o/listeners.conf`; its own files go to `dir`.
    pub fn start(dir: &Path, root: &Path) -> Result<Self> {
        let [address, proxy_address] = free_addresses()?;
        let mut text = String::new();
        for name in ["h2o.conf", "listeners.conf"] {
            let template = artefacts::workspace().join("tests/h2o").join(name);
            text +=
                &std::fs::read_to_string(&template).with_context(|| format!("cannot read {}", template.display()))?;
        }
        let text = text
            .replace("@PORT@", &address.port().to_string())
            .replace("@PROXY_PORT@", &proxy_address.port().to_string())
            .replace("@ROOT@", &root.display().to_string())
            .replace("@DIR@", &dir.display().to_string());
        std::fs::write(dir.join("h2o.conf"), text)?;
        let mut h2o = Self { process: None, dir: dir.to_owned(), address, proxy_address };
        h2o.start_again()?;
        Ok(h2o)
    }

    /// SIGKILL: the origin is down. (Asked to end, it would go on with its open connections.)
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts it with the configuration that it had.
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new("h2o");
        command.args(["-m", "worker", "-c"]).arg(self.dir.join("h2o.conf"));
        let mut process = Process::start("h2o", &mut command, &self.dir.join("h2o.log"))?;
        process.wait_ready(|| Ok(TcpStream::connect(self.address).is_ok()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The Unix socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("h2o.sock")
    }

    /// Where it takes connections that begin with a PROXY header.
    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy_address
    }

    /// The Unix socket where it takes connections that begin with a PROXY header.
    pub fn proxy_socket(&self) -> PathBuf {
        self.dir.join("h2o-proxy.sock")
    }

    /// The file of its access log.
    pub fn access_log(&self) -> PathBuf {
        self.dir.join("h2o-access.log")
    }

    /// The requests that it has answered. A line is written after its response has left.
    pub fn requests(&self) -> Result<Vec<Access>> {
        let text = std::fs::read_to_string(self.access_log())?;
        text.lines().map(|line| Access::parse(line).with_context(|| format!("access log: {line:?}"))).collect()
    }
}

impl Access {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            peer: words.next()?.to_owned(),
            connection: words.next()?.parse().ok()?,
            status: words.next()?.parse().ok()?,
            method: words.next()?.to_owned(),
            path: words.next()?.to_owned(),
        })
    }
}

/// Two addresses that were free a moment ago. H2O cannot tell a port that it chose itself.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let both = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([both[0].local_addr()?, both[1].local_addr()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_log_lines_are_read() {
        let access = Access::parse("192.0.2.7 4 200 GET /f?x").expect("a line");
        let want = Access {
            peer: "192.0.2.7".to_owned(),
            connection: 4,
            status: 200,
            method: "GET".to_owned(),
            path: "/f?x".to_owned(),
        };
        assert_eq!(access, want);
        assert!(Access::parse("half a line").is_none());
    }
}
