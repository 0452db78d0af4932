//! A draft in an objmapperd whose memory tier has no more room for it.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{CHUNK, Fixture, engine};
use objmapper_engine::backing::{Backing, Remote};
use objmapper_engine::body::Body;
use objmapper_engine::maintenance::Maintenance;
use objmapper_engine::options::Options;
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{DiskTier, MemoryTier, Store, StoreConfig, TierKind};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_draft_goes_on_in_the_disk_tier_and_its_readers_do_not_notice() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let memory = Some(MemoryTier { limit: 2 << 20, mount: None });
    let disk = Some(DiskTier { dir: directory.path().join("disk"), limit: 64 << 20 });
    let store = Store::open(StoreConfig { memory, disk, ..StoreConfig::default() }).unwrap();
    let listen = ListenConfig {
        socket: socket.clone(),
        mode: 0o600,
        owner: None,
        group: None,
        allow_uids: Vec::new(),
        allow_gids: Vec::new(),
        max_connections: 10,
        threads: 1,
    };
    let server = Server::start(listen, store.clone()).unwrap();
    let maintenance = Arc::new(Maintenance::default());
    let remote = Remote::new("s0", &socket, PATIENCE, maintenance.clone()).unwrap();
    let engine = engine(Options { threshold: 0, ..Options::default() }, Backing::Remote(remote), maintenance);
    let begun = Instant::now();
    while !engine.is_happy() {
        assert!(begun.elapsed() < PATIENCE, "the store answers");
        std::thread::yield_now();
    }
    let f = Fixture { engine, store };
    let session = f.store.session(None).unwrap();
    let held = session.create(Some(TierKind::Memory), 1 << 20, None).unwrap();

    let body = Body::default();
    assert!(f.write_more(&body, 600_000));
    // Begun in the first file, and not read any further yet.
    let follower = body.part(&f.engine, 0).unwrap();
    let disk = f.store.stats().tiers[1];
    assert_eq!(disk.used, disk.index, "it is in memory");
    let mut offset = 0;
    for len in (700_000..4_000_000).step_by(100_000) {
        assert!(f.write_more(&body, len));
        offset += f.check_next(&body, offset);
    }
    drop(follower);
    body.trim(&f.engine);
    assert!(body.settle(&f.engine, true, 0));
    f.check(&body, body.len());
    assert!(f.store.stats().tiers[1].used >= body.len(), "it is on disk");
    assert_eq!(
        (f.counter(|c| &c.c_mixed), f.counter(|c| &c.c_fallback_full), f.counter(|c| &c.c_published)),
        (0, 0, 1)
    );
    // A short body fits into memory again: what was left there is free.
    let short = f.fetch(CHUNK as u64, true, true);
    assert_eq!(f.store.stats().tiers[0].objects, 1);
    short.slim(&f.engine);
    body.slim(&f.engine);
    assert_eq!(f.engine.account.used(), 0);
    drop((held, f));
    server.drain(Duration::ZERO);
}
