//! Measures what a look-up costs a lone caller on a warm connection: LOOKUP of what is absent and of what is present,
//! LEASE that is granted and that finds the object.
//!
//! `cargo run --release -p objmapper-client --example lookup_latency [SOCKET [RECORDS]]`; without a socket it starts a
//! store of its own in this process. With RECORDS, the store is filled with so many objects of 64 bytes first.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use objmapper_client::{BatchOutcome, Client, CommitOptions, Leased, ObjUri, Want};
use objmapper_server::net::InProcess;
use objmapper_server::store::{MemoryTier, Store, StoreConfig};

type Outcome<T> = Result<T, Box<dyn Error>>;

const CALLS: usize = 20_000;
const WARM_UP: usize = 2_000;
/// Committed together while the store is filled.
const TOGETHER: usize = 64;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let builder = match args.next() {
        Some(path) => Client::builder(path),
        None => {
            let memory = Some(MemoryTier { limit: 8 << 30, mount: None });
            let server = InProcess::start(Store::open(StoreConfig { memory, ..StoreConfig::default() })?, 1)?;
            Client::builder_with(std::sync::Arc::new(move || server.connect()))
        }
    };
    let records: usize = args.next().map_or(Ok(1000), |n| n.parse())?;
    let client = builder.connections(1).call_timeout(Duration::from_secs(10)).connect()?;
    fill(&client, records)?;

    let present = |i: usize| uri(i.wrapping_mul(7919) % records);
    // Of this run alone: leases of a run before may be held still.
    let run = std::process::id();
    let absent = |i: usize| ObjUri::try_from(format!("/latency/absent/{run}/{i}"));
    measure("LOOKUP absent", |i| match client.lookup(&absent(i)?, Want::ENTRY)? {
        None => Ok(()),
        Some(_) => Err("there is something".into()),
    })?;
    measure("LOOKUP present", |i| client.lookup(&present(i)?, Want::ENTRY)?.map(drop).ok_or("lost".into()))?;
    measure("LOOKUP present, fd", |i| client.lookup(&present(i)?, Want::FD)?.map(drop).ok_or("lost".into()))?;
    let hold = Duration::from_secs(10);
    measure("LEASE present", |i| match client.lease(&present(i)?, Duration::ZERO, hold, Want::ENTRY)? {
        Leased::Present(_) => Ok(()),
        _ => Err("lost".into()),
    })?;
    let mut leases = Vec::new();
    measure("LEASE granted", |i| match client.lease(&absent(i)?, Duration::ZERO, hold, Want::ENTRY)? {
        Leased::Granted(lease) => {
            leases.push(lease);
            Ok(())
        }
        _ => Err("not granted".into()),
    })
}

fn uri(i: usize) -> Outcome<ObjUri<'static>> {
    Ok(ObjUri::try_from(format!("/latency/records/{i:08}"))?)
}

/// What is there already, is kept: a store that was filled before is measured as it is.
fn fill(client: &Client, records: usize) -> Outcome<()> {
    let begun = Instant::now();
    for first in (0..records).step_by(TOGETHER) {
        let many = first..records.min(first + TOGETHER);
        let uris = many.map(uri).collect::<Outcome<Vec<_>>>()?;
        if client.lookup(&uris[uris.len() - 1], Want::ENTRY)?.is_some() {
            continue;
        }
        let mut objects = Vec::new();
        for _ in &uris {
            let mut object = client.create(64, None, None)?;
            File::from(object.take_fd().ok_or("no descriptor")?).write_all_at(&[b'x'; 64], 0)?;
            objects.push(object);
        }
        let batch = objects
            .iter_mut()
            .zip(&uris)
            .fold(client.batch(), |batch, (object, uri)| batch.commit(object, uri, 64, CommitOptions::default()));
        for outcome in batch.run()? {
            let BatchOutcome::Found(_) = outcome? else { return Err("not committed".into()) };
        }
    }
    println!("{records} records, filled in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn measure(what: &str, mut call: impl FnMut(usize) -> Outcome<()>) -> Outcome<()> {
    let mut times = Vec::with_capacity(CALLS);
    for i in 0..WARM_UP + CALLS {
        let begun = Instant::now();
        call(i)?;
        if i >= WARM_UP {
            times.push(begun.elapsed());
        }
    }
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 1000].as_secs_f64() * 1e6;
    println!("{what:20} p50 {:6.1} us   p90 {:6.1} us   p99 {:6.1} us", at(500), at(900), at(990));
    Ok(())
}
