//! A varnishd whose store fails it: the stage, and the judgement, that all rows of the table of outages have in common.
//!
//! Whatever the store does, a request is answered right and within a bound made of the director's deadline; few calls
//! wait for that deadline, the others are refused at once; it is counted by its kind and logged once per change; and when
//! the store can be used again it is, by itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::arrangement::Arrangement;
use crate::h2o::H2o;
use crate::http::{Client, Response};
use crate::objmapperd::Objmapperd;
use crate::process::{open_directory, wait_for};
use crate::shared::{Cache, Setup, status};
use crate::site;

/// The director's deadline for a call to the store.
pub const DEADLINE: Duration = Duration::from_millis(300);

/// How long the director waits for another's fetch: also for one that has lost its lease without knowing.
pub const WAIT: Duration = Duration::from_secs(1);

/// How long one request may take. A fetch may wait for another's once; it makes a few calls, and each may wait for its deadline once before the store is
/// known to be down; the rest is for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// In heap, around the threshold, in the store, larger than what is verified by its checksum at each use.
pub const SIZES: [usize; 4] = [700, 65_000, 200_000, 1_500_000];

const BOUND: Duration = Duration::from_secs(30);

/// The stage.
#[derive(Debug)]
pub struct Stage {
    // In the order in which they are to end.
    /// The varnishd.
    pub cache: Cache,
    /// The store, if it is ours.
    pub daemon: Option<Objmapperd>,
    /// The origin.
    pub h2o: H2o,
    /// A client that reuses its connections.
    pub client: Client,
    child: u32,
    next: AtomicUsize,
    directory: tempfile::TempDir,
}

impl Stage {
    /// A varnishd with `arrangement`, whose director uses the store that `store` starts with its socket at
    /// [`socket`]; `None`: nobody listens there yet.
    pub fn set(arrangement: Arrangement, store: impl FnOnce(&Path) -> Result<Option<Objmapperd>>) -> Result<Self> {
        Self::with_descriptors(arrangement, None, store)
    }

    /// [`Stage::set`] with a varnishd that may have only so many descriptors.
    pub fn with_descriptors(
        arrangement: Arrangement,
        descriptors: Option<u32>,
        store: impl FnOnce(&Path) -> Result<Option<Objmapperd>>,
    ) -> Result<Self> {
        let directory = open_directory()?;
        let dir = directory.path();
        let root = dir.join("site");
        std::fs::create_dir(&root)?;
        for size in SIZES {
            site::write(&root, &size.to_string(), size as u64, size)?;
        }
        let h2o = H2o::start(dir, &root)?;
        let daemon = store(dir)?;
        let socket = socket(dir);
        let times = format!(", deadline = {}s, wait = {}s", DEADLINE.as_secs_f64(), WAIT.as_secs_f64());
        let setup = Setup {
            arrangement,
            engine_socket: Some(socket.as_path()).filter(|_| arrangement.has_daemon()),
            // The engine's own, by which bodies are adopted.
            director_socket: Some(socket.as_path()).filter(|_| !arrangement.has_daemon()),
            arguments: &times,
            h2o: &h2o,
            descriptors,
            vcl: "",
        };
        let cache = Cache::start(dir, "v", &setup)?;
        if daemon.is_some() {
            cache.wait_up()?;
        }
        let child = cache.varnishd()?.child_pid()?;
        Ok(Self { cache, daemon, h2o, client: Client::new(), child, next: AtomicUsize::new(0), directory })
    }

    /// The directory of this stage.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// The store.
    pub fn daemon(&mut self) -> Result<&mut Objmapperd> {
        self.daemon.as_mut().context("there is no objmapperd")
    }

    /// A path of a file of `size` bytes that nobody has asked for.
    pub fn new_path(&self, size: usize) -> String {
        format!("/{size}?{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A miss of `path`, answered right and in time.
    pub fn miss(&self, path: &str) -> Result<Response> {
        let began = Instant::now();
        let response = self.cache.miss(&self.client, path).with_context(|| path.to_owned())?;
        let took = began.elapsed();
        let size: usize = path.trim_start_matches('/').split('?').next().unwrap_or_default().parse()?;
        ensure!(response.status == 200, "{path}: status {}", response.status);
        ensure!(response.body == site::bytes(size as u64, size), "{path}: the body differs");
        ensure!(response.header("content-length") == Some(size.to_string().as_str()), "{path}: {:?}", response.headers);
        ensure!(took < PATIENCE, "{path}: answered after {took:?}");
        Ok(response)
    }

    /// So many misses of each size, each of a new path.
    pub fn misses(&self, rounds: usize) -> Result<()> {
        for _ in 0..rounds {
            for size in SIZES {
                let response = self.miss(&self.new_path(size))?;
                ensure!(status(&response) != "hit", "nobody has asked for it: {:?}", response.headers);
            }
        }
        Ok(())
    }

    /// A new path of `size` bytes that has been published: it is found in the store.
    pub fn published(&self, size: usize) -> Result<String> {
        wait_for("a response to be published and found", BOUND, || {
            // Another one each time: the lease of one whose answer was lost a moment ago may not have been given back yet.
            let path = self.new_path(size);
            for _ in 0..3 {
                if status(&self.miss(&path)?) == "hit" {
                    return Ok(Some(path));
                }
            }
            Ok(None)
        })
        .with_context(|| format!("{:?}\n{}", self.cache.counters(), self.log()))
    }

    /// The store is in use: what is asked for twice is found there, of each size.
    pub fn shares(&self) -> Result<()> {
        SIZES.iter().try_for_each(|size| self.published(*size).map(drop))
    }

    /// What the child has logged of its stores.
    pub fn log(&self) -> String {
        let output = self.cache.varnishd().map(|v| v.output()).unwrap_or_default();
        output.lines().filter(|line| line.contains("objmapper")).collect::<Vec<_>>().join("\n")
    }

    /// How many lines say that the director's store is down, and how many that it is up.
    pub fn changes(&self) -> (usize, usize) {
        let log = self.log();
        let count =
            |what: &str| log.lines().filter(|line| line.contains("objmapper director") && line.contains(what)).count();
        (count("objmapper is down"), count("objmapper is up"))
    }

    /// The director has noticed that its store cannot be used, or can be again.
    pub fn wait_state(&self, up: bool) -> Result<()> {
        self.cache.wait_state(up)
    }

    /// The child has lived through all of it.
    pub fn end(self) -> Result<()> {
        let varnishd = self.cache.varnishd()?;
        ensure!(varnishd.panic().is_none(), "{:?}", varnishd.panic());
        ensure!(varnishd.child_pid()? == self.child, "another child than before:\n{}", varnishd.output());
        ensure!(varnishd.counter("MAIN.fetch_failed")? == 0, "fetches failed");
        Ok(())
    }
}

/// Where the store's socket is, below the stage's directory.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("objm.sock")
}
