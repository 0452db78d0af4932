//! A store with a memory tier and a disk tier.

mod common;

use common::*;
use objmapper_records::Outcome;
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{DiskTier, MemoryTier, Store, StoreConfig, TierKind};
use std::time::Duration;

#[test]
fn a_body_that_the_memory_tier_has_no_room_for_goes_on_in_the_disk_tier() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Some(MemoryTier { limit: 2 << 20, mount: None });
    let disk = Some(DiskTier { dir: dir.path().join("disk"), limit: 64 << 20 });
    let store = Store::open(StoreConfig { memory, disk, ..StoreConfig::default() }).unwrap();
    let socket = dir.path().join("socket");
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
    let cache = Cache::at(&socket, PATIENCE);
    cache.put(&req("/first"), head(60.0, &[]), b"so that there is an invalidation log");
    let free = |store: &Store| {
        let tier = store.stats().tiers[0];
        tier.limit - tier.used
    };
    // What cannot be evicted leaves room for a body's beginning.
    let session = store.session(None).unwrap();
    let memory = Some(TierKind::Memory);
    let held = session.create(memory, free(&store) - (128 << 10), None).unwrap();
    assert_eq!(free(&store), 128 << 10);
    for (url, is_known) in [("/chunked", false), ("/known", true)] {
        // The record's tail has no room beside all of a known length.
        let before = free(&store);
        let len = if is_known { before as usize } else { 500_000 };
        let content: Vec<u8> = (0..len).map(|i| (i >> 10) as u8).collect();
        let ticket = cache.get(&req(url)).ticket();
        let expected = is_known.then_some(len as u64);
        let mut writer = ticket.writer(head(60.0, &[]), &req(url), expected, &cache.counters).unwrap();
        for piece in content.chunks(10_000) {
            writer.write(piece).unwrap();
        }
        assert_eq!(writer.finish(&cache.counters), Outcome::Published, "{url}");
        assert_eq!(cache.get(&req(url)).body(), content);
        assert!(free(&store) >= before, "{url} is in the disk tier");
    }
    drop((held, cache));
    server.drain(Duration::ZERO);
}
