//! A real H2O that serves a directory on loopback.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::artefacts;
use crate::process::Process;

/// A running H2O. Stopped when dropped.
#[derive(Debug)]
pub struct H2o {
    /// Kept for its Drop.
    _process: Process,
    address: SocketAddr,
}

impl H2o {
    /// Serves `root` with the configuration `tests/h2o/h2o.conf`; its own files go to `dir`.
    pub fn start(dir: &Path, root: &Path) -> Result<Self> {
        let address = free_address()?;
        let template = artefacts::workspace().join("tests/h2o/h2o.conf");
        let text = std::fs::read_to_string(&template)
            .with_context(|| format!("cannot read {}", template.display()))?
            .replace("@PORT@", &address.port().to_string())
            .replace("@ROOT@", &root.display().to_string());
        let conf = dir.join("h2o.conf");
        std::fs::write(&conf, text)?;
        let mut command = Command::new("h2o");
        command.args(["-m", "worker", "-c"]).arg(&conf);
        let mut process = Process::start("h2o", &mut command, &dir.join("h2o.log"))?;
        process.wait_ready(|| Ok(TcpStream::connect(address).is_ok()))?;
        Ok(Self { _process: process, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An address that was free a moment ago. H2O cannot tell a port that it chose itself.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
