//! A follower is given what other instances invalidate: in order, each once, at once, and what it cannot know as a loss.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use objmapper_client::{Board, Client, IfVersion, UriSpace};
use objmapper_records::{Config, Entry, Follower, Invalidation};

#[derive(Default)]
struct Applied(Mutex<Vec<(Entry, Instant)>>);

impl Follower for Applied {
    fn apply(&self, entries: &[Entry]) {
        let mut applied = self.0.lock().unwrap();
        applied.extend(entries.iter().map(|entry| (entry.clone(), Instant::now())));
    }
}

impl Applied {
    fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap().iter().map(|(entry, _)| entry.clone()).collect()
    }

    fn words(&self) -> Vec<String> {
        self.entries().iter().map(word).collect()
    }

    #[track_caller]
    fn wait(&self, expected: &[&str]) {
        wait_for(&format!("{expected:?}"), || self.words().len() >= expected.len());
        assert_eq!(self.words(), expected);
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

fn word(entry: &Entry) -> String {
    let softness = |soft: bool| if soft { "soft " } else { "" };
    match &entry.what {
        Invalidation::Ban(_) => "ban".into(),
        Invalidation::Purge { digest, soft } => format!("{}purge {:02x}", softness(*soft), digest[0]),
        Invalidation::Tag { tag, soft } => format!("{}tag {}", softness(*soft), String::from_utf8_lossy(tag)),
        Invalidation::All => "all".into(),
    }
}

fn following(socket: &std::path::Path, change: impl FnOnce(&mut Config)) -> (Cache, Arc<Applied>) {
    let applied = Arc::new(Applied::default());
    let follower = Arc::clone(&applied);
    let cache = Cache::with(socket, |config| {
        config.follower = Some(follower);
        change(config);
    });
    assert!(cache.l2.wait_up(PATIENCE));
    (cache, applied)
}

fn tag(cache: &Cache, tag: &str, soft: bool) {
    cache.l2.purge_tags(&[tag.as_bytes()], soft, &cache.counters).unwrap();
}

fn each_once(a: &Cache, b: &(Cache, Arc<Applied>), c: &(Cache, Arc<Applied>)) {
    tag(a, "one", false);
    tag(&b.0, "two", true);
    let key = a.key("/x");
    a.l2.purge(&key, false, &a.counters).unwrap();
    c.0.l2.purge(&key, true, &a.counters).unwrap();
    let ban = Ban::at(NOW).url(EQ, "/x").obj_http("X-Tag", MATCH, "^a");
    a.ban(&ban);
    wait_for("ban", || a.l2.pending_bans() == 0);
    tag(&c.0, "last", false);
    let purge = format!("purge {:02x}", key.digest()[0]);
    let soft = format!("soft {purge}");
    // The own ones are not among them.
    b.1.wait(&["tag one", &purge, &soft, "ban", "tag last"]);
    c.1.wait(&["tag one", "soft tag two", &purge, "ban"]);
    let entries = b.1.entries();
    assert!(entries.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].at <= pair[1].at));
    assert_eq!(entries[1].what, Invalidation::Purge { digest: key.digest(), soft: false });
    assert_eq!(entries[3].what, Invalidation::Ban(ban.0));
}

#[test]
fn each_entry_of_others_once_and_in_order() {
    for site in [Site::memory(), Site::disk()] {
        let socket = site.socket();
        each_once(&site.cache(), &following(&socket, |_| ()), &following(&socket, |_| ()));
    }
}

#[test]
fn with_a_v01_peer() {
    let peer = common::v01_peer::V01Peer::start();
    let socket = peer.socket();
    each_once(&Cache::at(&socket, PATIENCE), &following(&socket, |_| ()), &following(&socket, |_| ()));
}

/// From the answer to the purge to the follower's call.
#[test]
fn at_once() {
    let site = Site::memory();
    let (a, (_b, applied)) = (site.cache(), following(&site.socket(), |_| ()));
    tag(&a, "first", false);
    wait_for("first", || applied.words().len() == 1);
    let mut waits: Vec<Duration> = (1..200)
        .map(|n| {
            tag(&a, &n.to_string(), false);
            let answered = Instant::now();
            wait_for("entry", || applied.0.lock().unwrap().len() > n);
            applied.0.lock().unwrap()[n].1.saturating_duration_since(answered)
        })
        .collect();
    waits.sort_unstable();
    println!("median {:?}, p99 {:?}", waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    // Far below any interval of polling, also on a busy machine.
    assert!(waits[waits.len() / 2] < Duration::from_millis(50), "{:?}", waits[waits.len() / 2]);
}

/// A cache that begins has nothing that is older.
#[test]
fn what_was_before_the_start_is_left_out() {
    let site = Site::memory();
    let a = site.cache();
    tag(&a, "before", false);
    let (_b, applied) = following(&site.socket(), |_| ());
    tag(&a, "after", false);
    applied.wait(&["tag after"]);
}

#[test]
fn an_outage_in_which_the_log_stays() {
    let mut site = Site::disk();
    let (b, applied) = following(&site.socket(), |_| ());
    let a = site.cache();
    tag(&a, "one", false);
    applied.wait(&["tag one"]);
    site.stop();
    wait_for("down", || !a.l2.is_up() && !b.l2.is_up());
    // Recorded when the store is back, by a cache that is connected before the follower, or after it.
    a.ban(&Ban::at(NOW).url(EQ, "/x"));
    site.start();
    assert!(a.l2.wait_up(PATIENCE));
    tag(&a, "two", false);
    applied.wait(&["tag one", "ban", "tag two"]);
}

/// A store in memory begins with an empty log, but nothing was missed: what was acknowledged before was followed.
#[test]
fn a_new_store_is_no_loss() {
    let mut site = Site::memory();
    let (b, applied) = following(&site.socket(), |_| ());
    let a = site.cache();
    tag(&a, "one", false);
    applied.wait(&["tag one"]);
    tag(&a, "two", false);
    applied.wait(&["tag one", "tag two"]);
    site.stop();
    wait_for("down", || !a.l2.is_up() && !b.l2.is_up());
    site.start();
    assert!(a.l2.wait_up(PATIENCE) && b.l2.wait_up(PATIENCE));
    tag(&a, "three", false);
    applied.wait(&["tag one", "tag two", "tag three"]);
    // A ban that was announced on the former board may be one whose process has died.
    applied.clear();
    site.stop();
    wait_for("down", || !a.l2.is_up() && !b.l2.is_up());
    a.ban(&Ban::at(NOW).url(EQ, "/x"));
    site.start();
    assert!(a.l2.wait_up(PATIENCE) && b.l2.wait_up(PATIENCE));
    tag(&a, "four", false);
    applied.wait(&["all", "ban", "tag four"]);
}

#[test]
fn a_lost_log_is_a_loss() {
    let site = Site::memory();
    let (_b, applied) = following(&site.socket(), |_| ());
    let a = site.cache();
    tag(&a, "one", false);
    applied.wait(&["tag one"]);
    applied.clear();
    let client = Client::builder(site.socket()).connect().unwrap();
    let log = UriSpace::new(&[b"example.com"]).unwrap().uri(&[b"log"]);
    assert!(client.delete(&log, IfVersion::Any).unwrap());
    tag(&a, "two", false);
    wait_for("a loss", || applied.words().len() >= 2);
    let entries = applied.entries();
    assert_eq!((word(&entries[0]), word(&entries[1])), ("all".into(), "tag two".into()));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((now - entries[0].at).abs() < 60.0, "{}", entries[0].at);
}

/// A process that announced a ban died before it was recorded.
#[test]
fn a_healed_log_is_a_loss() {
    let site = Site::memory();
    let (b, applied) = following(&site.socket(), |_| ());
    b.put(&req("/a"), head(60.0, &[]), b"x");
    let dead = Client::builder(site.socket()).connect().unwrap();
    let space = UriSpace::new(&[b"example.com"]).unwrap();
    dead.session().unwrap().board().unwrap().announce(Board::slot(&space.prefix()));
    applied.wait(&["all"]);
    assert!(matches!(b.get(&req("/a")), Got::Miss(_)));
}

/// It was away for longer than the log could hold.
#[test]
fn a_trimmed_log_is_a_loss() {
    let site = Site::memory();
    let proxy = common::proxy::Proxy::to(&site.socket());
    let a = Cache::with(&site.socket(), |config| config.log_limit = 64 << 10);
    assert!(a.l2.wait_up(PATIENCE));
    let (b, applied) = following(&proxy.socket(), |config| config.call_timeout = Duration::from_millis(200));
    tag(&a, "one", false);
    applied.wait(&["tag one"]);
    proxy.stall(true);
    wait_for("down", || {
        let _ = b.get(&req("/a"));
        !b.l2.is_up()
    });
    for i in 0..2000 {
        tag(&a, &format!("{i}-{}", "x".repeat(40)), false);
    }
    proxy.stall(false);
    wait_for("the last one", || applied.words().last().is_some_and(|word| word.starts_with("tag 1999-")));
    let words = applied.words();
    assert_eq!((&words[0][..], &words[1][..]), ("tag one", "all"));
    assert!(words.len() < 1500, "{}", words.len());
    let seqs: Vec<_> = applied.entries().iter().map(|entry| entry.seq).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
}
