//! objmapperd is killed again and again while clients fetch and hit: varnishd's child lives on, every
//! response is whole and right, and the engine finds the next objmapperd by itself.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::product::Product;
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const CLIENTS: usize = 4;
const SIZES: [usize; 6] = [700, 30_000, 65_536, 200_000, 1_000_000, 3_000_000];
const BOUND: Duration = Duration::from_secs(30);

/// The stage: origin, store, cache, and clients that never stop asking.
struct Stage {
    // In the order in which they are to end.
    varnishd: Varnishd,
    daemon: Objmapperd,
    _h2o: H2o,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn set(arrangement: Arrangement) -> Result<Self> {
        Self::with_store(arrangement, "64m", |dir| Objmapperd::start(dir, "1g"))
    }

    fn with_store(
        arrangement: Arrangement,
        size: &str,
        store: impl FnOnce(&Path) -> Result<Objmapperd>,
    ) -> Result<Self> {
        let directory = open_directory()?;
        let root = directory.path().join("site");
        std::fs::create_dir(&root)?;
        for size in SIZES {
            site::write(&root, &size.to_string(), size as u64, size)?;
        }
        let h2o = H2o::start(directory.path(), &root)?;
        let daemon = store(directory.path())?;
        let (host, port) = (h2o.address().ip(), h2o.address().port());
        let varnishd = Varnishd::start(
            directory.path(),
            &Options {
                arrangement,
                storage: &[arrangement.storage("s0", size, Some(&daemon.socket()), "")],
                listen: &[],
                vcl: &format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n"),
                parameters: &[],
                user: None,
                descriptors: None,
            },
        )?;
        Ok(Self { varnishd, daemon, _h2o: h2o, _directory: directory })
    }

    fn wait_happy(&self) -> Result<()> {
        wait_for("the engine to find objmapperd", BOUND, || {
            Ok((self.varnishd.counter("OBJM.s0.g_happy")? == 1).then_some(()))
        })
    }
}

/// What the clients have done, and what went wrong for them.
#[derive(Default)]
struct Clients {
    stop: AtomicBool,
    done: AtomicUsize,
    complaints: Mutex<Vec<String>>,
}

impl Clients {
    /// One client: a hot set that is hit, and every few requests a URL that nobody asked for before.
    fn ask(&self, number: usize, varnishd: &Varnishd) {
        let client = Client::new();
        let bodies: Vec<Vec<u8>> = SIZES.iter().map(|s| site::bytes(*s as u64, *s)).collect();
        let mut step = number;
        while !self.stop.load(Ordering::Relaxed) {
            step += CLIENTS;
            let which = (step / CLIENTS) % SIZES.len();
            let key = match step % 3 {
                0 => format!("new-{step}"),
                _ => format!("hot-{}", step % 4),
            };
            let url = varnishd.url(&format!("/{}?{key}", SIZES[which]));
            match client.fetch(&url) {
                Ok(response) if response.status == 200 && response.body == bodies[which] => {}
                Ok(response) => {
                    let first = response.body.iter().zip(&bodies[which]).position(|(a, b)| a != b);
                    self.complain(format!(
                        "{url}: status {}, {} bytes, first difference {first:?}",
                        response.status,
                        response.body.len()
                    ));
                }
                Err(error) => self.complain(format!("{url}: {error:#}")),
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn complain(&self, complaint: String) {
        self.complaints.lock().unwrap_or_else(|e| e.into_inner()).push(complaint);
    }

    /// Waits until so many more requests have been answered.
    fn wait_more(&self, requests: usize) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        wait_for("requests to be answered", BOUND, || Ok((self.done.load(Ordering::Relaxed) >= goal).then_some(())))
    }
}

/// Runs `act` while the clients ask, and judges what they saw.
fn under_load(stage: &mut Stage, act: impl FnOnce(&mut Objmapperd, &Varnishd, &Clients) -> Result<()>) -> Result<()> {
    let child = stage.varnishd.child_pid()?;
    let clients = Clients::default();
    let (daemon, varnishd) = (&mut stage.daemon, &stage.varnishd);
    let outcome = std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let clients = &clients;
            scope.spawn(move || clients.ask(number, varnishd));
        }
        let outcome = act(daemon, varnishd, &clients);
        clients.stop.store(true, Ordering::Relaxed);
        outcome
    });
    let complaints = clients.complaints.into_inner().unwrap_or_else(|e| e.into_inner());
    ensure!(
        complaints.is_empty(),
        "{} complaints, first: {:#?}",
        complaints.len(),
        &complaints[..complaints.len().min(5)]
    );
    outcome?;
    ensure!(stage.varnishd.panic().is_none(), "{:?}", stage.varnishd.panic());
    ensure!(stage.varnishd.child_pid()? == child, "another child than before:\n{}", stage.varnishd.output());
    Ok(())
}

fn happy(varnishd: &Varnishd, wanted: u64) -> Result<()> {
    wait_for("storage.s0.happy to change", BOUND, || Ok((varnishd.counter("OBJM.s0.g_happy")? == wanted).then_some(())))
}

/// SIGKILL under load and a new start, so many times; requests are answered before, between and after.
fn kill_and_start_again(stage: &mut Stage, times: usize) -> Result<()> {
    under_load(stage, |daemon, varnishd, clients| {
        for _ in 0..times {
            clients.wait_more(60)?;
            daemon.kill()?;
            happy(varnishd, 0)?;
            clients.wait_more(60)?;
            daemon.start_again()?;
            happy(varnishd, 1)?;
        }
        clients.wait_more(60)
    })
}

fn killed_and_started_again(arrangement: Arrangement) -> Result<()> {
    let mut stage = Stage::set(arrangement)?;
    stage.wait_happy()?;
    kill_and_start_again(&mut stage, 5)?;

    // It is used again, not only connected.
    let published = stage.varnishd.counter("OBJM.s0.c_published")?;
    let response = Client::new().fetch(&stage.varnishd.url("/1000000?at-the-end"))?;
    ensure!(response.body == site::bytes(1_000_000, 1_000_000), "the last body differs");
    wait_for("a body to be published in the new objmapperd", BOUND, || {
        Ok((stage.varnishd.counter("OBJM.s0.c_published")? > published).then_some(()))
    })
}

#[test]
fn sigkill_under_load_with_the_threshold() -> Result<()> {
    killed_and_started_again(Arrangement::Daemon)
}

#[test]
fn sigkill_under_load_with_every_body_in_the_store() -> Result<()> {
    killed_and_started_again(Arrangement::DaemonT0)
}

/// A hit's object, by the number of the request that fetched it: the second one in X-Varnish or X-Vinyl.
fn hit(client: &Client, varnishd: &Varnishd, size: usize) -> Result<String> {
    let response = client.fetch(&varnishd.url(&format!("/{size}?kept")))?;
    ensure!(response.status == 200, "{size}: status {}", response.status);
    ensure!(response.body == site::bytes(size as u64, size), "{size}: the body differs");
    let numbers = response.header(Product::get()?.xid_header()).unwrap_or_default();
    let object = numbers.split_whitespace().nth(1);
    Ok(object.ok_or_else(|| anyhow::anyhow!("{size}: no hit: {numbers}"))?.to_owned())
}

#[test]
fn a_disk_tier_keeps_the_session_and_every_body_through_sigkill() -> Result<()> {
    // Room for all that the clients ask for: nothing goes because of the limit.
    let mut stage = Stage::with_store(Arrangement::DaemonT0, "2g", |dir| Objmapperd::start_on_disk(dir, "4g"))?;
    stage.wait_happy()?;
    let client = Client::new();
    for size in SIZES {
        client.fetch(&stage.varnishd.url(&format!("/{size}?kept")))?;
    }
    wait_for("every body to be published", BOUND, || {
        Ok((stage.varnishd.counter("OBJM.s0.c_published")? == SIZES.len() as u64).then_some(()))
    })?;
    let kept: Vec<String> = SIZES.iter().map(|size| hit(&client, &stage.varnishd, *size)).collect::<Result<_>>()?;
    kill_and_start_again(&mut stage, 3)?;
    let now: Vec<String> = SIZES.iter().map(|size| hit(&client, &stage.varnishd, *size)).collect::<Result<_>>()?;
    ensure!(now == kept, "fetched again: {kept:?} are now {now:?}");
    ensure!(stage.varnishd.counter("OBJM.s0.c_lost")? == 0, "bodies were given up:\n{}", stage.varnishd.output());
    ensure!(stage.varnishd.counter("OBJM.s0.c_reconnects")? >= 3, "it did not reconnect");
    ensure!(!stage.varnishd.output().contains("has lost our bodies"), "{}", stage.varnishd.output());

    // They are in the restarted store, pinned, and not only in files that varnishd holds open.
    let stat = stage.daemon.stat()?;
    let bytes: usize = SIZES.iter().sum();
    ensure!(stat.tiers[0].pinned >= bytes as u64, "{stat:?}");
    Ok(())
}

#[test]
fn what_was_cached_is_served_without_objmapperd_and_without_origin_requests() -> Result<()> {
    let mut stage = Stage::set(Arrangement::Daemon)?;
    stage.wait_happy()?;
    let client = Client::new();
    for size in SIZES {
        client.fetch(&stage.varnishd.url(&format!("/{size}")))?;
    }
    let fetches = SIZES.len() as u64;
    wait_for("the fetches to be counted", BOUND, || {
        Ok((stage.varnishd.counter("MAIN.s_fetch")? == fetches).then_some(()))
    })?;
    stage.daemon.kill()?;
    happy(&stage.varnishd, 0)?;
    for round in 0..2 {
        for size in SIZES {
            let response = client.fetch(&stage.varnishd.url(&format!("/{size}")))?;
            ensure!(response.status == 200, "round {round}, {size}: status {}", response.status);
            ensure!(response.body == site::bytes(size as u64, size), "round {round}, {size}: the body differs");
        }
    }
    ensure!(stage.varnishd.counter("MAIN.s_fetch")? == fetches, "a hit went to the origin");
    Ok(())
}

#[test]
fn a_store_that_starts_after_varnishd_is_found() -> Result<()> {
    let mut stage = Stage::with_store(Arrangement::Daemon, "64m", |dir| {
        let mut daemon = Objmapperd::start(dir, "1g")?;
        daemon.kill()?;
        std::fs::remove_file(daemon.socket())?;
        Ok(daemon)
    })?;
    let client = Client::new();
    let fetch = |varnishd: &Varnishd, key: &str| -> Result<()> {
        for size in SIZES {
            let response = client.fetch(&varnishd.url(&format!("/{size}?{key}")))?;
            ensure!(response.status == 200, "{key}, {size}: status {}", response.status);
            ensure!(response.body == site::bytes(size as u64, size), "{key}, {size}: the body differs");
        }
        Ok(())
    };
    fetch(&stage.varnishd, "before")?;
    happy(&stage.varnishd, 0)?;
    let counter = |varnishd: &Varnishd, name: &str| varnishd.counter(&format!("OBJM.s0.{name}"));
    ensure!(counter(&stage.varnishd, "c_fallback_down")? > 0, "no fallback was counted");
    ensure!(counter(&stage.varnishd, "g_bodies")? == 0, "bodies in a store that is not there");
    let in_heap = counter(&stage.varnishd, "g_heap_bytes")?;
    ensure!(in_heap >= SIZES.iter().sum::<usize>() as u64, "{in_heap} bytes in heap");

    stage.daemon.start_again()?;
    happy(&stage.varnishd, 1)?;
    fetch(&stage.varnishd, "after")?;
    let large = SIZES.iter().filter(|size| **size > 65_536).count() as u64;
    wait_for("the large bodies to be in the store", BOUND, || {
        Ok((counter(&stage.varnishd, "c_published")? >= large).then_some(()))
    })?;
    fetch(&stage.varnishd, "before")
}

#[test]
fn a_store_that_stops_answering_costs_time_but_no_response() -> Result<()> {
    let mut stage = Stage::set(Arrangement::Daemon)?;
    stage.wait_happy()?;
    under_load(&mut stage, |daemon, varnishd, clients| {
        clients.wait_more(60)?;
        let pid = daemon.pid().and_then(|p| i32::try_from(p).ok()).map(Pid::from_raw);
        let pid = pid.ok_or_else(|| anyhow::anyhow!("objmapperd is gone"))?;
        kill(pid, Signal::SIGSTOP)?;
        let outcome = clients.wait_more(60).and_then(|()| happy(varnishd, 0));
        kill(pid, Signal::SIGCONT)?;
        outcome?;
        happy(varnishd, 1)?;
        clients.wait_more(60)
    })
}
