//! varnishd is killed at random moments while clients ask, and files change that are purged and banned: whatever the moment,
//! every response is whole, and none is older than what was invalidated before the request.
//!
//! `OBJM_PERSIST_ROUNDS` (12) sets the number of kills, `OBJM_SEED` repeats the choices of a run.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Result, ensure};
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::{Client, Request};
use objmapper_harness::persist::Keeper;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::random::Random;
use objmapper_harness::versioned::VersionedSite;

const FILES: usize = 60;
/// In heap, around the threshold, in the store.
const SIZES: [usize; 6] = [300, 5_000, 20_000, 65_500, 200_000, 1_200_000];
const CLIENTS: usize = 3;
const BOUND: Duration = Duration::from_secs(120);

fn rounds() -> usize {
    std::env::var("OBJM_PERSIST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12)
}

struct Stage {
    keeper: RwLock<Keeper>,
    site: VersionedSite,
    /// Held for reading during a request for the file, for writing while it is invalidated.
    quiet: Vec<RwLock<()>>,
    stop: AtomicBool,
    answered: AtomicUsize,
    hits: AtomicUsize,
    changes: AtomicUsize,
    complaints: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    fn keeper(&self) -> std::sync::RwLockReadGuard<'_, Keeper> {
        self.keeper.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, mut random: Random) {
        let client = Client::new();
        while !self.stop.load(Ordering::Relaxed) {
            let file = random.below(FILES);
            let path = format!("/{}", VersionedSite::name(file));
            // Some are fetched anew although they are cached.
            let headers: &[(&str, &str)] = if random.below(8) == 0 { &[("X-Miss", "1")] } else { &[] };
            let under_way = self.quiet[file].read().unwrap_or_else(PoisonError::into_inner);
            let floor = self.site.floor(file);
            let response = self.keeper().send(&client, &path, &Request { headers, ..Request::default() });
            drop(under_way);
            // varnishd may be dead.
            let Ok(response) = response else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            self.answered.fetch_add(1, Ordering::Relaxed);
            if response.header("x-hits").is_some_and(|hits| hits != "0") {
                self.hits.fetch_add(1, Ordering::Relaxed);
            }
            if let Err(wrong) = self.site.judge(file, floor, &response) {
                lock(&self.complaints).push(format!("{path}: {wrong:?}, {:?}", response.headers));
            }
        }
    }

    /// Changes files and invalidates what was before, one after the other.
    fn change(&self, mut random: Random) -> Result<()> {
        let client = Client::new();
        while !self.stop.load(Ordering::Relaxed) {
            let file = random.below(FILES);
            let means = random.below(6);
            let name = VersionedSite::name(file);
            let path = format!("/{name}");
            let _quiet = self.quiet[file].write().unwrap_or_else(PoisonError::into_inner);
            self.site.change(file)?;
            let keeper = self.keeper();
            let ban = |expression: &str| keeper.command(&client, "BAN", "/", &[("X-Ban", expression)]);
            let outcome = match means {
                0 => keeper.command(&client, "PURGE", &path, &[]),
                1 => keeper.command(&client, "SOFT", &path, &[]),
                2 => ban(&format!("req.url == /{name}")),
                3 => ban(&format!("req.url ~ ^/{name}$")),
                4 => ban(&format!("obj.http.x-file ~ ^{name}$ && obj.status == 200")),
                _ => keeper.varnishd().and_then(|v| v.cli(&["ban", "obj.http.x-file", "==", &name])).map(drop),
            };
            drop(keeper);
            if outcome.is_ok() {
                self.site.invalidate_older(file);
                self.changes.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(random.below(12) as u64));
        }
        Ok(())
    }

    /// Kills varnishd, or its child alone, while nothing waits for that.
    fn kill(&self, all: bool, options: &str) -> Result<()> {
        if all {
            let mut killed = self.keeper.write().unwrap_or_else(PoisonError::into_inner);
            killed.kill()?;
            killed.start("100m", options)
        } else {
            self.keeper().varnishd()?.kill_child()
        }
    }
}

#[test]
fn nothing_stale_and_nothing_torn_whenever_varnishd_is_killed() -> Result<()> {
    let mut random = Random::new(Random::seed());
    let dir = open_directory()?;
    let root = dir.path().join("site");
    let site = VersionedSite::create(&root, FILES, &SIZES)?;
    let h2o = H2o::start(dir.path(), &root)?;
    let mut keeper = Keeper::new(dir.path(), &h2o)?;
    let options = ",persist=on";
    keeper.start("100m", options)?;
    let stage = Stage {
        keeper: RwLock::new(keeper),
        site,
        quiet: (0..FILES).map(|_| RwLock::new(())).collect(),
        stop: AtomicBool::new(false),
        answered: AtomicUsize::new(0),
        hits: AtomicUsize::new(0),
        changes: AtomicUsize::new(0),
        complaints: Mutex::default(),
    };
    let rounds = rounds();
    let (mut found, mut reloaded) = (0, 0);
    let outcome = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (stage, random) = (&stage, Random::new(random.next_u64()));
            scope.spawn(move || stage.ask(random));
        }
        let changes = {
            let (stage, random) = (&stage, Random::new(random.next_u64()));
            scope.spawn(move || stage.change(random))
        };
        let outcome = (0..rounds).try_for_each(|round| {
            let goal = stage.answered.load(Ordering::Relaxed) + 20 + random.below(600);
            wait_for("responses", BOUND, || Ok((stage.answered.load(Ordering::Relaxed) >= goal).then_some(())))?;
            stage.kill(round % 3 == 2, options)?;
            let count = stage.keeper().counter("c_reloaded")?;
            found += usize::from(count > 0);
            reloaded += count;
            let varnishd = stage.keeper();
            ensure!(varnishd.varnishd()?.panic().is_none(), "{:?}", varnishd.varnishd()?.panic());
            Ok(())
        });
        stage.stop.store(true, Ordering::Relaxed);
        let changed = changes.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread that changes files panicked")));
        outcome.and(changed)
    });
    let complaints = stage.complaints.into_inner().unwrap_or_else(PoisonError::into_inner);
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let figures = format!(
        "{rounds} kills, {} responses, {} hits, {} changes, objects found after {found} kills, {reloaded} in all",
        count(&stage.answered),
        count(&stage.hits),
        count(&stage.changes)
    );
    println!("{figures}");
    ensure!(
        complaints.is_empty(),
        "{figures}; {} responses were wrong, first: {:#?}\n{}",
        complaints.len(),
        &complaints[..complaints.len().min(5)],
        stage.keeper.read().unwrap_or_else(PoisonError::into_inner).varnishd().map(|v| v.output()).unwrap_or_default()
    );
    outcome?;
    // It has been at risk. Four lives in a row of less than 2 s are a reason to discard what there is.
    ensure!(found * 2 >= rounds, "{figures}");
    Ok(())
}
