//! Two varnishd share one objmapperd before an H2O whose files change, while clients ask both without a pause.
//!
//! The invariant. A file's version `v` is *invalidated* at the moment when a purge or a ban of the file has been answered that
//! was sent after H2O had `v + 1`. Then, for every response to a request that began after that moment:
//!
//! 1. it is of a version greater than `v`: **zero stale responses**;
//! 2. every byte of it is of one version, and none is missing: **zero torn ones**;
//! 3. it is a 200: **zero failures**.
//!
//! What each varnishd's own cache does is kept out of it, because the other varnishd follows a purge some milliseconds after its
//! answer (`follow` tests that), and a fetch that began before a purge may enter the cache of its own varnishd after it:
//!
//! * *Through*: every request misses its varnishd's own cache (`hash_always_miss`), so that every answer is the second
//!   level's or the origin's. A purge or ban is sent to one of the two and holds for both from its answer on, whatever is
//!   under way.
//! * *Cached*: requests may be answered by the varnishd's own cache. A purge or ban is sent to both, while no request for
//!   that file is under way; requests for all others are.
//!
//! * *Killed*: as through, and objmapperd is killed and started again every now and then. Only purges are sent, again and
//!   again until one is confirmed: a ban that comes while the store is away reaches it later (README, limits).
//!
//! `OBJM_SEED` repeats the choices of a run; `OBJM_STALENESS_ROUNDS` (60) sets how many changes each phase makes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::random::Random;
use objmapper_harness::shared::{Cache, Setup, status};
use objmapper_harness::versioned::{VersionedSite, Wrong};

const FILES: usize = 20;
/// In heap, around the threshold, in the store, and larger than what is verified by its checksum at each use.
const SIZES: [usize; 5] = [300, 20_000, 65_500, 200_000, 1_200_000];
const CLIENTS: usize = 4;
/// So many responses between two changes.
const PACE: usize = 40;
const BOUND: Duration = Duration::from_secs(60);

/// Every fourth file is fresh for a moment only: its records are revalidated all the time.
const VCL: &str = r#"
sub vcl_backend_response {
	set beresp.http.X-File = regsub(bereq.url, "^/", "");
	if (bereq.url ~ "^/v[0-9]*[37]$") {
		set beresp.ttl = 0.3s;
		set beresp.grace = 0s;
		set beresp.keep = 60s;
	}
}
"#;

/// Whether clients' requests may be answered by the varnishd's own cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Through,
    Cached,
    Killed,
    /// As `Through`, but nothing is invalidated in truth: what the test must find.
    Sabotaged,
}

struct Stage {
    // In the order in which they are to end.
    caches: [Cache; 2],
    daemon: Mutex<Objmapperd>,
    _h2o: H2o,
    site: VersionedSite,
    /// Held for reading by whoever has a request for the file under way.
    quiet: Vec<RwLock<()>>,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn set(arrangement: Arrangement, store: impl FnOnce(&Path) -> Result<Objmapperd>) -> Result<Self> {
        let directory = open_directory()?;
        let dir = directory.path();
        let root = dir.join("site");
        let site = VersionedSite::create(&root, FILES, &SIZES)?;
        let h2o = H2o::start(dir, &root)?;
        let daemon = store(dir)?;
        let socket = daemon.socket();
        let setup = Setup {
            arrangement,
            engine_socket: Some(&socket).filter(|_| arrangement.has_daemon()).map(|s| s.as_path()),
            director_socket: Some(&socket).filter(|_| !arrangement.has_daemon()).map(|s| s.as_path()),
            arguments: "",
            h2o: &h2o,
            descriptors: None,
            vcl: VCL,
        };
        let caches = [Cache::start(dir, "a", &setup)?, Cache::start(dir, "b", &setup)?];
        for cache in &caches {
            cache.wait_up()?;
        }
        let quiet = (0..FILES).map(|_| RwLock::new(())).collect();
        Ok(Self { caches, daemon: Mutex::new(daemon), _h2o: h2o, site, quiet, _directory: directory })
    }

    /// One of the director's counters, of both varnishd together.
    fn sum(&self, name: &str) -> Result<u64> {
        Ok(self.caches[0].counter(name)? + self.caches[1].counter(name)?)
    }
}

/// What the clients saw.
#[derive(Default)]
struct Clients {
    stop: AtomicBool,
    answered: AtomicUsize,
    /// Of responses that missed the varnishd's own cache: by what `om.status()` said.
    statuses: Mutex<BTreeMap<String, usize>>,
    complaints: Mutex<Vec<String>>,
}

impl Clients {
    fn ask(&self, stage: &Stage, phase: Phase, mut random: Random) {
        let client = Client::new();
        while !self.stop.load(Ordering::Relaxed) {
            let (file, cache) = (random.below(FILES), &stage.caches[random.below(2)]);
            let path = format!("/{}", VersionedSite::name(file));
            let under_way = stage.quiet[file].read().unwrap_or_else(PoisonError::into_inner);
            let floor = stage.site.floor(file);
            let response = match phase {
                Phase::Through | Phase::Killed | Phase::Sabotaged => cache.miss(&client, &path),
                Phase::Cached => cache.get(&client, &path),
            };
            drop(under_way);
            match response {
                Err(error) => self.complain(format!("{path}: {error:#}")),
                Ok(response) => {
                    if let Err(wrong) = stage.site.judge(file, floor, &response) {
                        self.complain(format!("{path}: {wrong:?}, {:?}", response.headers));
                    }
                    let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
                    *statuses.entry(status(&response).to_owned()).or_default() += 1;
                }
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn complain(&self, complaint: String) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(complaint);
    }

    fn wait_more(&self, responses: usize) -> Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + responses;
        wait_for("responses", BOUND, || Ok((self.answered.load(Ordering::Relaxed) >= goal).then_some(())))
    }
}

/// How a file is invalidated.
#[derive(Debug, Clone, Copy)]
enum Means {
    Purge,
    /// By the CLI, by what the object was asked by, which only the second level can tell of a record.
    CliUrl,
    /// By the CLI, by a header of the object.
    CliHeader,
    VclUrl,
    VclHeader,
}

impl Means {
    const ALL: [Self; 6] = [Self::Purge, Self::Purge, Self::CliUrl, Self::CliHeader, Self::VclUrl, Self::VclHeader];

    /// Invalidates what `cache`, and the store, has of the file. Answered when this returns.
    fn carry_out(self, cache: &Cache, client: &Client, file: usize) -> Result<()> {
        let name = VersionedSite::name(file);
        let cli = |words: [&str; 3]| cache.varnishd()?.cli(&["ban", words[0], words[1], words[2]]).map(drop);
        match self {
            Self::Purge => cache.purge(client, &format!("/{name}")),
            Self::CliUrl => cli(["req.url", "==", &format!("/{name}")]),
            Self::CliHeader => cli(["obj.http.x-file", "==", &name]),
            Self::VclUrl => cache.ban(client, &format!("req.url ~ ^/{name}$")),
            Self::VclHeader => cache.ban(client, &format!("obj.http.x-file ~ ^{name}$")),
        }
    }
}

/// Changes files at random and invalidates what was before; so many times.
fn change_and_invalidate(
    stage: &Stage,
    phase: Phase,
    clients: &Clients,
    random: &mut Random,
    rounds: usize,
) -> Result<()> {
    let client = Client::new();
    for round in 0..rounds {
        let file = random.below(FILES);
        let means = Means::ALL[random.below(Means::ALL.len())];
        let one = &stage.caches[random.below(2)];
        let invalidate = || match phase {
            Phase::Through => {
                stage.site.change(file)?;
                means.carry_out(one, &client, file)
            }
            Phase::Killed => {
                stage.site.change(file)?;
                if round % 8 == 0 {
                    let mut daemon = stage.daemon.lock().unwrap_or_else(PoisonError::into_inner);
                    daemon.kill()?;
                    clients.wait_more(PACE)?;
                    daemon.start_again()?;
                }
                wait_for("a purge to be confirmed", BOUND, || {
                    Ok(Means::Purge.carry_out(one, &client, file).is_ok().then_some(()))
                })
            }
            Phase::Sabotaged => stage.site.change(file).map(drop),
            Phase::Cached => {
                let quiet = stage.quiet[file].write().unwrap_or_else(PoisonError::into_inner);
                stage.site.change(file)?;
                let both = stage.caches.iter().try_for_each(|cache| means.carry_out(cache, &client, file));
                drop(quiet);
                both
            }
        };
        invalidate().with_context(|| format!("round {round}: {means:?} of {file}"))?;
        stage.site.invalidate_older(file);
        clients.wait_more(PACE)?;
    }
    Ok(())
}

/// How many changes a phase makes.
fn rounds() -> usize {
    std::env::var("OBJM_STALENESS_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(60)
}

/// A phase: clients ask, one thread changes and invalidates; what was wrong is an error. How often `om.status()` said what.
fn run(stage: &Stage, phase: Phase, random: &mut Random, rounds: usize) -> Result<BTreeMap<String, usize>> {
    let children = [stage.caches[0].varnishd()?.child_pid()?, stage.caches[1].varnishd()?.child_pid()?];
    let clients = Clients::default();
    let outcome = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (clients, random) = (&clients, Random::new(random.next_u64()));
            scope.spawn(move || clients.ask(stage, phase, random));
        }
        let outcome = change_and_invalidate(stage, phase, &clients, random, rounds);
        clients.stop.store(true, Ordering::Relaxed);
        outcome
    });
    let complaints = clients.complaints.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answered = clients.answered.into_inner();
    ensure!(
        complaints.is_empty(),
        "{phase:?}: {} of {answered} responses were wrong, first: {:#?}",
        complaints.len(),
        &complaints[..complaints.len().min(5)]
    );
    outcome?;
    for (cache, child) in stage.caches.iter().zip(children) {
        let varnishd = cache.varnishd()?;
        ensure!(varnishd.panic().is_none(), "{:?}", varnishd.panic());
        ensure!(varnishd.child_pid()? == child, "another child than before:\n{}", varnishd.output());
    }
    let statuses = clients.statuses.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{phase:?}: {rounds} changes, {answered} responses, {statuses:?}");
    Ok(statuses)
}

fn purge_all(stage: &Stage, client: &Client) -> Result<()> {
    let purge = |cache| (0..FILES).try_for_each(|file| Means::Purge.carry_out(cache, client, file));
    stage.caches.iter().try_for_each(purge)
}

/// Every file, from both, past their own caches.
fn all_files_are_current(stage: &Stage, client: &Client) -> Result<()> {
    for file in 0..FILES {
        for cache in &stage.caches {
            let response = cache.miss(client, &format!("/{}", VersionedSite::name(file)))?;
            let version = stage.site.judge(file, stage.site.floor(file), &response);
            ensure!(version.is_ok(), "file {file}: {version:?}, {:?}", response.headers);
        }
    }
    Ok(())
}

/// The judge finds a stale response among real ones: a file changes, and nothing is purged.
fn a_planted_stale_response_is_found(stage: &Stage, client: &Client) -> Result<()> {
    let (file, [_, b]) = (0, &stage.caches);
    let path = format!("/{}", VersionedSite::name(file));
    let cached = b.get(client, &path)?;
    let old = stage.site.judge(file, stage.site.floor(file), &cached).map_err(|w| anyhow::anyhow!("{w:?}"))?;
    let new = stage.site.change(file)?;
    stage.site.invalidate_older(file);
    let verdict = stage.site.judge(file, stage.site.floor(file), &b.get(client, &path)?);
    ensure!(verdict == Err(Wrong::Stale { got: old, floor: new }), "a stale response passes: {verdict:?}");
    b.purge(client, &path)?;
    let verdict = stage.site.judge(file, stage.site.floor(file), &b.miss(client, &path)?);
    ensure!(verdict == Ok(new), "{verdict:?}");
    Ok(())
}

fn nothing_stale_nothing_torn(arrangement: Arrangement, store: impl FnOnce(&Path) -> Result<Objmapperd>) -> Result<()> {
    let mut random = Random::new(Random::seed());
    let mut stage = Stage::set(arrangement, store)?;
    let client = Client::new();

    let through = run(&stage, Phase::Through, &mut random, rounds())?;
    // It has been at risk: most answers are not the origin's, and every means of invalidation has been in use.
    let of = |what: &str| through.get(what).copied().unwrap_or(0);
    let all: usize = through.values().sum();
    ensure!(of("hit") * 4 > all, "few second-level hits: {through:?}");
    ensure!(of("revalidated") > 0, "nothing was revalidated: {through:?}");
    ensure!(stage.sum("c_hits")? >= of("hit") as u64, "{:?}", stage.caches[0].counters());
    let bodies = if arrangement.has_daemon() { "c_adopted" } else { "b_copied" };
    ensure!(stage.sum(bodies)? > 0, "{bodies} is 0: {:?}", stage.caches[0].counters());

    // Both caches begin the next phase without what the first one left.
    purge_all(&stage, &client)?;
    run(&stage, Phase::Cached, &mut random, rounds())?;
    for name in ["c_published", "c_purges", "c_outlawed", "c_renewed"] {
        ensure!(stage.sum(name)? > 0, "{name} is 0: {:?}", stage.caches[0].counters());
    }
    all_files_are_current(&stage, &client)?;
    for name in ["c_damaged", "c_publish_failed", "c_purge_failed", "c_out_protocol", "c_out_io", "c_out_full"] {
        ensure!(stage.sum(name)? == 0, "{name}: {:?}", stage.caches[0].counters());
    }

    let (down, hits) = (stage.sum("c_out_down")?, stage.sum("c_hits")?);
    run(&stage, Phase::Killed, &mut random, rounds())?;
    ensure!(stage.sum("c_out_down")? > down && stage.sum("c_hits")? > hits, "{:?}", stage.caches[0].counters());
    stage.caches.iter().try_for_each(Cache::wait_up)?;
    all_files_are_current(&stage, &client)?;

    // The same clients and the same judge find what is stale when it is not purged.
    let sabotaged = run(&stage, Phase::Sabotaged, &mut random, 20);
    let found = sabotaged.err().map(|complaint| format!("{complaint:#}")).unwrap_or_default();
    ensure!(found.contains("Stale {"), "the test cannot fail: {found}");
    purge_all(&stage, &client)?;
    a_planted_stale_response_is_found(&stage, &client)?;

    // What was invalidated stays so for a varnishd that starts later.
    stage.caches[1].stop()?;
    let file = 5;
    stage.site.change(file)?;
    Means::CliHeader.carry_out(&stage.caches[0], &client, file)?;
    stage.site.invalidate_older(file);
    stage.caches[1].start_again()?;
    stage.caches[1].wait_up()?;
    all_files_are_current(&stage, &client)
}

#[test]
fn adopted_bodies_in_memory() -> Result<()> {
    nothing_stale_nothing_torn(Arrangement::Daemon, |dir| Objmapperd::start(dir, "1g"))
}

#[test]
fn adopted_bodies_on_disk() -> Result<()> {
    nothing_stale_nothing_torn(Arrangement::DaemonT0, |dir| Objmapperd::start_on_disk(dir, "1g"))
}

/// The storage engine has a store of its own: nothing can be adopted.
#[test]
fn copied_bodies() -> Result<()> {
    nothing_stale_nothing_torn(Arrangement::Embedded, |dir| Objmapperd::start(dir, "1g"))
}

#[test]
fn without_the_storage_engine() -> Result<()> {
    nothing_stale_nothing_torn(Arrangement::Malloc, |dir| Objmapperd::start(dir, "1g"))
}
