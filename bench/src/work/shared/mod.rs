//! The second level that several varnishd share: what a hit in it costs, what publishing costs, what a look-up costs that
//! finds nothing, and how soon it is there.

mod adoption;
mod lookup;
mod publishing;
mod records;
mod start;

use std::time::Duration;

use anyhow::{Context, Result};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::wait_for;
use tempfile::TempDir;

use crate::bed::Bed;
use crate::figures::Section;
use crate::load::{self, Drain, Load, Stop};
use crate::peers::varnishd::{Options, Varnishd};
use crate::peers::{Server, vcl};
use crate::target::Order;

pub use adoption::{ADOPTED, COPIED, LARGE, SMALL};
pub use lookup::{ADDED, OWN_COUNTER, WORK as LOOKUP};
pub use publishing::{NO_DIRECTOR, OFF, ON};
pub use records::{CLIENT, DAEMON, RESTART, work_name as records_work};
pub use start::{FIRST_HIT, VARNISHD};

/// Measures everything about the second level.
pub fn run(bed: &Bed, sections: &mut Vec<Section>) -> Result<()> {
    adoption::run(bed, sections)?;
    publishing::run(bed, sections)?;
    lookup::run(bed, sections)?;
    start::run(bed, sections)?;
    records::run(bed, sections)
}

/// From here on a body lives in objmapper: less than the smallest body that is adopted here.
const THRESHOLD: u64 = 32 << 10;

/// Where the first level keeps what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// In our engine with the same store: bodies are adopted.
    Engine,
    /// In malloc: bodies are copied.
    Malloc,
}

/// An objmapperd, and the varnishd that share it.
#[derive(Debug)]
struct Store {
    daemon: Objmapperd,
    dir: TempDir,
}

impl Store {
    fn start(bed: &Bed, bytes: u64) -> Result<Self> {
        let dir = bed.directory()?;
        let memory = format!("{}m", (bytes >> 20).max(16));
        let daemon = bed.servers.run(|| Objmapperd::start(dir.path(), &memory))?;
        Ok(Self { daemon, dir })
    }

    /// What a varnishd is started with that has its second level here.
    fn options(&self, bed: &Bed, cache: Cache, bytes: u64) -> Result<Options> {
        let socket = self.daemon.socket().display().to_string();
        let (storage, arguments) = match cache {
            Cache::Engine => (format!("s0=objmapper,{bytes}b,threshold={THRESHOLD}b,socket={socket}"), String::new()),
            Cache::Malloc => (format!("s0=malloc,{bytes}b"), format!("socket = \"{socket}\"")),
        };
        let vcl = vcl::with_director(bed.origin.address(), &bed.vmod, &arguments);
        Ok(Options { engine: cache == Cache::Engine, storage: vec![storage], vcl })
    }

    fn varnishd(&self, bed: &Bed, cache: Cache, bytes: u64) -> Result<Shared> {
        let dir = tempfile::Builder::new().prefix("v.").tempdir_in(self.dir.path())?;
        open_to_all(dir.path())?;
        let varnishd = Varnishd::start(bed, dir.path(), &self.options(bed, cache, bytes)?)?;
        Ok(Shared { varnishd, _dir: dir })
    }
}

fn open_to_all(dir: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?)
}

/// One of the varnishd that share a store.
#[derive(Debug)]
struct Shared {
    varnishd: Varnishd,
    _dir: TempDir,
}

/// Header lines that say how the director is used: see [`vcl::with_director`].
fn header(director: bool, publish: bool) -> String {
    format!("X-Bench-Director: {}\r\nX-Bench-Publish: {}\r\n", u8::from(director), u8::from(publish))
}

impl Shared {
    fn load(&self, header: &str, order: Order, connections: usize, stop: Stop) -> Load {
        let address = self.varnishd.address();
        Load { address, header: header.to_owned(), order, connections, drain: Drain::Discard, stop }
    }

    /// A director's counter, 0 before it has begun.
    fn counter(&self, name: &str) -> Result<u64> {
        Ok(self.varnishd.counter(&format!(".om.{name}"))?.unwrap_or(0))
    }

    /// Waits until a director's counter has reached this: what a request began ends behind its response.
    fn wait_counter(&self, name: &str, least: u64) -> Result<()> {
        wait_for(&format!("{name} to reach {least}"), Duration::from_secs(60), || {
            crate::machine::interrupt::check()?;
            Ok((self.counter(name)? >= least).then_some(()))
        })
    }

    /// Fetches `count` objects and waits until all of them are published.
    fn publish(&self, bed: &Bed, bytes: u64, first: u64, count: u64) -> Result<()> {
        let before = self.counter("c_published")?;
        let load = self.load(&header(true, true), Order::turn(bytes, first, count), 2, Stop::Requests(count));
        let outcome = load::run(&load, &bed.load)?;
        if let Some(why) = outcome.first_error {
            anyhow::bail!("publishing: {why}");
        }
        self.wait_counter("c_published", before + count).with_context(|| {
            let failed = ["c_publish_failed", "c_publish_conflict", "c_out_full"].map(|c| self.counter(c).unwrap_or(0));
            format!("publications failed, conflicted, found the store full: {failed:?}")
        })
    }
}
