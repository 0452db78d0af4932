//! Whatever becomes of the store: a miss within the deadline that says why, nothing torn or stale, and it heals.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use objmapper_records::{Connect, MissReason, Notice, Outage, Outcome, State};
use objmapper_server::net::InProcess;
use objmapper_server::store::{MemoryTier, Store, StoreConfig};

fn bodies(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(bodies(&path));
        } else if path.file_name().unwrap().len() == 16 {
            files.push(path);
        }
    }
    files
}

/// The file of the record with this body.
fn file_of(site: &Site, body: &[u8]) -> PathBuf {
    let is_it = |path: &PathBuf| std::fs::read(path).unwrap().starts_with(body);
    bodies(&site.dir.path().join("disk")).into_iter().find(is_it).unwrap()
}

#[test]
fn a_record_damaged_in_any_byte_is_a_miss() {
    let site = Site::disk();
    let cache = site.cache();
    let r = req("/a");
    cache.put(&r, head(60.0, &["ETag: \"x\""]), b"the body");
    let path = file_of(&site, b"the body");
    let len = std::fs::metadata(&path).unwrap().len();
    for (damaged, at) in (0..len).enumerate() {
        let path = file_of(&site, b"the body");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        let flip = 1 << (at % 8);
        file.write_all_at(&[byte[0] ^ flip], at).unwrap();
        drop(file);
        let Got::Miss(miss) = cache.get(&r) else { panic!("byte {at}") };
        assert_eq!(miss.why, MissReason::Damaged, "byte {at}");
        assert_eq!(cache.counters.c_damaged.load(Relaxed), damaged as u64 + 1);
        let outcome = cache.publish(miss.ticket.unwrap(), &r, head(60.0, &["ETag: \"x\""]), b"the body");
        assert_eq!(outcome, Outcome::Published);
        assert_eq!(cache.get(&r).body(), b"the body");
    }
}

#[test]
fn a_record_cut_off_anywhere_is_a_miss() {
    let site = Site::disk();
    let cache = site.cache();
    let r = req("/a");
    let content = vec![b'x'; 3_000_000];
    cache.put(&r, head(60.0, &[]), &content);
    let len = std::fs::metadata(file_of(&site, &content)).unwrap().len();
    for cut in [0, 1, 47, 48, 49, 1_000_000, 2_999_999, 3_000_000, 3_000_001, len - 48, len - 1] {
        let file = std::fs::File::options().write(true).open(file_of(&site, &content)).unwrap();
        file.set_len(cut).unwrap();
        let Got::Miss(miss) = cache.get(&r) else { panic!("{cut} bytes") };
        assert_eq!(miss.why, MissReason::Damaged, "{cut} bytes");
        assert_eq!(cache.publish(miss.ticket.unwrap(), &r, head(60.0, &[]), &content), Outcome::Published);
    }
    // Cut off under a reader: an error, no signal.
    let Got::Hit(_, hit) = cache.get(&r) else { panic!() };
    let file = std::fs::File::options().write(true).open(file_of(&site, &content)).unwrap();
    file.set_len(10_000).unwrap();
    assert_eq!(hit.record.read_at(&mut [0; 20_000], 0), Err(Outage::Io));
}

#[test]
fn other_things_under_our_uris_are_no_records() {
    let site = Site::memory();
    let cache = site.cache();
    let r = req("/a");
    let key = cache.key("/a");
    let client = objmapper_client::Client::builder(site.socket()).connect().unwrap();
    let put = |bytes: &[u8]| {
        let mut object = client.create(bytes.len() as u64, None, None).unwrap();
        std::fs::File::from(object.take_fd().unwrap()).write_all(bytes).unwrap();
        object.commit(key.uri(), bytes.len() as u64, Default::default()).unwrap();
    };
    for bytes in [&b""[..], b"x", &[0; 48], &[0xff; 100], &[0; 70_000]] {
        put(bytes);
        let Got::Miss(miss) = cache.get_at(&r, NOW, PATIENCE) else { panic!() };
        assert!(miss.why == MissReason::Damaged && miss.ticket.is_some());
    }
    // A v0.1 client's, to which it can still write.
    let object = client.get_or_create(key.uri(), objmapper_client::V01Tier::Default).unwrap();
    std::fs::File::from(object.into_fd()).write_all(b"old style").unwrap();
    let Got::Miss(miss) = cache.get_at(&r, NOW, PATIENCE) else { panic!() };
    assert!(miss.why == MissReason::Damaged);
    drop(miss);
    // Another record's bytes, whole and valid.
    cache.put(&req("/other"), head(60.0, &[]), b"other");
    let found = client.lookup(cache.key("/other").uri(), objmapper_client::Want::FD).unwrap().unwrap();
    let mut bytes = vec![0; found.entry.length as usize];
    std::fs::File::from(found.fd.unwrap()).read_exact_at(&mut bytes, 0).unwrap();
    put(&bytes);
    let Got::Miss(miss) = cache.get_at(&r, NOW, PATIENCE) else { panic!() };
    assert!(miss.why == MissReason::Damaged);
}

#[test]
fn a_store_that_is_not_there_costs_nothing() {
    let mut site = Site::memory();
    let socket = site.socket();
    site.stop();
    let cache = Cache::not_connected(&socket, Duration::from_secs(1));
    let r = req("/a");
    let began = Instant::now();
    for _ in 0..1000 {
        assert_eq!(cache.get_at(&r, NOW, PATIENCE).why(), MissReason::Outage(Outage::Down));
    }
    // A thousand of them in less time than one deadline, also on a busy machine.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(cache.counters.c_out_down.load(Relaxed), 1000);
    assert_eq!(cache.l2.purge(&cache.key("/a"), false, &cache.counters), Err(Outage::Down));
    assert_eq!(cache.counters.c_purge_failed.load(Relaxed), 1);
    assert!(matches!(cache.l2.state(), State::Down(_)) && !cache.l2.is_up() && cache.l2.instance().is_none());

    site.start();
    assert!(cache.l2.wait_up(PATIENCE));
    cache.put(&r, head(60.0, &[]), b"body");
    assert_eq!(cache.get(&r).body(), b"body");
    assert_eq!(cache.l2.state(), State::Up);
}

#[test]
fn a_body_that_cannot_be_had_to_its_end_is_not_published_and_counted() {
    let site = Site::memory();
    let cache = site.cache();
    let r = req("/a");
    let mut writer = cache.get(&r).ticket().writer(head(60.0, &[]), &r, Some(10), &cache.counters).unwrap();
    writer.write(b"half ").unwrap();
    writer.fail(Outage::Io);
    assert_eq!(writer.finish(&cache.counters), Outcome::Outage(Outage::Io));
    let counted = [&cache.counters.c_out_io, &cache.counters.c_publish_failed, &cache.counters.c_published];
    assert_eq!(counted.map(|counter| counter.load(Relaxed)), [1, 1, 0]);
    assert!(matches!(cache.get_at(&r, NOW, PATIENCE), Got::Miss(_)));
}

/// The store starts again under a cache.
fn restart(mut site: Site, keeps: bool) {
    let (a, b) = (site.cache(), site.cache());
    for url in ["/kept", "/banned"] {
        a.put(&req(url), head(60.0, &[]), url.as_bytes());
    }
    let Got::Hit(_, hit) = a.get(&req("/kept")) else { panic!() };
    let ticket = a.get(&req("/under way")).ticket();
    site.stop();
    wait_for("down", || !a.l2.is_up() && !b.l2.is_up());
    // No other cache can know of it yet, but the store must not be used before it is recorded.
    a.ban(&Ban::at(NOW).url(EQ, "/banned"));
    assert_eq!(a.get(&req("/banned")).why(), MissReason::Outage(Outage::Down));
    assert_eq!(a.l2.pending_bans(), 1);
    site.start();
    assert!(a.l2.wait_up(PATIENCE) && b.l2.wait_up(PATIENCE));
    wait_for("the ban", || a.l2.pending_bans() == 0);
    // What was asked for before cannot be ordered with purges at the new store.
    assert!(!hit.still_valid(&a.l2, &req("/kept")));
    assert_ne!(a.publish(ticket, &req("/under way"), head(60.0, &[]), b"x"), Outcome::Published);
    for cache in [&a, &b, &site.cache()] {
        if keeps {
            assert_eq!(cache.get(&req("/kept")).body(), b"/kept");
        } else {
            assert!(matches!(cache.get(&req("/kept")), Got::Miss(_)));
        }
        assert!(matches!(cache.get(&req("/banned")), Got::Miss(_)));
    }
    a.put(&req("/banned"), head(60.0, &[]), b"new");
    assert_eq!(b.get(&req("/banned")).body(), b"new");
    let notices = a.notices.lock().unwrap().clone();
    let count = |is: fn(&Notice) -> bool| notices.iter().filter(|n| is(n)).count();
    assert_eq!(count(|n| matches!(n, Notice::Down(_))), 1, "{notices:?}");
    assert_eq!(count(|n| matches!(n, Notice::Up(_))), 2, "{notices:?}");
    assert!(count(|n| matches!(n, Notice::LogDelayed(_))) <= 1, "{notices:?}");
}

#[test]
fn a_store_in_memory_that_starts_again() {
    restart(Site::memory(), false);
}

#[test]
fn a_store_on_disk_that_starts_again() {
    restart(Site::disk(), true);
}

/// The notice of an outage that a caller has noticed may still be on its way when the next attempt to connect fails, for a reason
/// of its own.
#[test]
fn an_outage_is_one_notice() {
    let memory = Some(MemoryTier { limit: 64 << 20, mount: None });
    let store = Store::open(StoreConfig { memory, ..StoreConfig::default() }).unwrap();
    let serve = || Some(InProcess::start(store.clone(), 1).unwrap());
    let server = Arc::new(Mutex::new(serve()));
    let failed = Arc::new(AtomicUsize::new(0));
    let (connecting, failing) = (Arc::clone(&server), Arc::clone(&failed));
    let connector = move || match &*connecting.lock().unwrap() {
        Some(server) => server.connect(),
        None => {
            failing.fetch_add(1, SeqCst);
            Err(std::io::ErrorKind::ConnectionRefused.into())
        }
    };
    let (downs, by_caller) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, caller, attempts) = (Arc::clone(&downs), Arc::clone(&by_caller), Arc::clone(&failed));
    let log = move |notice: &Notice| {
        if matches!(notice, Notice::Down(_)) {
            let now = count.fetch_add(1, SeqCst) + 1;
            if std::thread::current().name() != Some("objm-keeper") {
                caller.store(true, SeqCst);
                let before = attempts.load(SeqCst);
                wait_for("a failed attempt", || attempts.load(SeqCst) > before);
                // A second notice would come now.
                let end = Instant::now() + Duration::from_millis(200);
                while count.load(SeqCst) == now && Instant::now() < end {
                    std::thread::yield_now();
                }
            }
        }
    };
    let cache = Cache::over(Connect::With(Arc::new(connector)), PATIENCE, 1, Arc::new(log), |_| ());
    let mut outages = 0;
    // The client's own thread may notice a loss first.
    while !by_caller.load(SeqCst) {
        assert!(cache.l2.wait_up(PATIENCE));
        let ticket = cache.get(&req("/a")).ticket();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| cache.get_at(&req("/a"), NOW, PATIENCE));
            wait_for("the look-up that waits", || cache.counters.g_waiting.load(Relaxed) == 1);
            drop(server.lock().unwrap().take());
            assert!(matches!(waits.join().unwrap(), Got::Miss(_)));
        });
        drop(ticket);
        outages += 1;
        let before = failed.load(SeqCst);
        wait_for("further attempts", || failed.load(SeqCst) >= before + 2);
        assert_eq!(downs.load(SeqCst), outages);
        *server.lock().unwrap() = serve();
    }
}

/// A peer that does `serve` with every connection.
fn peer(dir: &Path, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> PathBuf {
    let socket = dir.join("peer");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = std::sync::Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), serve) = (stream, std::sync::Arc::clone(&serve)) else { return };
            std::thread::spawn(move || serve(stream));
        }
    });
    socket
}

#[test]
fn peers_that_make_no_sense() {
    let garbage = |mut stream: UnixStream| {
        let _ = stream.write_all(&[0x4f; 4096]);
        let _ = stream.read_to_end(&mut Vec::new());
    };
    let mute = |mut stream: UnixStream| {
        let _ = stream.read_to_end(&mut Vec::new());
    };
    for (name, serve) in [
        ("garbage", Box::new(garbage) as Box<dyn Fn(UnixStream) + Send + Sync>),
        ("mute", Box::new(mute)),
        ("hangs up", Box::new(drop)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let socket = peer(dir.path(), serve);
        let cache = Cache::not_connected(&socket, Duration::from_millis(50));
        for _ in 0..20 {
            let why = cache.get_at(&req("/a"), NOW, Duration::ZERO).why();
            assert_eq!(why, MissReason::Outage(Outage::Down), "{name}");
        }
        assert!(cache.l2.purge(&cache.key("/a"), false, &cache.counters).is_err());
    }
}

#[test]
fn a_ban_that_was_never_recorded_heals() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.put(&r, head(60.0, &[]), b"old");
    // A cache announces a ban and dies.
    let dead = objmapper_client::Client::builder(site.socket()).connect().unwrap();
    let space = objmapper_client::UriSpace::new(&[b"example.com"]).unwrap();
    dead.session().unwrap().board().unwrap().announce(objmapper_client::Board::slot(&space.prefix()));
    drop(dead);
    for cache in [&a, &b] {
        let began = Instant::now();
        assert_eq!(cache.get(&r).why(), MissReason::BansPending);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(cache.counters.c_bans_pending.load(Relaxed), 1);
    }
    // While it lasts, a look-up costs little.
    wait_for("healing", || a.get(&r).why() != MissReason::BansPending);
    // What the ban may have been about is invalidated: everything.
    assert!(matches!(b.get_at(&r, NOW, PATIENCE), Got::Miss(_)));
    a.put(&r, head(60.0, &[]), b"new");
    assert_eq!(b.get(&r).body(), b"new");
    let resets =
        |cache: &Cache| cache.notices.lock().unwrap().iter().filter(|n| matches!(n, Notice::LogReset(_))).count();
    // One for the first log, one for healing.
    assert_eq!(resets(&a) + resets(&b), 2);
    // Bans work as before.
    b.ban(&Ban::at(NOW).url(EQ, "/a"));
    assert_eq!(a.get(&r).why(), MissReason::Invalidated);
}

#[test]
fn a_lost_ban_log_invalidates_everything() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.put(&r, head(60.0, &[]), b"old");
    let client = objmapper_client::Client::builder(site.socket()).connect().unwrap();
    let space = objmapper_client::UriSpace::new(&[b"example.com"]).unwrap();
    let log = space.uri(&[b"log"]);
    assert!(client.delete(&log, objmapper_client::IfVersion::Any).unwrap());
    // A cache that knows the bans needs no log. One that comes later does.
    assert_eq!(b.get_at(&r, NOW, PATIENCE).why(), MissReason::Invalidated, "its first look-up: a new log");
    let late = site.cache();
    assert!(matches!(late.get_at(&r, NOW, PATIENCE), Got::Miss(_)));
    late.put(&r, head(60.0, &[]), b"new");
    assert_eq!((a.get(&r).body(), b.get(&r).body()), (b"new".to_vec(), b"new".to_vec()));
    // A damaged one is as good as lost.
    let mut object = client.create(4, None, None).unwrap();
    std::fs::File::from(object.take_fd().unwrap()).write_all(b"junk").unwrap();
    object.commit(&log, 4, Default::default()).unwrap();
    assert!(matches!(site.cache().get_at(&r, NOW, PATIENCE), Got::Miss(_)));
}

#[test]
fn many_bans_at_once() {
    let site = Site::memory();
    let caches = [site.cache(), site.cache(), site.cache()];
    const EACH: usize = 200;
    std::thread::scope(|scope| {
        for (i, cache) in caches.iter().enumerate() {
            scope.spawn(move || {
                for n in 0..EACH {
                    cache.ban(&Ban::at(NOW).url(EQ, &format!("/{i}/{n}")));
                }
            });
        }
    });
    for cache in &caches {
        wait_for("bans", || cache.l2.pending_bans() == 0);
    }
    let r = req("/a");
    caches[0].put(&r, head(60.0, &[]), b"body");
    let ticket = caches[1].get(&req("/2/7")).ticket();
    assert_eq!(caches[1].publish(ticket, &req("/2/7"), head(60.0, &[]), b"x"), Outcome::Published);
    for cache in &caches {
        assert_eq!(cache.get(&r).body(), b"body");
        assert_eq!(cache.get(&req("/2/7")).body(), b"x");
        assert!(!cache.notices.lock().unwrap().iter().any(|n| matches!(n, Notice::LogDelayed(_))));
    }
}

#[test]
fn a_store_that_stalls() {
    const CALL: Duration = Duration::from_millis(500);
    let site = Site::memory();
    let proxy = common::proxy::Proxy::to(&site.socket());
    let (a, direct) = (Cache::at(&proxy.socket(), CALL), site.cache());
    for url in ["/a", "/banned"] {
        a.put(&req(url), head(60.0, &[]), url.as_bytes());
    }
    let ticket = a.get(&req("/under way")).ticket();
    let written = a.get(&req("/written")).ticket();
    let mut writer = written.writer(head(60.0, &[]), &req("/written"), Some(2), &a.counters).unwrap();
    writer.write(b"xx").unwrap();

    proxy.stall(true);
    let began = Instant::now();
    assert_eq!(a.get(&req("/a")).why(), MissReason::Outage(Outage::Timeout));
    // Bounded by the deadline, with room for a machine that is busy.
    assert!(began.elapsed() < 6 * CALL, "{:?}", began.elapsed());
    // Also for a look-up that would wait for another fetch.
    let began = Instant::now();
    assert!(matches!(a.get_at(&req("/b"), NOW, PATIENCE).why(), MissReason::Outage(_)));
    assert!(began.elapsed() < 6 * CALL, "{:?}", began.elapsed());
    assert!(matches!(writer.finish(&a.counters), Outcome::Outage(_)));
    assert!(matches!(a.publish(ticket, &req("/under way"), head(60.0, &[]), b"x"), Outcome::Outage(_)));
    assert!(a.l2.purge(&a.key("/a"), false, &a.counters).is_err());
    // The breaker: no look-up waits any more.
    wait_for("down", || !a.l2.is_up());
    let began = Instant::now();
    for _ in 0..1000 {
        assert_eq!(a.get(&req("/a")).why(), MissReason::Outage(Outage::Down));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // The store itself lives, and so does its board: a ban is announced all the same, and a cache that still reaches the store
    // finds nothing that it may be about.
    a.ban(&Ban::at(NOW).url(EQ, "/banned"));
    assert_eq!(direct.get(&req("/banned")).why(), MissReason::BansPending);

    proxy.stall(false);
    assert!(a.l2.wait_up(PATIENCE));
    wait_for("the ban", || a.l2.pending_bans() == 0);
    for cache in [&a, &direct] {
        assert_eq!(cache.get_at(&req("/a"), NOW, PATIENCE).body(), b"/a");
        assert!(matches!(cache.get_at(&req("/banned"), NOW, PATIENCE), Got::Miss(_)));
    }
    // Recorded, not healed over: nothing else was invalidated.
    let resets =
        |cache: &Cache| cache.notices.lock().unwrap().iter().filter(|n| matches!(n, Notice::LogReset(_))).count();
    assert_eq!(resets(&a) + resets(&direct), 1, "the first log");
    assert_eq!(a.counters.c_out_timeout.load(Relaxed) + a.counters.c_out_down.load(Relaxed) - 1000, 5);
}

/// Records are evicted to make room; the log, on which they all depend, is not.
#[test]
fn a_full_store_keeps_its_ban_log() {
    let site = Site::memory();
    let cache = site.cache();
    let content = vec![1; 1 << 20];
    cache.put(&req("/first"), head(60.0, &[]), &content);
    for i in 0..150 {
        cache.put(&req(&format!("/{i}")), head(60.0, &[]), &content);
        if i % 10 == 0 {
            cache.ban(&Ban::at(NOW).url(EQ, &format!("/none/{i}")));
        }
    }
    assert!(matches!(cache.get(&req("/first")), Got::Miss(_)), "evicted");
    assert_eq!(cache.get(&req("/149")).body(), content);
    let resets = cache.notices.lock().unwrap().iter().filter(|n| matches!(n, Notice::LogReset(_))).count();
    assert_eq!(resets, 1, "the first log only");
}
