//! Two caches and one store: what one publishes the other finds, as long as it may.

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::*;
use objmapper_records::{Adopts, BodySum, Finding, Lookup, MissReason, Outcome, Published, RecordFile};

/// varnishd's gzip attribute of a gzip file of at least 20 bytes whose uncompressed length is unknown.
fn gzip_bits() -> [u8; 32] {
    let mut bits = [0; 32];
    for (field, value) in bits.chunks_exact_mut(8).zip([80_u64, 80, 120, 0]) {
        field.copy_from_slice(&value.to_be_bytes());
    }
    bits
}

#[test]
fn one_publishes_and_the_other_finds() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/video?x=1");
    assert_eq!(b.get(&r).why(), MissReason::Absent);
    for (len, url) in
        [(0, "/0"), (1, "/1"), (16_000, "/16k"), (1 << 20, "/1m"), ((1 << 20) + 1, "/more"), (5 << 20, "/5m")]
    {
        let r = req(url);
        let content: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        let mut sent = head(60.0, &["Content-Type: video/mp4", "ETag: \"x\"", "X-Empty:"]);
        sent.gzip_bits = (len >= 20).then(gzip_bits);
        sent.flags = 3;
        a.put(&r, sent.clone(), &content);
        for cache in [&a, &b] {
            let Got::Hit(body, hit) = cache.get_at(&r, NOW + 12.5, Duration::ZERO) else { panic!("{url}") };
            assert!(body == content, "{url}");
            assert_eq!(hit.head, sent);
            assert_eq!((hit.age(NOW + 12.5), hit.age(NOW - 3.0), hit.has_validator()), (12.5, 0.0, true));
            assert_eq!(hit.record.bytes().is_some(), len <= RecordFile::READ_LIMIT as usize, "{url}");
            assert!(hit.still_valid(&cache.l2, &r));
        }
    }
    assert_eq!(b.counters.c_hits.load(Relaxed), 6);
    assert_eq!(a.counters.c_published.load(Relaxed), 6);
    assert_eq!(a.counters.c_damaged.load(Relaxed) + b.counters.c_damaged.load(Relaxed), 0);
}

#[test]
fn a_body_of_unknown_length_in_pieces() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    let mut writer = a.get(&r).ticket().writer(head(60.0, &[]), &r, None, &a.counters).unwrap();
    let piece = vec![5; 300_000];
    for _ in 0..20 {
        writer.write(&piece).unwrap();
    }
    assert_eq!(b.get(&r).why(), MissReason::Held);
    assert_eq!(writer.finish(&a.counters), Outcome::Published);
    assert_eq!(b.get(&r).body().len(), 6_000_000);

    // One that is not finished is never seen.
    let r = req("/b");
    let mut writer = a.get(&r).ticket().writer(head(60.0, &[]), &r, Some(10), &a.counters).unwrap();
    writer.write(b"12345").unwrap();
    drop(writer);
    let Got::Miss(miss) = b.get_at(&r, NOW, PATIENCE) else { panic!() };
    assert!(miss.ticket.is_some());
    drop(miss);

    // Nor one that the store has no room for.
    let r = req("/c");
    let mut writer = a.get(&r).ticket().writer(head(60.0, &[]), &r, None, &a.counters).unwrap();
    let piece = vec![5; 8 << 20];
    let full = (0..20).find_map(|_| writer.write(&piece).err()).unwrap();
    assert_eq!(full, Outcome::Outage(objmapper_records::Outage::Full));
    assert_eq!(writer.finish(&a.counters), full);
    assert_eq!((a.counters.c_out_full.load(Relaxed), a.counters.c_publish_failed.load(Relaxed)), (1, 1));
    b.get_at(&r, NOW, PATIENCE).ticket();
}

#[test]
fn a_purge_is_for_all_and_for_what_is_under_way() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    assert!(!a.purge("/a"));
    a.put(&r, head(60.0, &[]), b"old");
    let Got::Hit(_, hit) = b.get(&r) else { panic!() };
    assert!(hit.still_valid(&b.l2, &r));
    assert!(a.purge("/a"));
    assert!(!hit.still_valid(&b.l2, &r) && !hit.still_valid(&a.l2, &r));

    // Fetched before, published after: no cache finds it.
    let ticket = b.get(&r).ticket();
    assert!(!a.purge("/a"));
    assert_eq!(b.publish(ticket, &r, head(60.0, &[]), b"old"), Outcome::Conflict);
    assert_eq!(b.counters.c_publish_conflict.load(Relaxed), 1);
    let Got::Miss(miss) = a.get_at(&r, NOW, PATIENCE) else { panic!() };
    assert_eq!(a.publish(miss.ticket.unwrap(), &r, head(60.0, &[]), b"new"), Outcome::Published);
    assert_eq!(b.get(&r).body(), b"new");
    assert_eq!((a.counters.c_purges.load(Relaxed), a.counters.c_purge_failed.load(Relaxed)), (3, 0));

    // A purge of another key has no effect.
    let ticket = b.get(&req("/other")).ticket();
    a.purge("/a");
    assert_eq!(b.publish(ticket, &req("/other"), head(60.0, &[]), b"other"), Outcome::Published);
}

#[test]
fn variants() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = |language: &str| req("/a").with("Accept-Language", language);
    let vary = ["Vary: Accept-Language"];
    const MANY: usize = 40;
    for i in 0..MANY {
        let cache = if i % 2 == 0 { &a } else { &b };
        cache.put(&r(&i.to_string()), head(60.0, &vary), i.to_string().as_bytes());
    }
    for i in 0..MANY {
        assert_eq!(a.get(&r(&i.to_string())).body(), i.to_string().as_bytes());
        assert_eq!(b.get(&r(&i.to_string())).body(), i.to_string().as_bytes());
    }
    // An absent header is another value than an empty one.
    a.put(&req("/a"), head(60.0, &vary), b"none");
    a.put(&r(""), head(60.0, &vary), b"empty");
    assert_eq!((b.get(&req("/a")).body(), b.get(&r("")).body()), (b"none".to_vec(), b"empty".to_vec()));

    // Another spec beside it, in several headers, and a response that does not vary.
    let both = r("new").with("X-Device", "tv");
    a.put(&both, head(60.0, &["vary: x-device,", "Vary: ACCEPT-LANGUAGE , x-device"]), b"both");
    assert_eq!(b.get(&both).body(), b"both");
    assert_eq!(b.get(&r("3").with("X-Device", "tv")).body(), b"3");
    b.put(&r("other").with("X-Device", "tv"), head(60.0, &[]), b"plain");
    assert_eq!(a.get(&r("whatever")).body(), b"plain");
    assert_eq!(a.get(&both).body(), b"plain", "the newest spec first");

    // All go with a purge, and what is under way does not come.
    let ticket = b.get(&req("/b").with("Accept-Language", "x"));
    drop(ticket);
    a.purge("/a");
    let ticket = b.get(&r("1")).ticket();
    for i in 2..MANY {
        assert!(!matches!(a.get(&r(&i.to_string())), Got::Hit(..)));
    }
    drop(ticket);
    b.put(&r("1"), head(60.0, &vary), b"one");
    let ticket = b.get(&r("2")).ticket();
    a.purge("/a");
    assert_eq!(b.publish(ticket, &r("2"), head(60.0, &vary), b"two"), Outcome::Conflict);
    assert!(matches!(a.get_at(&r("2"), NOW, PATIENCE), Got::Miss(_)));
}

#[test]
fn a_response_that_no_look_up_could_find_is_not_published() {
    let site = Site::memory();
    let a = site.cache();
    for line in ["Vary: *", "Vary: A, *", "Vary: a b", "Vary: \u{e4}"] {
        let r = req("/a");
        let ticket = a.get_at(&r, NOW, PATIENCE).ticket();
        assert_eq!(a.publish(ticket, &r, head(60.0, &[line]), b"x"), Outcome::Unmatchable, "{line}");
    }
    let long = "x".repeat(70_000);
    let r = req("/a").with("A", &long);
    let ticket = a.get_at(&r, NOW, PATIENCE).ticket();
    assert_eq!(a.publish(ticket, &r, head(60.0, &["Vary: a"]), b"x"), Outcome::Unmatchable);
    assert_eq!(a.counters.c_unmatchable.load(Relaxed), 5);
}

#[test]
fn one_fetches_and_the_others_wait() {
    let site = Site::memory();
    let a = site.cache();
    let r = req("/a");
    let ticket = a.get(&r).ticket();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let cache = site.cache();
                    let body = cache.get_at(&req("/a"), NOW, PATIENCE).body();
                    (body, cache.counters.c_waited.load(Relaxed))
                })
            })
            .collect();
        // All of them wait, or come later: none is granted the lease.
        assert_eq!(a.get_at(&r, NOW, Duration::from_millis(5)).why(), MissReason::Waited);
        assert_eq!(a.publish(ticket, &r, head(60.0, &[]), b"once"), Outcome::Published);
        for thread in waiting {
            assert_eq!(thread.join().unwrap().0, b"once");
        }
    });
    assert_eq!(a.counters.c_wait_timeout.load(Relaxed), 1);
}

/// A cache that ends gives up what it has.
#[test]
fn no_look_up_waits_for_a_cache_that_is_gone() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    let ticket = b.get(&r).ticket();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| a.get_at(&r, NOW, PATIENCE).ticket());
        drop(b);
        drop(ticket);
        waits.join().unwrap();
    });
}

#[test]
fn look_ups_wait_for_a_variant_that_is_not_known_yet() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a").with("X", "1");
    let ticket = a.get(&r).ticket();
    std::thread::scope(|scope| {
        let same = scope.spawn(|| b.get_at(&r, NOW, PATIENCE).body());
        let other = scope.spawn(|| {
            let other = req("/a").with("X", "2");
            let cache = site.cache();
            cache.get_at(&other, NOW, PATIENCE).ticket();
        });
        assert_eq!(a.publish(ticket, &r, head(60.0, &["Vary: X"]), b"one"), Outcome::Published);
        assert_eq!(same.join().unwrap(), b"one");
        other.join().unwrap();
    });
}

#[test]
fn the_fetch_of_a_cache_is_not_made_to_wait_for_it() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let (r, other) = (req("/a"), req("/b"));
    let (held, held_too) = (a.get(&r).ticket(), a.get(&other).ticket());
    let token = a.l2.sign_fetch(b"", b"/a", NOW).unwrap();
    assert_eq!(b.get_for_fetch(&r, &token, PATIENCE * 10).why(), MissReason::Held);
    assert_eq!(b.counters.c_not_waited.load(Relaxed), 1);
    assert!(b.l2.is_fetch(token.as_bytes(), b"", b"/a", NOW));
    // It says nothing about another URL, and a client's own says nothing.
    for (r, token) in [(&other, &token), (&r, &token.replace('-', "-0")), (&r, &"1-1".to_owned())] {
        assert_eq!(b.get_for_fetch(r, token, Duration::from_millis(5)).why(), MissReason::Waited);
    }
    // It takes nothing away: what is not held is granted, and what is published is found.
    drop(held_too);
    let token = a.l2.sign_fetch(b"", b"/b", NOW).unwrap();
    wait_for(
        "the lease",
        || matches!(b.get_for_fetch(&other, &token, PATIENCE), Got::Miss(miss) if miss.ticket.is_some()),
    );
    assert_eq!(a.publish(held, &r, head(60.0, &[]), b"body"), Outcome::Published);
    let token = a.l2.sign_fetch(b"", b"/a", NOW).unwrap();
    assert_eq!(b.get_for_fetch(&r, &token, PATIENCE).body(), b"body");
}

#[test]
fn nothing_to_share() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.get(&r).ticket().refuse(PATIENCE, &a.counters);
    wait_for("refusal", || match b.get(&r).why() {
        MissReason::Uncacheable(left) => left <= PATIENCE,
        why => {
            assert_eq!(why, MissReason::Held);
            false
        }
    });
    assert!(b.counters.c_refused.load(Relaxed) == 1 && a.counters.c_uncacheable.load(Relaxed) == 1);
    // A purge does not end it, a publication does; another key knows nothing of it.
    b.get(&req("/b")).ticket();
    // Given up: the next waiting look-up is granted it at once.
    let ticket = a.get_at(&req("/b"), NOW, PATIENCE).ticket();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| b.get_at(&req("/b"), NOW, PATIENCE).ticket());
        ticket.give_up();
        next.join().unwrap();
    });
}

#[test]
fn a_stale_record_is_revalidated_once() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    let mut first = head(60.0, &["ETag: \"1\""]);
    first.keep = 1000.0;
    a.put(&r, first.clone(), b"body");
    let later = NOW + 61.0;
    let (body, stale) = b.get_at(&r, later, Duration::ZERO).stale();
    assert_eq!((&body[..], stale.hit.in_grace(later), stale.hit.has_validator()), (&b"body"[..], true, true));
    // Another one has the record, but not the ticket.
    let (_, other) = a.get_at(&r, later, Duration::ZERO).stale();
    assert!(other.ticket.is_none());

    let mut renewed = first.clone();
    renewed.t_origin = later;
    assert!(renewed.headers.push(b"X-Renewed: 1"));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| match a.get_at(&r, later, PATIENCE) {
            Got::Hit(body, hit) => (body, hit.head),
            other => panic!("{other:?}"),
        });
        assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &b.counters), Outcome::Published);
        assert_eq!(waits.join().unwrap(), (b"body".to_vec(), renewed.clone()));
    });
    assert_eq!(b.counters.c_renewed.load(Relaxed), 1);

    // And a second time, beyond the first end.
    let much_later = later + 1061.0 - 1.0;
    let (_, stale) = a.get_at(&r, much_later, PATIENCE).stale();
    assert_eq!(stale.hit.head, renewed);
    renewed.t_origin = much_later;
    assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &a.counters), Outcome::Published);
    assert_eq!(b.get_at(&r, much_later, Duration::ZERO).body(), b"body");

    // The origin has something new this time.
    let end = much_later + 61.0;
    let (_, stale) = b.get_at(&r, end, PATIENCE).stale();
    let mut new = head(60.0, &[]);
    new.t_origin = end;
    assert_eq!(b.publish(stale.ticket.unwrap(), &r, new, b"new"), Outcome::Published);
    assert_eq!(a.get_at(&r, end, Duration::ZERO).body(), b"new");
    // In grace without a validator, then of no use.
    let (body, _) = a.get_at(&r, end + 65.0, PATIENCE).stale();
    assert_eq!(body, b"new");
    let Got::Miss(miss) = b.get_at(&r, end + 71.0, PATIENCE) else { panic!() };
    assert!(miss.ticket.is_some() && miss.why == MissReason::Expired);
}

/// The origin has something new: the lease on the renewal ends with its publication, and all waiting look-ups find it.
#[test]
fn a_new_response_ends_the_lease_on_the_renewal() {
    for lines in [&["ETag: \"1\""][..], &["ETag: \"1\"", "Vary: Accept-Language"]] {
        let site = Site::memory();
        let a = site.cache();
        let others: Vec<_> = (0..4).map(|_| site.cache()).collect();
        let r = req("/a").with("Accept-Language", "de");
        a.put(&r, head(60.0, lines), b"old");
        let later = NOW + 61.0;
        let (_, stale) = a.get_at(&r, later, PATIENCE).stale();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = others
                .iter()
                .map(|cache| {
                    let r = r.clone();
                    scope.spawn(move || {
                        let body = cache.get_at(&r, later, PATIENCE).body();
                        (body, cache.counters.c_waited.load(Relaxed))
                    })
                })
                .collect();
            wait_for("all wait", || others.iter().all(|cache| cache.counters.g_waiting.load(Relaxed) == 1));
            let mut new = head(60.0, lines);
            new.t_origin = later;
            assert_eq!(a.publish(stale.ticket.unwrap(), &r, new, b"new"), Outcome::Published);
            for thread in waiting {
                assert_eq!(thread.join().unwrap(), (b"new".to_vec(), 1));
            }
        });
        wait_for("the end of all leases", || site.leases() == 0);
    }
}

/// An error of the origin's ends neither the stale record nor any cache's right to serve it; other look-ups do not wait.
#[test]
fn an_error_leaves_a_stale_record() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.put(&r, head(60.0, &["ETag: \"1\""]), b"body");
    let later = NOW + 61.0;
    let (_, stale) = b.get_at(&r, later, PATIENCE).stale();
    let ticket = stale.ticket.unwrap();
    assert!(ticket.replaces_graced(later) && !ticket.replaces_graced(later + 10.0));
    ticket.refuse_error(PATIENCE, &b.counters);
    wait_for("the end of all leases", || site.leases() == 0);
    let (body, stale) = a.get_at(&r, later, PATIENCE).stale();
    assert_eq!(body, b"body");
    assert!(stale.ticket.is_none());
    assert!(!b.get_at(&req("/b"), later, PATIENCE).ticket().replaces_graced(0.0));
}

#[test]
fn a_304_that_varies_otherwise_ends_the_record() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let german = req("/a").with("Accept-Language", "de");
    a.put(&german, head(60.0, &["ETag: \"1\""]), b"for all");
    let later = NOW + 61.0;
    let (_, stale) = a.get_at(&german, later, PATIENCE).stale();
    let mut renewed = stale.hit.head.clone();
    renewed.t_origin = later;
    assert!(renewed.headers.push(b"Vary: Accept-Language"));
    assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &a.counters), Outcome::Unmatchable);
    assert_eq!((a.counters.c_renewed.load(Relaxed), a.counters.c_unmatchable.load(Relaxed)), (0, 1));
    // Not even a stale one is left for another cache.
    let french = req("/a").with("Accept-Language", "fr");
    assert_eq!(b.get_at(&french, later, PATIENCE).why(), MissReason::Absent);
}

#[test]
fn a_purge_or_a_refusal_ends_a_stale_record() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.put(&r, head(60.0, &["ETag: \"1\""]), b"body");
    let (_, stale) = b.get_at(&r, NOW + 61.0, PATIENCE).stale();
    a.purge("/a");
    let mut renewed = stale.hit.head.clone();
    renewed.t_origin += 61.0;
    assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &b.counters), Outcome::Conflict);
    assert!(!stale.hit.still_valid(&b.l2, &r));

    a.put(&r, head(60.0, &["ETag: \"1\""]), b"body");
    let (_, stale) = b.get_at(&r, NOW + 61.0, PATIENCE).stale();
    stale.ticket.unwrap().refuse(PATIENCE, &b.counters);
    wait_for("refusal", || match a.get_at(&r, NOW + 61.0, Duration::ZERO).why() {
        MissReason::Uncacheable(_) => true,
        why => {
            assert_eq!(why, MissReason::Held);
            false
        }
    });
}

#[test]
fn a_ban_is_for_all() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = |url: &str| req(url);
    for url in ["/a/1", "/a/2", "/b/1"] {
        a.put(&r(url), head(60.0, &["X-Tag: red blue"]), url.as_bytes());
    }
    let Got::Hit(_, hit) = b.get(&r("/a/1")) else { panic!() };
    let Got::Hit(_, safe) = b.get(&r("/b/1")) else { panic!() };
    a.ban(&Ban::at(NOW).url(MATCH, "^/a/"));
    // At once, and for all caches, one that comes later included.
    assert_eq!(b.get(&r("/a/1")).why(), MissReason::Invalidated);
    assert_eq!(a.get(&r("/a/2")).why(), MissReason::Invalidated);
    assert_eq!(b.get(&r("/b/1")).body(), b"/b/1");
    assert!(!hit.still_valid(&b.l2, &r("/a/1")) && safe.still_valid(&b.l2, &r("/b/1")));
    assert_eq!((a.counters.c_outlawed.load(Relaxed), b.counters.c_outlawed.load(Relaxed)), (1, 1));
    let late = site.cache();
    b.put(&r("/a/1"), head(60.0, &[]), b"new");
    assert_eq!(late.get(&r("/a/1")).body(), b"new");
    assert_eq!(late.get(&r("/b/1")).body(), b"/b/1");

    // What was asked for before a ban is found by none that it matches.
    let ticket = a.get_at(&r("/a/3"), NOW, PATIENCE).ticket();
    b.ban(&Ban::at(NOW).obj_http("X-Tag", EQ, "green").url(MATCH, "3$"));
    assert_eq!(a.publish(ticket, &r("/a/3"), head(60.0, &["X-Tag: green"]), b"old"), Outcome::Published);
    assert_eq!(a.get(&r("/a/3")).why(), MissReason::Invalidated);
    let ticket = a.get_at(&r("/a/3"), NOW, PATIENCE).ticket();
    assert_eq!(a.publish(ticket, &r("/a/3"), head(60.0, &["X-Tag: green"]), b"new"), Outcome::Published);
    assert_eq!(late.get(&r("/a/3")).body(), b"new");

    // A stale one is not revalidated but fetched anew.
    a.put(&r("/a/4"), head(60.0, &["ETag: \"1\""]), b"old");
    b.ban(&Ban::at(NOW).url(EQ, "/a/4"));
    let Got::Miss(miss) = late.get_at(&r("/a/4"), NOW + 61.0, PATIENCE) else { panic!() };
    assert_eq!(miss.why, MissReason::Invalidated);
    assert!(miss.ticket.is_some());

    // One without tests invalidates everything.
    a.l2.announce_ban(&objmapper_records::Ban::matching_everything(NOW));
    assert_eq!(b.get(&r("/b/1")).why(), MissReason::Invalidated);
}

#[test]
fn a_renewed_record_is_as_new_as_its_renewal() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.put(&r, head(60.0, &["ETag: \"1\""]), b"body");
    let (_, stale) = a.get_at(&r, NOW + 61.0, PATIENCE).stale();
    let mut renewed = stale.hit.head.clone();
    renewed.t_origin += 61.0;
    // Between the question to the origin and its answer.
    b.ban(&Ban::at(NOW + 61.0).url(EQ, "/a"));
    assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &a.counters), Outcome::Published);
    let Got::Miss(miss) = b.get_at(&r, NOW + 62.0, PATIENCE) else { panic!() };
    assert_eq!(miss.why, MissReason::Invalidated);
    drop(miss);
    let Got::Miss(miss) = a.get_at(&r, NOW + 62.0, PATIENCE) else { panic!() };
    assert_eq!(a.publish(miss.ticket.unwrap(), &r, renewed.clone(), b"body"), Outcome::Published);
    let (_, stale) = b.get_at(&r, NOW + 130.0, PATIENCE).stale();
    renewed.t_origin = NOW + 130.0;
    assert_eq!(stale.ticket.unwrap().renew(&stale.hit, &renewed, &a.counters), Outcome::Published);
    assert_eq!(a.get_at(&r, NOW + 131.0, PATIENCE).body(), b"body");
}

/// What a storage engine does: the body is in the store already, and becomes a record as it is.
#[test]
fn a_sealed_body() {
    use std::io::Write;
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let client = objmapper_client::Client::builder(site.socket()).connect().unwrap();
    let content = vec![9; 100_000];
    for (round, vary) in [&[][..], &["Vary: X"]].into_iter().enumerate() {
        let r = req("/a").with("X", &round.to_string());
        let mut draft = client.create(200_000, None, None).unwrap();
        let file = std::fs::File::from(draft.take_fd().unwrap());
        (&file).write_all(&content).unwrap();
        let mut summer = objmapper_records::Summer::new();
        summer.update(&content);
        let sealed = a.get_at(&r, NOW, PATIENCE).ticket();
        let sealed = sealed.seal(head(60.0, vary), &r, 100_000, Some(summer.sum()), &a.counters).unwrap();
        (&file).write_all(&sealed.tail).unwrap();
        drop(file);
        let len = 100_000 + sealed.tail.len() as u64;
        let fence = Some(objmapper_client::Fence { shard: sealed.shard, value: sealed.fence });
        let options = objmapper_client::CommitOptions { expires: sealed.expires_ms, fence, ..Default::default() };
        draft.commit(&sealed.uri, len, options).unwrap();
        assert_eq!(sealed.settle(Published::Done, &a.counters).unwrap(), Outcome::Published);

        let is_unreadable = |_, _| false;
        // The adopting reader does not read the body, the other readers do.
        let instance = b.l2.instance().unwrap();
        let key = b.key("/a");
        let (wait, hold, now) = (PATIENCE, PATIENCE, NOW);
        let mut lookup =
            Lookup { key: &key, request: &r, client: &r, wait, token: None, hold, now, refresh: false, adopts: None };
        for (adopts, reads) in [
            (None, true),
            (Some(Adopts { instance, from: 100_001, is_unreadable }), true),
            (Some(Adopts { instance: [1; 16], from: 1, is_unreadable }), true),
            (Some(Adopts { instance, from: 100_000, is_unreadable }), false),
        ] {
            lookup.adopts = adopts;
            let Finding::Hit(hit) = b.l2.find(&lookup, &b.counters) else { panic!() };
            assert_eq!(hit.record.bytes().is_some(), reads);
            assert!(body(&hit) == content);
            assert_eq!(hit.record.sum(), Some(BodySum(summer.sum().0)));
            assert_eq!(hit.record.entry().length, len);
        }
        // A record that the adopting reader could not read before is gone for all.
        lookup.adopts = Some(Adopts { instance, from: 1, is_unreadable: |_, _| true });
        let damaged = b.counters.c_damaged.load(Relaxed);
        let Finding::Miss(miss) = b.l2.find(&lookup, &b.counters) else { panic!() };
        assert_eq!((miss.why, b.counters.c_damaged.load(Relaxed)), (MissReason::Damaged, damaged + 1));
        miss.ticket.unwrap().give_up();
        // Purged meanwhile.
        let ticket = {
            b.purge("/a");
            a.get_at(&r, NOW, PATIENCE).ticket()
        };
        let sealed = ticket.seal(head(60.0, vary), &r, 1, None, &a.counters).unwrap();
        b.purge("/a");
        assert_eq!(sealed.settle(Published::Conflict, &a.counters).unwrap(), Outcome::Conflict);
    }
    // Not in the store after all: a copy.
    let r = req("/b");
    let ticket = a
        .get(&r)
        .ticket()
        .seal(head(60.0, &[]), &r, 1, None, &a.counters)
        .unwrap()
        .settle(Published::Elsewhere, &a.counters)
        .unwrap_err();
    assert_eq!(a.publish(ticket, &r, head(60.0, &[]), b"copy"), Outcome::Published);
    assert_eq!(b.get(&r).body(), b"copy");
}
