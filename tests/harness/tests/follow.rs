//! Three varnishd share one objmapperd before an H2O whose files change, with clients that ask all of them, also for what they have,
//! while VCL is loaded and discarded.
//!
//! One varnishd is told that a file has changed: by a purge, a tag or a ban, hard or soft. The invariant:
//!
//! 1. each varnishd's own cache has the new version within a bound, whoever was told, whatever storage it has;
//! 2. none serves an older one from then on, whatever was under way;
//! 3. what a varnishd misses while its VCL has no director is made up for when it has one again;
//! 4. no child panics.
//!
//! `OBJM_SEED` repeats the choices of a run; `OBJM_FOLLOW_ROUNDS` (60) sets how many changes are made.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::{Client, Request};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::random::Random;
use objmapper_harness::shared::{Cache, Setup};
use objmapper_harness::versioned::{VersionedSite, Wrong};

const FILES: usize = 12;
const SIZES: [usize; 3] = [300, 20_000, 200_000];
const BOUND: Duration = Duration::from_secs(30);

/// Of the VCL with a director and of the one without.
const VCL: &str = r#"
sub vcl_backend_response {
	set beresp.http.xkey = "all " + regsub(bereq.url, "^/", "tag-");
	set beresp.ttl = 1h;
	set beresp.grace = 10m;
}
"#;

struct Stage {
    // In the order in which they are to end.
    caches: Vec<Cache>,
    /// Held for writing while the VCL of a cache has no director.
    directed: Vec<RwLock<()>>,
    site: VersionedSite,
    daemon: Objmapperd,
    h2o: H2o,
    directory: tempfile::TempDir,
}

impl Stage {
    fn set() -> Result<Stage> {
        let directory = open_directory()?;
        let dir = directory.path();
        let root = dir.join("site");
        let site = VersionedSite::create(&root, FILES, &SIZES)?;
        let h2o = H2o::start(dir, &root)?;
        let daemon = Objmapperd::start(dir, "256m")?;
        let socket = daemon.socket();
        let start = |name: &str, arrangement: Arrangement| {
            let engine_socket = arrangement.has_daemon().then_some(socket.as_path());
            let director_socket = (!arrangement.has_daemon()).then_some(socket.as_path());
            let setup = Setup {
                arrangement,
                engine_socket,
                director_socket,
                arguments: "",
                h2o: &h2o,
                descriptors: None,
                vcl: VCL,
            };
            let cache = Cache::start(dir, name, &setup)?;
            cache.wait_up()?;
            cache.varnishd()?.cli(&["param.set", "vcl_cooldown", "1"])?;
            anyhow::Ok(cache)
        };
        let caches = vec![
            start("a", Arrangement::Malloc)?,
            start("b", Arrangement::Daemon)?,
            start("c", Arrangement::DaemonT0)?,
        ];
        let directed = caches.iter().map(|_| RwLock::new(())).collect();
        Ok(Stage { caches, directed, site, daemon, h2o, directory })
    }

    /// Tells a cache that a file has changed.
    fn invalidate(&self, cache: &Cache, client: &Client, file: usize, kind: usize) -> Result<()> {
        let name = VersionedSite::name(file);
        let (path, tag) = (format!("/{name}"), format!("no-such-tag tag-{name},"));
        let send = |method, header: &[(&str, &str)]| {
            let response =
                cache.send(client, &path, &Request { method: Some(method), headers: header, ..Request::default() })?;
            ensure!(response.status == 200, "{method} {path} {header:?}: status {}", response.status);
            Ok(())
        };
        match kind {
            0 => send("PURGE", &[]),
            1 => send("PURGE", &[("Xkey-Purge", &tag)]),
            2 => send("PURGE", &[("Xkey-Softpurge", &tag)]),
            3 => send("PURGE", &[("Soft-Purge", "1")]),
            4 => send("BAN", &[("Ban", &format!("req.url == {path}"))]),
            _ => send("BAN", &[("Ban", &format!("obj.http.xkey ~ tag-{name}$ && obj.age >= 0s"))]),
        }
    }

    /// Waits until a cache serves the current version of a file.
    fn wait_current(&self, cache: usize, client: &Client, file: usize, version: u64) -> Result<()> {
        let path = format!("/{}", VersionedSite::name(file));
        let what = format!("version {version} of {path} from cache {cache}");
        wait_for(&what, BOUND, || {
            let response = self.caches[cache].get(client, &path)?;
            match self.site.judge(file, version, &response) {
                Ok(_) => Ok(Some(())),
                Err(Wrong::Stale { .. }) => Ok(None),
                Err(torn) => bail!("{torn:?}"),
            }
        })
    }
}

struct Clients {
    stop: AtomicBool,
    complaints: Mutex<Vec<String>>,
    /// How often VCL was loaded.
    reloads: AtomicUsize,
}

impl Clients {
    /// Runs `step` again and again until the test is over, and keeps its first complaint.
    fn run(&self, mut step: impl FnMut() -> Result<()>) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Err(why) = step() {
                self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{why:#}"));
                self.stop.store(true, Ordering::SeqCst);
            }
        }
    }
}

/// A client of one cache, whose responses are judged while its VCL has a director.
fn client(stage: &Stage, index: usize, random: &mut Random, agent: &Client) -> Result<()> {
    let cache = &stage.caches[index];
    let file = random.below(FILES);
    let path = format!("/{}", VersionedSite::name(file));
    let _directed = stage.directed[index].read().unwrap_or_else(PoisonError::into_inner);
    let floor = stage.site.floor(file);
    let response = if random.below(8) == 0 { cache.miss(agent, &path)? } else { cache.get(agent, &path)? };
    match stage.site.judge(file, floor, &response) {
        Ok(_) => Ok(()),
        Err(why) => bail!("cache {index}, {path}: {why:?}, {:?}", response.headers),
    }
}

/// Loads VCL and discards the one before, by turns with and without a director.
fn reload(stage: &Stage, index: usize, number: &mut u32, agent: &Client) -> Result<()> {
    let varnishd = stage.caches[index].varnishd()?;
    let dir = stage.directory.path().join(["a", "b", "c"][index]);
    let former = if *number == 0 { "boot".to_owned() } else { format!("vcl{number}") };
    *number += 1;
    let next = format!("vcl{number}");
    let load = |name: &str, file: &Path| {
        varnishd.cli(&["vcl.load", name, &file.display().to_string()])?;
        varnishd.cli(&["vcl.use", name])
    };
    if number.is_multiple_of(2) {
        load(&next, &dir.join("test.vcl"))?;
        varnishd.cli(&["vcl.discard", &former])?;
        return Ok(());
    }
    let plain = dir.join("plain.vcl");
    let address = stage.h2o.address();
    let text =
        format!("vcl 4.1;\nbackend h2o {{ .host = \"{}\"; .port = \"{}\"; }}\n{VCL}", address.ip(), address.port());
    std::fs::write(&plain, text)?;
    let _undirected = stage.directed[index].write().unwrap_or_else(PoisonError::into_inner);
    let between = format!("plain{number}");
    load(&between, &plain)?;
    varnishd.cli(&["vcl.discard", &former])?;
    // Objects come and go without an index.
    for file in 0..FILES {
        stage.caches[index].get(agent, &format!("/{}", VersionedSite::name(file)))?;
    }
    load(&next, &dir.join("test.vcl"))?;
    varnishd.cli(&["vcl.discard", &between])?;
    for file in 0..FILES {
        stage.wait_current(index, agent, file, stage.site.floor(file))?;
    }
    Ok(())
}

#[test]
fn what_one_varnishd_invalidates_leaves_the_caches_of_all() -> Result<()> {
    let rounds: usize = std::env::var("OBJM_FOLLOW_ROUNDS").ok().map_or(Ok(60), |n| n.parse())?;
    let stage = Stage::set()?;
    let clients = Clients { stop: AtomicBool::new(false), complaints: Mutex::default(), reloads: AtomicUsize::new(0) };
    let seed = Random::seed();
    let mut latencies = Vec::new();
    let over = std::thread::scope(|threads| {
        for index in 0..stage.caches.len() {
            let (stage, clients) = (&stage, &clients);
            threads.spawn(move || {
                let (mut random, agent) = (Random::new(seed + 1 + index as u64), Client::new());
                clients.run(|| client(stage, index, &mut random, &agent));
            });
        }
        threads.spawn(|| {
            let (agent, mut number) = (Client::new(), [0; 3]);
            let mut index = 0;
            clients.run(|| {
                index = (index + 1) % stage.caches.len();
                reload(&stage, index, &mut number[index], &agent)?;
                clients.reloads.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
        });
        let over = change(&stage, &clients, seed, rounds, &mut latencies);
        clients.stop.store(true, Ordering::SeqCst);
        over
    });
    let complaints = clients.complaints.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (index, cache) in stage.caches.iter().enumerate() {
        let varnishd = cache.varnishd()?;
        ensure!(varnishd.panic().is_none(), "cache {index}: {:?}", varnishd.panic());
        println!("cache {index}: {:?}", varnishd.counters("OBJM_L1.follow.")?);
    }
    ensure!(complaints.is_empty(), "{complaints:?}\n{}", stage.daemon.log());
    over?;
    latencies.sort_unstable();
    println!("until the last cache has it: median {:?}, most {:?}", latencies[latencies.len() / 2], latencies.last());
    for cache in &stage.caches {
        let counters = cache.varnishd()?.counters("OBJM_L1.follow.")?;
        let count = |name: &str| counters.get(name).copied().with_context(|| format!("no {name}: {counters:?}"));
        ensure!(count("c_bans")? > 0 && count("c_purges")? > 0 && count("c_tags")? > 0, "{counters:?}");
        ensure!(count("c_objects_by_tag")? > 0 && count("c_objects_searched")? > 0, "{counters:?}");
        ensure!(count("c_all")? == 0 && count("c_bans_widened")? == 0 && count("c_overflow")? == 0, "{counters:?}");
    }
    Ok(())
}

fn change(stage: &Stage, clients: &Clients, seed: u64, rounds: usize, latencies: &mut Vec<Duration>) -> Result<()> {
    let (mut random, agent) = (Random::new(seed), Client::new());
    for round in 0.. {
        // Each VCL is replaced at least twice.
        if round >= rounds && clients.reloads.load(Ordering::SeqCst) >= 2 * stage.caches.len() {
            break;
        }
        if clients.stop.load(Ordering::SeqCst) {
            bail!("a client has complained");
        }
        let file = random.below(FILES);
        let told = random.below(stage.caches.len());
        let version = stage.site.change(file)?;
        {
            // It must have a director, to be told.
            let _directed = stage.directed[told].read().unwrap_or_else(PoisonError::into_inner);
            stage.invalidate(&stage.caches[told], &agent, file, round % 6)?;
        }
        let answered = Instant::now();
        for index in 0..stage.caches.len() {
            let _directed = stage.directed[index].read().unwrap_or_else(PoisonError::into_inner);
            stage.wait_current(index, &agent, file, version)?;
        }
        latencies.push(answered.elapsed());
        stage.site.invalidate_older(file);
    }
    Ok(())
}
