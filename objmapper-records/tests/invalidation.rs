//! The invalidation log: purges by key and by tag, hard and soft; its bounds; other versions.

mod common;

use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use common::*;
use objmapper_client::{Client, IfVersion, ObjUri, UriSpace, Want};
use objmapper_records::{Config, MissReason, Notice, Outage, Outcome};

fn space() -> UriSpace {
    UriSpace::new(&[b"example.com"]).unwrap()
}

fn client(site: &Site) -> Client {
    Client::builder(site.socket()).connect().unwrap()
}

fn count(cache: &Cache, is: fn(&Notice) -> bool) -> usize {
    cache.notices.lock().unwrap().iter().filter(|notice| is(notice)).count()
}

fn purge_tags(cache: &Cache, tags: &[&str], soft: bool) {
    let tags: Vec<_> = tags.iter().map(|tag| tag.as_bytes()).collect();
    cache.l2.purge_tags(&tags, soft, &cache.counters).unwrap();
}

fn by_tags(a: &Cache, b: &Cache) {
    let put = |url: &str, lines: &[&str]| a.put(&req(url), head(60.0, lines), url.as_bytes());
    put("/1", &["xkey: red blue", "Surrogate-Key: green"]);
    put("/2", &["XKEY:\tred,  yellow "]);
    put("/3", &["xkey: blue"]);
    put("/4", &["X-Other: red"]);
    let Got::Hit(_, hit) = b.get(&req("/1")) else { panic!() };
    let ticket = b.get(&req("/5")).ticket();
    purge_tags(b, &["red", "none"], false);
    for url in ["/1", "/2"] {
        assert_eq!(a.get(&req(url)).why(), MissReason::Invalidated, "{url}");
        assert!(matches!(b.get(&req(url)), Got::Miss(_)), "{url}");
    }
    for url in ["/3", "/4"] {
        assert_eq!(a.get(&req(url)).body(), url.as_bytes());
    }
    assert!(!hit.still_valid(&b.l2, &req("/1")));
    // What was asked for before the purge is not published.
    assert_eq!(b.publish(ticket, &req("/5"), head(60.0, &["xkey: red"]), b"old"), Outcome::Conflict);
    put("/5", &["xkey: red"]);
    assert_eq!(b.get(&req("/5")).body(), b"/5");
    // A tag in another header, and of a part of a word.
    purge_tags(a, &["green", "lue"], false);
    assert_eq!(b.get(&req("/3")).body(), b"/3");
    assert_eq!((a.counters.c_purges.load(Relaxed), b.counters.c_purges.load(Relaxed)), (1, 1));
}

#[test]
fn a_purge_by_tag_is_for_all() {
    for site in [Site::memory(), Site::disk()] {
        by_tags(&site.cache(), &site.cache());
    }
}

#[test]
fn a_purge_by_tag_with_a_v01_peer() {
    let peer = common::v01_peer::V01Peer::start();
    by_tags(&Cache::at(&peer.socket(), PATIENCE), &Cache::at(&peer.socket(), PATIENCE));
}

fn soft(a: &Cache, b: &Cache, is_v01: bool) {
    for (url, purge) in [
        ("/tag", &(|| purge_tags(b, &["soft"], true)) as &dyn Fn()),
        ("/key", &|| assert_eq!(b.l2.purge(&b.key("/key"), true, &b.counters), Ok(true))),
    ] {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let r = req(url);
        let mut first = head(1000.0, &["ETag: \"1\"", "xkey: soft"]);
        (first.t_origin, first.grace, first.keep) = (now - 100.0, 50.0, 0.0);
        a.put(&r, first.clone(), b"body");
        let under_way = b.get(&req("/under way")).ticket();
        let Got::Hit(_, hit) = a.get_at(&r, now, PATIENCE) else { panic!() };
        purge();
        assert!(!hit.still_valid(&a.l2, &r));
        let outcome = b.publish(under_way, &req("/under way"), head(60.0, &["xkey: soft"]), b"x");
        assert_eq!(outcome, if url == "/tag" { Outcome::Conflict } else { Outcome::Published });
        b.purge("/under way");
        // Stale, in grace from the purge on.
        let (body, stale) = a.get_at(&r, now, PATIENCE).stale();
        assert!(body == b"body" && stale.hit.still_valid(&a.l2, &r));
        assert!((stale.hit.head.ttl - 100.0).abs() < 20.0, "{}", stale.hit.head.ttl);
        assert!(stale.hit.in_grace(now + 30.0) && !stale.hit.in_grace(now + 80.0));
        // The origin confirms it: fresh again.
        let mut renewed = first.clone();
        renewed.t_origin = now;
        assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &a.counters), Outcome::Published);
        let Got::Hit(body, hit) = b.get_at(&r, now + 1.0, PATIENCE) else { panic!() };
        assert!(body == b"body" && hit.still_valid(&b.l2, &r));
        // A second one makes it stale again, for which it needs a ticket, and then has something new.
        purge();
        let (_, stale) = b.get_at(&r, now + 1.0, PATIENCE).stale();
        let (_, other) = a.get_at(&r, now + 1.0, Duration::ZERO).stale();
        assert_eq!(other.ticket.is_none(), !is_v01);
        let mut new = first.clone();
        new.t_origin = now + 1.0;
        assert_eq!(b.publish(stale.ticket.unwrap(), &r, new.clone(), b"new"), Outcome::Published);
        assert_eq!(a.get_at(&r, now + 1.0, PATIENCE).body(), b"new");
        // Beyond its grace it goes.
        purge();
        assert_eq!(a.get_at(&r, now + 1000.0, PATIENCE).why(), MissReason::Expired);
        a.put(&r, new, b"x");
        b.purge(url);
        assert!(matches!(a.get(&r), Got::Miss(_)));
    }
}

#[test]
fn a_soft_purge_leaves_a_stale_record() {
    for site in [Site::memory(), Site::disk()] {
        soft(&site.cache(), &site.cache(), false);
    }
}

#[test]
fn a_soft_purge_with_a_v01_peer() {
    let peer = common::v01_peer::V01Peer::start();
    soft(&Cache::at(&peer.socket(), PATIENCE), &Cache::at(&peer.socket(), PATIENCE), true);
}

/// Whatever the URL was by which the record was fetched, and whatever it is at the purge.
#[test]
fn a_purge_names_the_digest() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let digest = a.key("/x").digest();
    let put = |key: &objmapper_records::Key| {
        let r = req("/whatever");
        let (wait, hold) = (PATIENCE, PATIENCE);
        let lookup = objmapper_records::Lookup {
            key,
            request: &r,
            client: &r,
            wait,
            token: None,
            hold,
            now: NOW,
            refresh: false,
            adopts: None,
        };
        match a.l2.find(&lookup, &a.counters) {
            objmapper_records::Finding::Miss(miss) => {
                a.publish(miss.ticket.unwrap(), &r, head(60.0, &[]), b"x");
                false
            }
            _ => true,
        }
    };
    let fetched = [
        a.key("/x"),
        a.l2.key(Some(b"www"), b"/app/x", Some(&digest)),
        a.l2.key(None, b"/x", Some(&digest)),
        a.l2.key_from_text(b"example.com/www/x"),
    ];
    assert_eq!((fetched[1].uri(), fetched[0].uri()), (fetched[2].uri(), fetched[3].uri()));
    for purged in fetched.iter().chain([&b.l2.key_from_digest(&digest)]) {
        for key in &fetched[..2] {
            assert!(!put(key) && put(key));
        }
        b.l2.purge(purged, false, &b.counters).unwrap();
    }
    assert!(!put(&fetched[0]) && !put(&fetched[1]));
}

#[test]
fn a_purge_that_cannot_be_recorded_has_failed() {
    let mut site = Site::disk();
    let a = Cache::at(&site.socket(), Duration::from_millis(300));
    let r = req("/a");
    a.put(&r, head(60.0, &["xkey: red"]), b"body");
    site.stop();
    wait_for("down", || !a.l2.is_up());
    assert_eq!(a.l2.purge_tags(&[b"red"], false, &a.counters), Err(Outage::Down));
    assert_eq!(a.l2.purge(&a.key("/a"), true, &a.counters), Err(Outage::Down));
    assert_eq!((a.counters.c_purge_failed.load(Relaxed), a.l2.pending_bans()), (2, 0));
    site.start();
    assert!(a.l2.wait_up(PATIENCE));
    // It was told so, and the record is there.
    assert_eq!(a.get(&r).body(), b"body");
    purge_tags(&a, &["red"], false);
    assert_eq!(a.get(&r).why(), MissReason::Invalidated);
}

fn limited(site: &Site, limit: u64) -> Cache {
    let cache = Cache::with(&site.socket(), |config: &mut Config| config.log_limit = limit);
    assert!(cache.l2.wait_up(PATIENCE));
    cache
}

/// Far more entries than one file of the log holds: all of them are known to a cache that comes later.
#[test]
fn a_long_log_is_read_by_all() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    for i in [0, 1500, 2999] {
        a.put(&req(&format!("/{i}")), head(60.0, &[&format!("xkey: tag-{i}-{}", "x".repeat(500))]), b"old");
    }
    a.put(&req("/kept"), head(60.0, &["xkey: kept"]), b"kept");
    for i in 0..3000 {
        purge_tags(&a, &[&format!("tag-{i}-{}", "x".repeat(500))], false);
    }
    for cache in [&site.cache(), &b, &a] {
        for i in [0, 1500, 2999] {
            assert!(matches!(cache.get(&req(&format!("/{i}"))), Got::Miss(_)), "{i}");
        }
        assert_eq!(cache.get(&req("/kept")).body(), b"kept");
        let bytes = cache.counters.g_log_bytes.load(Relaxed);
        assert!((1_600_000..2_000_000).contains(&bytes), "{bytes}");
        assert_eq!(count(cache, |n| matches!(n, Notice::LogFilling { .. } | Notice::LogTrimmed { .. })), 0);
    }
    // A part of it is lost: what it may have said counts as said.
    let client = client(&site);
    let parts: Vec<ObjUri<'_>> = client.list(b"/example.com/l/").map(|item| item.unwrap().0).collect();
    assert!(parts.len() > 10, "{}", parts.len());
    assert!(client.delete(&parts[0], IfVersion::Any).unwrap());
    let late = site.cache();
    assert_eq!(late.get(&req("/kept")).why(), MissReason::Invalidated);
    assert_eq!(count(&late, |n| matches!(n, Notice::LogReset(_))), 1);
    late.put(&req("/kept"), head(60.0, &[]), b"new");
    assert_eq!(
        (a.get(&req("/kept")).body(), site.cache().get(&req("/kept")).body()),
        (b"new".to_vec(), b"new".to_vec())
    );
}

/// Bans that match nothing once dropped every record, and said nothing.
#[test]
fn a_full_log_tells_before_it_drops() {
    let site = Site::memory();
    let (a, b) = (limited(&site, 64 << 10), site.cache());
    a.put(&req("/old"), head(60.0, &[]), b"old");
    let is_trimmed: fn(&Notice) -> bool = |n| matches!(n, Notice::LogTrimmed { .. });
    let is_filling: fn(&Notice) -> bool = |n| matches!(n, Notice::LogFilling { .. });
    let mut bans = 0;
    while count(&a, is_filling) == 0 {
        a.ban(&Ban::at(NOW).url(EQ, &format!("/nothing/{bans}")));
        wait_for("ban", || a.l2.pending_bans() == 0);
        bans += 1;
        assert!(bans < 1000 && count(&a, is_trimmed) == 0);
        assert_eq!(a.get(&req("/old")).body(), b"old");
    }
    assert!(bans > 200, "{bans}");
    a.put(&req("/new"), head(60.0, &[]), b"new");
    while count(&a, is_trimmed) == 0 {
        a.ban(&Ban::at(NOW).url(EQ, &format!("/nothing/{bans}")));
        wait_for("ban", || a.l2.pending_bans() == 0);
        bans += 1;
        assert!(bans < 1000);
    }
    for cache in [&b, &a] {
        assert!(matches!(cache.get(&req("/old")), Got::Miss(_)));
        assert_eq!(cache.get(&req("/new")).body(), b"new");
    }
    assert!(a.counters.c_log_trimmed.load(Relaxed) > 100 && b.counters.c_log_trimmed.load(Relaxed) == 0);
    // The rewritten log has left no parts behind.
    let client = client(&site);
    assert!(client.list(b"/example.com/l/").count() <= 4);
}

/// The same bans and tags again and again take no room, and drop nothing.
#[test]
fn repeated_invalidations_do_not_fill_the_log() {
    let site = Site::memory();
    let a = limited(&site, 64 << 10);
    a.put(&req("/a"), head(60.0, &["xkey: kept"]), b"body");
    for i in 0..4000 {
        let word = (i % 40).to_string();
        a.l2.purge_tags(&[word.as_bytes()], i % 3 == 0, &a.counters).unwrap();
        a.ban(&Ban::at(NOW + f64::from(i)).url(EQ, &format!("/{word}")));
    }
    wait_for("bans", || a.l2.pending_bans() == 0);
    assert_eq!(a.get(&req("/a")).body(), b"body");
    let late = site.cache();
    assert_eq!(late.get(&req("/a")).body(), b"body");
    let bytes = late.counters.g_log_bytes.load(Relaxed);
    assert!(bytes < 12_000, "{bytes}");
    assert_eq!(count(&a, |n| matches!(n, Notice::LogFilling { .. } | Notice::LogTrimmed { .. })), 0);
}

/// A newer version has written it: it is neither removed nor believed, and nothing is removed because of it.
#[test]
fn a_log_of_a_newer_version_is_left_alone() {
    let site = Site::memory();
    let a = site.cache();
    let r = req("/a");
    a.put(&r, head(60.0, &[]), b"body");
    let client = client(&site);
    let uri = space().uri(&[b"log"]);
    let found = client.lookup(&uri, Want::FD).unwrap().unwrap();
    let mut original = vec![0; found.entry.length as usize];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::from(found.fd.unwrap()), &mut original, 0).unwrap();
    let put = |bytes: &[u8]| {
        let mut object = client.create(bytes.len() as u64, None, None).unwrap();
        std::fs::File::from(object.take_fd().unwrap()).write_all(bytes).unwrap();
        object.commit(&uri, bytes.len() as u64, Default::default()).unwrap();
    };
    let (rest, trailer) = original.split_at(original.len() - 48);
    let mut newer = rest.to_vec();
    newer[0] = 2;
    let mut sum = xxhash_rust::xxh3::Xxh3::new();
    sum.update(&newer);
    sum.update(&trailer[..32]);
    newer.extend_from_slice(&trailer[..32]);
    newer.extend_from_slice(&sum.digest128().to_be_bytes());
    put(&newer);
    let late = Cache::at(&site.socket(), Duration::from_millis(300));
    for _ in 0..3 {
        assert_eq!(late.get(&r).why(), MissReason::Outage(Outage::Protocol));
        assert_eq!(late.l2.purge(&late.key("/a"), false, &late.counters), Err(Outage::Protocol));
    }
    assert_eq!(count(&late, |n| matches!(n, Notice::LogNewer(2))), 1);
    assert!(client.lookup(&uri, Want::ENTRY).unwrap().is_some());
    assert!(client.lookup(late.key("/a").uri(), Want::ENTRY).unwrap().is_some());
    // It is replaced by what both know: the records are as good as before.
    put(&original);
    assert_eq!(late.get(&r).body(), b"body");
}

/// What can be sustained. Figures are printed; the bounds are for a busy machine.
#[test]
fn many_callers_share_a_write() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    a.put(&req("/a"), head(60.0, &["xkey: kept"]), b"body");
    const CALLERS: usize = 32;
    const EACH: usize = 100;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let a = &a;
            scope.spawn(move || {
                for i in 0..EACH {
                    let tags: Vec<_> = (0..10).map(|n| format!("tag-{caller}-{i}-{n}")).collect();
                    purge_tags(a, &tags.iter().map(String::as_str).collect::<Vec<_>>(), false);
                }
            });
        }
    });
    let tags = (CALLERS * EACH * 10) as f64;
    let took = began.elapsed().as_secs_f64();
    println!("{tags} tags by {CALLERS} callers, 10 each: {:.0} a second", tags / took);
    assert_eq!(b.get(&req("/a")).body(), b"body");
    let began = Instant::now();
    for i in 0..2000 {
        a.ban(&Ban::at(NOW).url(MATCH, &format!("^/ban/{i}$")));
    }
    wait_for("bans", || a.l2.pending_bans() == 0);
    println!("2000 bans: {:.0} a second", 2000.0 / began.elapsed().as_secs_f64());
    let began = Instant::now();
    assert_eq!(b.get(&req("/a")).body(), b"body");
    println!("a look-up that reads them: {:?}", began.elapsed());
    let began = Instant::now();
    for _ in 0..200 {
        purge_tags(&a, &["one"], false);
    }
    println!("a purge by one caller: {:?}", began.elapsed() / 200);
}
