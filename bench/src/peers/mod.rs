//! Who is compared: the caches, each with its own processes, storage and origin connections.

mod nginx;
pub mod varnishd;
pub mod vcl;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::bed::{Bed, Measured};
use crate::load::{Drain, Load, Stop, fetch};
use crate::machine::interrupt;
use crate::target::{Order, Target};

/// A running cache.
pub trait Server: std::fmt::Debug {
    /// Where it listens.
    fn address(&self) -> SocketAddr;
    /// The processes that do the work: whose CPU time, memory and descriptors count.
    fn pids(&self) -> Vec<u32>;
    /// Forgets everything that is cached, and waits until that is so.
    fn clear(&mut self) -> Result<()>;
}

/// Which cache, and how it stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// varnishd `-s malloc`.
    Malloc,
    /// varnishd `-s file`.
    File,
    /// varnishd with our engine, the store embedded, in memory.
    Memory,
    /// varnishd with our engine, the store embedded, in a directory.
    Disk,
    /// varnishd with our engine, the store in an objmapperd.
    Socket,
    /// nginx with proxy_cache and sendfile.
    Nginx,
}

/// The name of the one that every ratio is to.
pub const BASELINE: &str = "malloc";
/// The same once more: how far apart two equal things are in this run.
pub const NOISE: &str = "malloc again";
/// What the report calls our engine with its embedded store.
pub const MEMORY: &str = "objmapper memory";
/// The same, delivering without a copy.
pub const MEMORY_ZERO_COPY: &str = "objmapper memory zc";

const ALL: [(&str, Kind); 7] = [
    (BASELINE, Kind::Malloc),
    (NOISE, Kind::Malloc),
    ("file", Kind::File),
    (MEMORY, Kind::Memory),
    ("objmapper disk", Kind::Disk),
    ("objmapper socket", Kind::Socket),
    ("nginx", Kind::Nginx),
];

/// One line of a table: a server and how it is asked.
#[derive(Debug)]
pub struct Peer {
    /// Its name in the report.
    pub name: String,
    /// Header lines that every request to it has.
    pub header: String,
    server: usize,
}

/// All caches of one part of the run, started together.
#[derive(Debug)]
pub struct Fleet {
    /// Those that are asked, in the order of the tables.
    pub peers: Vec<Peer>,
    servers: Vec<Box<dyn Server>>,
    /// Removed after the servers have ended.
    _dir: TempDir,
}

/// How large the storages are.
#[derive(Debug, Clone, Copy)]
pub struct Storage {
    /// The limit in bytes.
    pub bytes: u64,
    /// Whether peers that deliver without a copy are asked too: they fetch and store as those with a copy do.
    pub deliveries: bool,
}

impl Fleet {
    /// Starts every cache that this run compares.
    pub fn start(bed: &Bed, storage: Storage) -> Result<Self> {
        let dir = bed.directory()?;
        let mut fleet = Self { peers: Vec::new(), servers: Vec::new(), _dir: dir };
        for (name, kind) in ALL {
            if !wants(bed, name) {
                continue;
            }
            interrupt::check()?;
            let own = fleet._dir.path().join(name.replace(' ', "-"));
            std::fs::create_dir(&own)?;
            let server = start(bed, kind, &own, storage.bytes).with_context(|| format!("cannot start {name}"))?;
            fleet.servers.push(server);
            let server = fleet.servers.len() - 1;
            fleet.peers.push(Peer { name: name.to_owned(), header: vcl::zero_copy(false), server });
            let ours = matches!(kind, Kind::Memory | Kind::Disk | Kind::Socket);
            if ours && storage.deliveries {
                fleet.peers.push(Peer { name: format!("{name} zc"), header: vcl::zero_copy(true), server });
            }
        }
        if fleet.peers.is_empty() {
            bail!("no peer is left to measure");
        }
        Ok(fleet)
    }

    /// A load on a peer.
    pub fn load(&self, peer: &Peer, order: Order, connections: usize, drain: Drain, stop: Stop) -> Load {
        let address = self.server(peer).address();
        Load { address, header: peer.header.clone(), order, connections, drain, stop }
    }

    /// Puts a load on a peer and takes the server's CPU time.
    pub fn measure(&self, bed: &Bed, peer: &Peer, load: &Load) -> Result<Measured> {
        bed.measure(&self.server(peer).pids(), load).with_context(|| peer.name.clone())
    }

    /// The server behind a peer.
    pub fn server(&self, peer: &Peer) -> &dyn Server {
        self.servers[peer.server].as_ref()
    }

    /// The first peer of each server: what is the same with and without zero copy is done once.
    pub fn distinct(&self) -> impl Iterator<Item = &Peer> {
        let mut last = None;
        self.peers.iter().filter(move |peer| last.replace(peer.server) != Some(peer.server))
    }

    /// Empties the caches.
    pub fn clear(&mut self) -> Result<()> {
        self.servers.iter_mut().try_for_each(|server| server.clear())
    }

    /// Empties the cache of one peer.
    pub fn clear_one(&mut self, name: &str) -> Result<()> {
        let server = self.peers.iter().find(|p| p.name == name).map(|p| p.server).context("no such peer")?;
        self.servers[server].clear()
    }

    /// An error unless every peer delivers exactly the origin's bytes.
    pub fn verify(&self, target: Target) -> Result<()> {
        for peer in &self.peers {
            interrupt::check()?;
            fetch::verify(self.server(peer).address(), &peer.header, target)
                .with_context(|| format!("{} delivers something else than the origin", peer.name))?;
        }
        Ok(())
    }
}

/// Whether this peer is asked for.
pub fn wants(bed: &Bed, name: &str) -> bool {
    let asked = |wanted: &String| name.contains(wanted.as_str());
    bed.peers.is_empty() || [BASELINE, NOISE].contains(&name) || bed.peers.iter().any(asked)
}

fn start(bed: &Bed, kind: Kind, dir: &Path, bytes: u64) -> Result<Box<dyn Server>> {
    Ok(match kind {
        Kind::Nginx => Box::new(nginx::Nginx::start(bed, dir, bytes)?),
        _ => Box::new(varnishd::Varnishd::for_hits(bed, kind, dir, bytes)?),
    })
}
