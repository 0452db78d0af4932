//! Two varnishd, one objmapperd, a real H2O: who asks it, and how often.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::{Access, H2o};
use objmapper_harness::http::{Client, Request};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::shared::{Cache, Setup, status};
use objmapper_harness::site;

const BOUND: Duration = Duration::from_secs(30);

/// `/short…` is fresh for a moment, and may be served stale for long.
const VCL: &str = r#"
sub vcl_backend_response {
	if (bereq.url ~ "short") {
		set beresp.ttl = 0.2s;
		set beresp.grace = 0s;
		set beresp.keep = 60s;
	}
	if (bereq.url ~ "grace") {
		set beresp.grace = 60s;
	}
}
"#;

struct Stage {
    // In the order in which they are to end.
    caches: [Cache; 2],
    _daemon: Objmapperd,
    h2o: H2o,
    client: Client,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn set() -> Result<Self> {
        let directory = open_directory()?;
        let dir = directory.path();
        let root = dir.join("site");
        std::fs::create_dir(&root)?;
        for size in site::SIZES {
            site::write(&root, &size.to_string(), size as u64, size)?;
        }
        let h2o = H2o::start(dir, &root)?;
        let daemon = Objmapperd::start(dir, "1g")?;
        let socket = daemon.socket();
        let setup = Setup {
            arrangement: Arrangement::Daemon,
            engine_socket: Some(&socket),
            director_socket: None,
            arguments: "",
            h2o: &h2o,
            descriptors: None,
            vcl: VCL,
        };
        let caches = [Cache::start(dir, "a", &setup)?, Cache::start(dir, "b", &setup)?];
        caches.iter().try_for_each(Cache::wait_up)?;
        Ok(Self { caches, _daemon: daemon, h2o, client: Client::new(), _directory: directory })
    }

    /// GETs from a varnishd; how it came about. The body must be right.
    fn get(&self, cache: &Cache, path: &str) -> Result<String> {
        let response = cache.get(&self.client, path)?;
        let size: usize = path.trim_start_matches('/').split('?').next().unwrap_or_default().parse()?;
        ensure!(response.status == 200, "{path}: status {}", response.status);
        ensure!(response.body == site::bytes(size as u64, size), "{path}: the body differs");
        Ok(status(&response).to_owned())
    }

    /// What H2O was asked for that path.
    fn asked(&self, path: &str) -> Result<Vec<Access>> {
        let mut requests = self.h2o.requests()?;
        requests.retain(|access| access.path == path);
        Ok(requests)
    }

    /// Waits until the first varnishd has published so many responses.
    fn published(&self, wanted: u64) -> Result<()> {
        self.caches[0].wait_counter("c_published", |n| n >= wanted).map(drop)
    }
}

#[test]
fn the_other_varnishd_and_a_restarted_one_never_ask_h2o() -> Result<()> {
    let mut stage = Stage::set()?;
    for size in site::SIZES {
        ensure!(stage.get(&stage.caches[0], &format!("/{size}"))? == "miss", "{size}: nobody has it");
    }
    let all = site::SIZES.len();
    stage.published(all as u64)?;
    wait_for("H2O's log", BOUND, || Ok((stage.h2o.requests()?.len() >= all).then_some(())))?;
    for size in site::SIZES {
        ensure!(stage.get(&stage.caches[1], &format!("/{size}"))? == "hit", "{size}: it was published");
    }
    let counters = stage.caches[1].counters()?;
    let (large, bytes) = site::SIZES.iter().filter(|s| **s > 65_536).fold((0, 0), |(n, b), s| (n + 1, b + *s as u64));
    let small: u64 = site::SIZES.iter().filter(|s| **s <= 65_536).map(|s| *s as u64).sum();
    ensure!(counters["c_hits"] == all as u64, "{counters:?}");
    ensure!(counters["c_adopted"] == large && counters["b_adopted"] == bytes, "{counters:?}");
    ensure!(counters["b_copied"] == small, "only what lives in heap is copied: {counters:?}");

    stage.caches[0].stop()?;
    stage.caches[0].start_again()?;
    stage.caches[0].wait_up()?;
    for size in site::SIZES {
        ensure!(stage.get(&stage.caches[0], &format!("/{size}"))? == "hit", "{size}: a restart empties nothing");
    }
    ensure!(stage.h2o.requests()?.len() == all, "H2O was asked again: {:?}", stage.h2o.requests());
    Ok(())
}

#[test]
fn parts_heads_and_conditions_of_adopted_bodies() -> Result<()> {
    let stage = Stage::set()?;
    let [a, b] = &stage.caches;
    let (size, path) = (3 * 1024 * 1024 + 17, format!("/{}", 3 * 1024 * 1024 + 17));
    let whole = site::bytes(size as u64, size);
    let origin = a.get(&stage.client, &path)?;
    stage.published(1)?;

    let head = b.send(&stage.client, &path, &Request { method: Some("HEAD"), ..Request::default() })?;
    ensure!(head.header("content-length") == Some(size.to_string().as_str()), "{:?}", head.headers);
    ensure!(status(&head) == "hit", "{:?}", head.headers);
    for name in ["etag", "last-modified", "content-type", "cache-control"] {
        ensure!(head.header(name) == origin.header(name), "{name}: {:?}, {:?}", head.headers, origin.headers);
    }
    ensure!(head.header("age").is_some(), "{:?}", head.headers);
    let part = [("Range", "bytes=1000000-2999999")];
    let got = b.send(&stage.client, &path, &Request { headers: &part, ..Request::default() })?;
    ensure!(got.status == 206 && got.body == whole[1_000_000..3_000_000], "status {}", got.status);
    let etag = origin.header("etag").context("H2O sends no ETag")?;
    let condition = [("If-None-Match", etag)];
    let got = b.send(&stage.client, &path, &Request { headers: &condition, ..Request::default() })?;
    ensure!(got.status == 304 && got.body.is_empty(), "status {}", got.status);
    ensure!(b.counter("c_adopted")? == 1, "{:?}", b.counters());
    ensure!(stage.asked(&path)?.len() == 1, "H2O was asked again");
    Ok(())
}

#[test]
fn of_many_who_miss_at_once_one_asks_h2o() -> Result<()> {
    const CLIENTS: usize = 8;
    let stage = Stage::set()?;
    for round in 0..20 {
        let size = site::SIZES[2 + round % 8];
        let path = format!("/{size}?once-{round}");
        let barrier = Barrier::new(CLIENTS);
        std::thread::scope(|scope| {
            let ask = |number: usize| {
                barrier.wait();
                stage.get(&stage.caches[number % 2], &path)
            };
            let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || ask(number))).collect();
            clients.into_iter().try_for_each(|client| match client.join() {
                Ok(outcome) => outcome.map(drop),
                Err(_) => Err(anyhow::anyhow!("a client panicked")),
            })
        })?;
        wait_for("H2O's log", BOUND, || Ok((!stage.asked(&path)?.is_empty()).then_some(())))?;
        ensure!(stage.asked(&path)?.len() == 1, "round {round}: {:?}", stage.asked(&path)?);
    }
    let waited = stage.caches[0].counter("c_waited")? + stage.caches[1].counter("c_waited")?;
    ensure!(waited > 0, "nobody had to wait: {:?}", stage.caches[0].counters());
    Ok(())
}

#[test]
fn a_stale_record_is_confirmed_with_one_304() -> Result<()> {
    let stage = Stage::set()?;
    let path = "/1000000?short";
    ensure!(stage.get(&stage.caches[0], path)? == "miss", "nobody has it");
    stage.published(1)?;
    let outcome = wait_for("the record to be stale", BOUND, || {
        let outcome = stage.get(&stage.caches[1], path)?;
        Ok((outcome != "hit").then_some(outcome))
    })?;
    ensure!(outcome == "revalidated", "{outcome}");
    wait_for("H2O's log", BOUND, || Ok((stage.asked(path)?.len() >= 2).then_some(())))?;
    let statuses: Vec<u16> = stage.asked(path)?.iter().map(|access| access.status).collect();
    ensure!(statuses[0] == 200 && statuses[1..].iter().all(|s| *s == 304), "{statuses:?}");
    ensure!(stage.caches[1].counter("c_revalidated")? >= 1, "{:?}", stage.caches[1].counters());
    Ok(())
}

#[test]
fn a_record_serves_as_grace_while_h2o_is_down() -> Result<()> {
    let mut stage = Stage::set()?;
    let path = "/1000000?short-grace";
    ensure!(stage.get(&stage.caches[0], path)? == "miss", "nobody has it");
    stage.published(1)?;
    stage.h2o.kill()?;
    // The second one has nothing of its own.
    let began = Instant::now();
    let outcome = wait_for("the record to be stale", BOUND, || {
        let response = stage.caches[1].miss(&stage.client, path)?;
        ensure!(response.status == 200, "status {} after {:?}", response.status, began.elapsed());
        ensure!(response.body == site::bytes(1_000_000, 1_000_000), "the body differs");
        Ok((status(&response) != "hit").then(|| status(&response).to_owned()))
    })?;
    ensure!(outcome == "stale", "{outcome}");
    ensure!(stage.caches[1].counter("c_stale")? >= 1, "{:?}", stage.caches[1].counters());
    stage.h2o.start_again()?;
    wait_for("H2O to be asked again", BOUND, || {
        Ok((status(&stage.caches[1].miss(&stage.client, path)?) == "revalidated").then_some(()))
    })
}
