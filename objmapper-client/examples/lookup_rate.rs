//! Measures look-ups with descriptors on one connection: one at a time, pipelined, in batches.
//!
//! `cargo run --release -p objmapper-client --example lookup_rate [SOCKET]`; without a socket it starts a store
//! of its own in this process.

use std::error::Error;
use std::time::{Duration, Instant};

use objmapper_client::{Client, CommitOptions, ObjUri, Want};
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{MemoryTier, Store, StoreConfig};

const OBJECTS: usize = 1000;
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (socket, server) = match std::env::args_os().nth(1) {
        Some(path) => (path.into(), None),
        None => {
            let memory = Some(MemoryTier { limit: 256 << 20, mount: None });
            let store = Store::open(StoreConfig { memory, ..StoreConfig::default() })?;
            let socket = dir.path().join("socket");
            let config = ListenConfig {
                socket: socket.clone(),
                mode: 0o600,
                owner: None,
                group: None,
                allow_uids: Vec::new(),
                allow_gids: Vec::new(),
                max_connections: 10,
                threads: 1,
            };
            (socket, Some(Server::start(config, store)?))
        }
    };
    let client = Client::builder(socket).connections(1).call_timeout(Duration::from_secs(10)).connect()?;
    let uris = (0..OBJECTS).map(|i| ObjUri::try_from(format!("/rate/{i}"))).collect::<Result<Vec<_>, _>>()?;
    for uri in &uris {
        let mut object = client.create(0, None, Some(uri))?;
        object.commit(uri, 0, CommitOptions::default())?;
    }
    for _ in 0..ROUNDS {
        let single = rate(|| {
            for uri in &uris[..100] {
                client.lookup(uri, Want::FD)?.ok_or("lost")?;
            }
            Ok(100)
        })?;
        let pipelined = rate(|| {
            let pipeline = client.pipeline()?;
            let pending = uris.iter().map(|u| pipeline.lookup(u, Want::FD)).collect::<Result<Vec<_>, _>>()?;
            for pending in pending {
                pending.wait()?.ok_or("lost")?;
            }
            Ok(OBJECTS)
        })?;
        let batched = rate(|| {
            let batch = uris.iter().fold(client.batch(), |batch, uri| batch.lookup(uri, Want::FD));
            Ok(batch.run()?.into_iter().collect::<Result<Vec<_>, _>>()?.len())
        })?;
        println!(
            "one at a time {single:9.0}/s   pipelined {pipelined:9.0}/s ({:.1}x)   batched {batched:9.0}/s ({:.1}x)",
            pipelined / single,
            batched / single
        );
    }
    drop(client);
    if let Some(server) = server {
        server.drain(Duration::from_secs(1));
    }
    Ok(())
}

/// Operations per second of `work`, which says how many it did.
fn rate(mut work: impl FnMut() -> Result<usize, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < ROUND {
        done += work()?;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}
