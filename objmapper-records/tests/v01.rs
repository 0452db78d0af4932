//! With a peer of protocol v0.1, which behaves or has one of its defects: what is found is whole and not invalidated, or it
//! is a miss.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use common::v01_peer::V01Peer;
use common::*;
use objmapper_records::{Miss, MissReason, Notice, Outage, Outcome, State};

fn two(peer: &V01Peer) -> (Cache, Cache) {
    (Cache::at(&peer.socket(), PATIENCE), Cache::at(&peer.socket(), PATIENCE))
}

#[test]
fn one_publishes_and_the_other_finds() {
    let peer = V01Peer::start();
    let (a, b) = two(&peer);
    assert!(a.l2.state() == State::UpV01 && a.l2.instance().is_none());
    for len in [0, 1, 100_000, 8 << 20] {
        let r = req(&format!("/{len}"));
        let content: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        assert_eq!(b.get(&r).why(), MissReason::Absent);
        a.put(&r, head(60.0, &["ETag: \"x\""]), &content);
        let Got::Hit(body, hit) = b.get(&r) else { panic!("{len}") };
        assert!(body == content && hit.still_valid(&b.l2, &r));
    }
    let r = req("/large");
    let large = vec![0; (8 << 20) + 1];
    let ticket = a.get(&r).ticket();
    assert_eq!(a.publish(ticket, &r, head(60.0, &[]), &large), Outcome::TooLarge);
    let mut writer = a.get(&r).ticket().writer(head(60.0, &[]), &r, None, &a.counters).unwrap();
    assert_eq!(writer.write(&large), Err(Outcome::TooLarge));
    assert_eq!(writer.finish(&a.counters), Outcome::TooLarge);
    // There is nothing to seal in a store that hands out no private objects.
    let ticket = a.get(&r).ticket();
    assert!(matches!(ticket.seal(head(60.0, &[]), &r, 1, None, &a.counters), Err(Outcome::Outage(Outage::Protocol))));
}

#[test]
fn variants_purges_and_bans() {
    let peer = V01Peer::start();
    let (a, b) = two(&peer);
    let r = |x: &str| req("/a").with("X", x);
    for x in ["1", "2", "3"] {
        a.put(&r(x), head(60.0, &["Vary: X"]), x.as_bytes());
    }
    for x in ["1", "2", "3"] {
        assert_eq!(b.get(&r(x)).body(), x.as_bytes());
    }
    let Got::Hit(_, hit) = b.get(&r("1")) else { panic!() };
    let ticket = b.get(&r("4")).ticket();
    assert!(a.purge("/a"));
    for x in ["1", "2", "3"] {
        assert!(matches!(b.get(&r(x)), Got::Miss(_)));
    }
    assert!(!hit.still_valid(&b.l2, &r("1")));
    assert_eq!(b.publish(ticket, &r("4"), head(60.0, &["Vary: X"]), b"4"), Outcome::Conflict);
    // What does not vary, beside what does, and after it.
    a.put(&r("1"), head(60.0, &["Vary: X"]), b"1");
    a.put(&r("5"), head(60.0, &[]), b"plain");
    assert_eq!(b.get(&r("6")).body(), b"plain");

    let r = req("/b");
    a.put(&r, head(60.0, &["X-Tag: t"]), b"old");
    let ticket = a.get(&req("/c")).ticket();
    a.ban(&Ban::at(NOW).obj_http("X-Tag", EQ, "t"));
    // Known to other caches as soon as it is in the log.
    assert_eq!(a.get(&r).why(), MissReason::Invalidated);
    assert_eq!(b.get(&r).why(), MissReason::Invalidated);
    assert_eq!(a.publish(ticket, &req("/c"), head(60.0, &["X-Tag: t"]), b"old"), Outcome::Published);
    assert_eq!(b.get(&req("/c")).why(), MissReason::Invalidated);
    assert_eq!((a.l2.pending_bans(), b.counters.c_outlawed.load(Relaxed)), (0, 2));
}

#[test]
fn a_stale_record_is_renewed_with_its_body() {
    let peer = V01Peer::start();
    let (a, b) = two(&peer);
    for vary in [&["ETag: \"1\""][..], &["ETag: \"1\"", "Vary: X"]] {
        let r = req(vary.last().unwrap()).with("X", "x");
        a.put(&r, head(60.0, vary), b"body");
        let (body, stale) = b.get_at(&r, NOW + 61.0, Duration::ZERO).stale();
        assert_eq!(body, b"body");
        let mut renewed = stale.hit.head.clone();
        renewed.t_origin += 61.0;
        assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &b.counters), Outcome::Published);
        let Got::Hit(body, hit) = a.get_at(&r, NOW + 100.0, Duration::ZERO) else { panic!() };
        assert_eq!((body, hit.head), (b"body".to_vec(), renewed));
        // An answer that is older than what is there.
        let (_, stale) = b.get_at(&r, NOW + 125.0, Duration::ZERO).stale();
        let outcome = b.publish(stale.ticket.unwrap(), &r, head(60.0, vary), b"old");
        assert_eq!(outcome, Outcome::Overtaken);
        assert!(matches!(b.get_at(&r, NOW + 200.0, Duration::ZERO).why(), MissReason::Expired));
    }
}

#[test]
fn a_file_that_is_torn_anywhere_is_a_miss() {
    let peer = V01Peer::start();
    let (a, b) = two(&peer);
    let r = req("/a");
    let content = b"a body of some length";
    a.put(&r, head(60.0, &["Vary: X"]), content);
    let whole: Vec<_> = peer.files().into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    assert_eq!(whole.len(), 3, "log, index, variant");
    for (bytes, path) in &whole {
        let is_log =
            *path == peer.path(objmapper_client::UriSpace::new(&[b"example.com"]).unwrap().uri(&[b"log"]).as_bytes());
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 1 << (at % 8);
            for torn in [&torn[..], &bytes[..at]] {
                std::fs::write(path, torn).unwrap();
                let Got::Miss(miss) = b.get(&r) else { panic!("byte {at}") };
                let expected: &[_] = match (is_log, torn.is_empty()) {
                    // A log that was torn is begun anew: nothing of before is found.
                    (true, _) => &[MissReason::Invalidated],
                    (false, true) => &[MissReason::Absent],
                    (false, false) => &[MissReason::Damaged],
                };
                assert!(expected.contains(&miss.why), "byte {at}: {:?}", miss.why);
                std::fs::write(path, bytes).unwrap();
            }
        }
        assert_eq!(b.get(&r).body(), content);
    }
    // The next publication makes it whole.
    std::fs::File::options().write(true).open(&whole[0].1).unwrap().write_all_at(b"junk", 3).unwrap();
    b.put(&r, head(60.0, &["Vary: X"]), b"new");
    assert_eq!(a.get(&r).body(), b"new");
}

#[test]
fn a_writer_that_hangs_costs_others_their_deadline_only() {
    let peer = V01Peer::start();
    let a = Cache::at(&peer.socket(), Duration::from_millis(200));
    let r = req("/a");
    let ticket = a.get(&r).ticket();
    // Another process holds the lock of the record's file, half written.
    let file = std::fs::File::options().read(true).write(true).open(peer.path(a.key("/a").uri().as_bytes())).unwrap();
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    file.write_all_at(b"half", 0).unwrap();
    let began = Instant::now();
    assert_eq!(a.publish(ticket, &r, head(60.0, &[]), b"x"), Outcome::Outage(Outage::Timeout));
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(a.get(&r).why(), MissReason::Damaged);
    drop(file);
    a.put(&r, head(60.0, &[]), b"x");
    assert_eq!(a.get(&r).body(), b"x");
    // One that was deleted is not written to.
    let ticket = a.get(&r);
    drop(ticket);
    std::fs::remove_file(peer.path(a.key("/a").uri().as_bytes())).unwrap();
    a.put(&r, head(60.0, &[]), b"y");
    assert_eq!(a.get(&r).body(), b"y");
}

/// Invariant: a look-up that begins after a purge of version `v` was acknowledged finds nothing of version `v` or older,
/// and nothing torn, whatever the peer does.
fn at_random(seed: u64, peer: &V01Peer, timeout: Duration) -> (usize, usize) {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 150;
    const PAGES: u64 = 3;
    let caches = [Cache::at(&peer.socket(), timeout), Cache::at(&peer.socket(), timeout)];
    let versions: Vec<_> = (0..PAGES).map(|_| (AtomicU64::new(1), AtomicU64::new(0))).collect();
    let (hits, purges) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let text = |page: u64, version: u64| format!("{page}:{version};").into_bytes().repeat(1 + page as usize * 2000);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (caches, versions, hits, purges) = (&caches, &versions, &hits, &purges);
            scope.spawn(move || {
                let mut state = seed * 1000 + thread + 1;
                let mut below = |n: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
                };
                for _ in 0..ROUNDS {
                    let (cache, page) = (&caches[below(2) as usize], below(PAGES));
                    let (version, invalidated) = &versions[page as usize];
                    let url = format!("/{page}");
                    let r = req(&url).with("X", ["a", "b"][below(2) as usize]);
                    let vary: &[&str] = if page == 1 { &["Vary: X"] } else { &[] };
                    if below(12) == 0 {
                        let version = version.fetch_add(1, SeqCst);
                        if cache.l2.purge(&cache.key(&url), false, &cache.counters).is_ok() {
                            invalidated.fetch_max(version, SeqCst);
                            purges.fetch_add(1, SeqCst);
                        }
                        continue;
                    }
                    let invalidated = invalidated.load(SeqCst);
                    match cache.get(&r) {
                        Got::Hit(body, _) => {
                            let first = body.split(|b| *b == b';').next().unwrap();
                            let (_, found) = std::str::from_utf8(first).unwrap().split_once(':').unwrap();
                            let found = found.parse().unwrap();
                            assert!(body == text(page, found), "torn");
                            assert!(found > invalidated, "seed {seed}: {url} {found}, {invalidated} is invalidated");
                            hits.fetch_add(1, SeqCst);
                        }
                        Got::Miss(Miss { ticket: Some(ticket), .. }) => {
                            let current = version.load(SeqCst);
                            if below(4) == 0 {
                                std::thread::sleep(Duration::from_millis(1));
                            }
                            cache.publish(ticket, &r, head(60.0, vary), &text(page, current));
                        }
                        Got::Miss(_) => {}
                        stale => panic!("{stale:?}"),
                    }
                }
            });
        }
    });
    (hits.into_inner(), purges.into_inner())
}

#[test]
fn nothing_invalidated_or_torn_is_found() {
    let peer = V01Peer::start();
    let (hits, purges) = at_random(1, &peer, PATIENCE);
    assert!(hits > 100 && purges > 10, "{hits} hits, {purges} purges");
}

#[test]
fn nothing_invalidated_or_torn_is_found_whatever_the_peer_does() {
    type Set = fn(&common::v01_peer::Defects);
    let cases: [(&str, Set); 5] = [
        ("loses", |d| d.loses.store(13, SeqCst)),
        ("unlinked", |d| d.unlinked.store(5, SeqCst)),
        ("storage error", |d| d.storage_error.store(5, SeqCst)),
        ("no descriptor", |d| d.no_fd.store(97, SeqCst)),
        ("resets", |d| d.resets.store(29, SeqCst)),
    ];
    for (seed, (name, set)) in cases.into_iter().enumerate() {
        let peer = V01Peer::start();
        set(peer.defects());
        let (hits, purges) = at_random(seed as u64 + 2, &peer, Duration::from_millis(100));
        println!("{name}: {hits} hits, {purges} purges");
        assert!(hits > 0 && purges > 0, "{name}: {hits} hits, {purges} purges");
    }
}

#[test]
fn a_lost_log_is_told() {
    let peer = V01Peer::start();
    let (a, b) = two(&peer);
    a.put(&req("/a"), head(60.0, &[]), b"x");
    let log = objmapper_client::UriSpace::new(&[b"example.com"]).unwrap().uri(&[b"log"]);
    std::fs::remove_file(peer.path(log.as_bytes())).unwrap();
    assert_eq!(b.get(&req("/a")).why(), MissReason::Invalidated);
    let resets =
        |cache: &Cache| cache.notices.lock().unwrap().iter().filter(|n| matches!(n, Notice::LogReset(_))).count();
    assert_eq!((resets(&a), resets(&b)), (1, 1));
}
