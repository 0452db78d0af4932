//! Invariant: a look-up that begins after a purge (by key or by tag) or a ban of version `v` of a page was acknowledged never
//! finds content of version `v` or an older one; after a soft purge it does not find it fresh. (A purge is acknowledged
//! when it has returned, a ban when `announce_ban` has.)
//!
//! Threads that use two caches with one store fetch pages from an origin that counts its versions, publish them, some of
//! them late, revalidate them, purge them by key and by tag, hard and soft, and ban them, all at random for a bounded number of rounds. No body is ever
//! torn either: each is its version's text, over and over.

mod common;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::*;
use objmapper_records::{Miss, Outcome};

const PAGES: usize = 6;
const THREADS: usize = 6;
const ROUNDS: usize = 400;

struct Page {
    /// What the origin has.
    version: AtomicU64,
    /// No version up to this one may be found any more.
    invalidated: AtomicU64,
    /// No version up to this one may be found fresh any more.
    stale: AtomicU64,
}

fn text(page: usize, version: u64) -> Vec<u8> {
    format!("{page}:{version};").into_bytes().repeat(1 + page * 3000)
}

#[track_caller]
fn version_of(page: usize, body: &[u8]) -> u64 {
    let first = body.split(|b| *b == b';').next().unwrap();
    let (_, version) = std::str::from_utf8(first).unwrap().split_once(':').unwrap();
    let version = version.parse().unwrap();
    assert!(body == text(page, version), "torn");
    version
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

fn run(seed: u64, site: &Site) {
    let caches = [site.cache(), site.cache()];
    let pages: Vec<_> = (0..PAGES)
        .map(|_| Page { version: AtomicU64::new(1), invalidated: AtomicU64::new(0), stale: AtomicU64::new(0) })
        .collect();
    let hits = AtomicUsize::new(0);
    let conflicts = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (caches, pages, hits, conflicts) = (&caches, &pages, &hits, &conflicts);
            scope.spawn(move || {
                let mut rng = Rng(seed + thread as u64 * 7919 + 1);
                for round in 0..ROUNDS {
                    let cache = &caches[rng.below(2) as usize];
                    let number = rng.below(PAGES as u64) as usize;
                    let page = &pages[number];
                    // Half of the pages vary.
                    let vary: &[&str] = if number.is_multiple_of(2) { &["Vary: X"] } else { &[] };
                    let url = format!("/{number}");
                    let r = req(&url).with("X", ["a", "b"][rng.below(2) as usize]);
                    let tag = format!("tag-{number}");
                    match rng.below(24) {
                        0 => {
                            let version = page.version.fetch_add(1, SeqCst);
                            cache.purge(&url);
                            page.invalidated.fetch_max(version, SeqCst);
                        }
                        1 => {
                            let version = page.version.fetch_add(1, SeqCst);
                            cache.ban(&Ban::at(NOW + round as f64).url(EQ, &url));
                            page.invalidated.fetch_max(version, SeqCst);
                        }
                        2 => {
                            let version = page.version.fetch_add(1, SeqCst);
                            cache.l2.purge_tags(&[b"none", tag.as_bytes()], false, &cache.counters).unwrap();
                            page.invalidated.fetch_max(version, SeqCst);
                        }
                        3 => {
                            let version = page.version.fetch_add(1, SeqCst);
                            cache.l2.purge_tags(&[tag.as_bytes()], true, &cache.counters).unwrap();
                            page.stale.fetch_max(version, SeqCst);
                        }
                        4 => {
                            let version = page.version.fetch_add(1, SeqCst);
                            cache.l2.purge(&cache.key(&url), true, &cache.counters).unwrap();
                            page.stale.fetch_max(version, SeqCst);
                        }
                        _ => {
                            let stale_up_to = page.stale.load(SeqCst);
                            let invalidated = page.invalidated.load(SeqCst);
                            let wait = Duration::from_millis(rng.below(3) * 5);
                            // Some look later, when some records are stale.
                            let now = NOW + rng.below(3) as f64 * 40.0;
                            let fetch = |late: bool| {
                                let version = page.version.load(SeqCst);
                                if late {
                                    std::thread::sleep(Duration::from_millis(2));
                                }
                                version
                            };
                            let tag_line = format!("xkey: all {tag}");
                            let lines: Vec<&str> = [&["ETag: \"x\"", &tag_line], vary].concat();
                            let late = rng.below(4) == 0;
                            match cache.get_at(&r, now, wait) {
                                Got::Hit(body, _) => {
                                    let version = version_of(number, &body);
                                    assert!(
                                        version > invalidated,
                                        "seed {seed}: {url} {version}, {invalidated} is invalidated"
                                    );
                                    assert!(
                                        version > stale_up_to,
                                        "seed {seed}: {url} {version} is fresh, {stale_up_to} is stale"
                                    );
                                    hits.fetch_add(1, SeqCst);
                                }
                                Got::Stale(body, stale) => {
                                    let version = version_of(number, &body);
                                    assert!(
                                        version > invalidated,
                                        "seed {seed}: {url} {version}, {invalidated} is invalidated"
                                    );
                                    let Some(ticket) = stale.ticket else { continue };
                                    let current = fetch(late);
                                    let mut renewed = stale.hit.head.clone();
                                    renewed.t_origin = now;
                                    if current == version {
                                        ticket.renew(&stale.hit, &renewed, &cache.counters);
                                    } else {
                                        cache.publish(ticket, &r, renewed, &text(number, current));
                                    }
                                }
                                Got::Miss(Miss { ticket: Some(ticket), .. }) => {
                                    let mut new = head(60.0, &lines);
                                    new.t_origin = now;
                                    match cache.publish(ticket, &r, new, &text(number, fetch(late))) {
                                        Outcome::Published | Outcome::Overtaken => {}
                                        Outcome::Conflict => {
                                            conflicts.fetch_add(1, SeqCst);
                                        }
                                        other => panic!("seed {seed}: {other:?}"),
                                    }
                                }
                                Got::Miss(_) => {}
                            }
                        }
                    }
                }
            });
        }
    });
    // The invariant says nothing where nothing is found.
    let rounds = THREADS * ROUNDS;
    assert!(hits.load(SeqCst) > rounds / 10, "seed {seed}: {} hits of {rounds}", hits.load(SeqCst));
    for cache in &caches {
        assert_eq!(cache.counters.c_damaged.load(SeqCst), 0);
    }
    println!("seed {seed}: {} hits, {} conflicts", hits.load(SeqCst), conflicts.load(SeqCst));
}

#[test]
fn nothing_invalidated_is_found_in_memory() {
    let site = Site::memory();
    for seed in 1..4 {
        run(seed, &site);
        // Pages begin with version 1 again.
        let cache = site.cache();
        for page in 0..PAGES {
            cache.purge(&format!("/{page}"));
        }
    }
}

#[test]
fn nothing_invalidated_is_found_on_disk() {
    run(17, &Site::disk());
}
