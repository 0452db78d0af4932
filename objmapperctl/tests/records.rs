//! Records: shown with what a cache would make of them, purged, verified.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::*;
use objmapper_client::{BodyPath, ObjUri, Want};
use objmapper_records::{Ban, Finding, Subject, Test, TextOper};

const BODY: &[u8] = b"the body";

#[test]
fn a_record_is_shown_with_its_reasons() {
    let daemon = Daemon::start();
    let cache = Cache::new(&daemon.socket());
    let etag = "ETag: \"1\"";
    cache.publish(&req("/fresh"), head(1.0, [3600.0, 5.0, 5.0], &["Content-Type: text/plain"]), BODY);
    cache.publish(&req("/grace"), head(10.0, [5.0, 3600.0, 0.0], &[]), BODY);
    cache.publish(&req("/kept"), head(10.0, [5.0, 0.0, 3600.0], &[etag]), BODY);

    let words = ["record", "varnish/h/fresh", "fresh: for 59m", "200 OK", "Content-Type: text/plain", "8 of them body"];
    daemon.ctl(&["show", "h/fresh"]).expect(0, &words);
    daemon.ctl(&["show", "http://h/grace"]).expect(0, &["stale: its ttl ended 5s ago; in grace for 59m"]);
    daemon
        .ctl(&["show", "/varnish/r/h/%2Fkept"])
        .expect(0, &["stale: its grace ended", "a 304 of the origin renews it"]);
    daemon.ctl(&["show", "h/absent"]).expect(1, &["/varnish/r/h/%2Fabsent", "there is none"]);
    daemon.ctl(&["show", "--prefix", "elsewhere", "h/fresh"]).expect(1, &["/elsewhere/r/h/%2Ffresh"]);

    let shown = daemon.ctl(&["show", "--json", "h/fresh"]).expect(0, &[]).json();
    let record = &shown[0];
    assert_eq!((record["state"].as_str(), record["status"].as_u64()), (Some("fresh"), Some(200)));
    assert_eq!((record["key"].as_str(), record["ttl"].as_f64()), (Some("varnish/h/fresh"), Some(3600.0)));
    assert!(record["age"].as_f64().unwrap() >= 1.0 && record["checksum"].is_string(), "{record}");

    assert_eq!(daemon.ctl(&["get", "h/fresh"]).expect(0, &[]).bytes, BODY);
    let raw = daemon.ctl(&["get", "--raw", "h/fresh"]).expect(0, &[]).bytes;
    assert!(raw.starts_with(BODY) && raw.len() > 100);
    // What was taken out can be put back.
    let saved = daemon.dir.path().join("saved");
    fs::write(&saved, &raw).unwrap();
    daemon.ctl(&["put", "/varnish/r/h/%2Ffresh", saved.to_str().unwrap()]).expect(0, &[]);
    assert!(matches!(cache.find(&req("/fresh")), Finding::Hit(_)));
}

#[test]
fn a_renewal_counts_for_its_record() {
    let daemon = Daemon::start();
    let cache = Cache::new(&daemon.socket());
    let old = head(100.0, [5.0, 0.0, 3600.0], &["ETag: \"1\""]);
    cache.publish(&req("/a"), old, BODY);
    let Finding::Stale(stale) = cache.find(&req("/a")) else { panic!() };
    let new = head(0.0, [3600.0, 0.0, 0.0], &["ETag: \"1\"", "X-Renewed: 1"]);
    stale.ticket.unwrap().renew(&stale.hit, &new, &cache.counters);
    daemon.ctl(&["show", "h/a"]).expect(0, &["fresh: for", "by a 304", "X-Renewed: 1"]);
}

#[test]
fn variants_are_selected_by_headers() {
    let daemon = Daemon::start();
    let cache = Cache::new(&daemon.socket());
    let vary = ["Vary: Accept-Language"];
    for language in ["de", "fr"] {
        let request = req("/v").with("Accept-Language", language);
        cache.publish(&request, head(0.0, [3600.0, 0.0, 0.0], &vary), language.as_bytes());
    }
    daemon.ctl(&["show", "h/v"]).expect(0, &["index of variants", "accept-language", "no variant for these"]);
    let de = ["show", "h/v", "-H", "Accept-Language: de"];
    daemon.ctl(&de).expect(0, &["index of variants", "variant      accept-language: de", "fresh"]);
    assert_eq!(daemon.ctl(&["get", "h/v", "-H", "accept-language: fr"]).expect(0, &[]).bytes, b"fr");
    daemon.ctl(&["get", "h/v"]).expect(1, &["h/v", "--header"]);

    daemon.ctl(&["purge", "h/v"]).expect(0, &["purged varnish/h/v"]);
    assert!(matches!(cache.find(&req("/v").with("Accept-Language", "de")), Finding::Miss(_)));
    daemon.ctl(&["purge", "h/v"]).expect(0, &["there was no record"]);
}

#[test]
fn a_purge_by_tag_and_a_ban_are_named() {
    let daemon = Daemon::start();
    let cache = Cache::new(&daemon.socket());
    for path in ["/soft", "/hard", "/banned"] {
        cache.publish(&req(path), head(1.0, [3600.0, 3600.0, 0.0], &[&format!("xkey: all {}", &path[1..])]), BODY);
    }
    daemon.ctl(&["show", "h/soft"]).expect(0, &["tags         all soft", "fresh"]);
    daemon.ctl(&["purge-tag", "--soft", "soft", "none"]).expect(0, &["soft none"]);
    daemon.ctl(&["show", "h/soft"]).expect(0, &["stale: its ttl ended", "soft purge of its tag soft, made "]);
    assert!(matches!(cache.find(&req("/soft")), Finding::Stale(_)));
    daemon.ctl(&["purge-tag", "hard"]).expect(0, &[]);
    daemon.ctl(&["show", "h/hard"]).expect(0, &["invalidated: purge of its tag hard, made "]);
    daemon.ctl(&["purge-tag", "two words"]).expect(2, &["two words", "no tag"]);

    daemon.ctl(&["show", "h/banned"]).expect(0, &["fresh"]);
    let test = Test::Text { subject: Subject::Url, oper: TextOper::Match, text: b"^/ban".to_vec() };
    cache.l2.announce_ban(&Ban { time: now(), timeless: true, tests: vec![test] });
    while cache.l2.pending_bans() > 0 {
        std::thread::yield_now();
    }
    daemon.ctl(&["show", "h/banned"]).expect(0, &["invalidated: ban req.url ~ ^/ban, made "]);
    daemon.ctl(&["purge", "--soft", "h/banned"]).expect(0, &["softly"]);

    cache.publish(&req("/other"), head(1.0, [3600.0, 0.0, 0.0], &["X: 1"]), BODY);
    daemon.ctl(&["ban", "obj.http.X == 2"]).expect(0, &["banned obj.http.X == 2"]);
    assert!(matches!(cache.find(&req("/other")), Finding::Hit(_)));
    daemon.ctl(&["ban", "obj.http.X == 1 && req.url ~ ^/o"]).expect(0, &["banned obj.http.X == 1 && req.url ~ ^/o"]);
    assert!(matches!(cache.find(&req("/other")), Finding::Miss(_)));
    daemon.ctl(&["ban", "req.uri ~ ^/o"]).expect(2, &["req.uri", "req.url"]);
}

/// The file of the object at a URI.
fn file_of(daemon: &Daemon, uri: &str) -> PathBuf {
    let uri = ObjUri::parse(uri.as_bytes()).unwrap();
    let entry = daemon.client().lookup(&uri, Want::ENTRY).unwrap().unwrap().entry;
    daemon.dir.path().join("store/objmapper-store/objects").join(BodyPath::new(entry.object).as_str())
}

fn writable(path: &Path) -> File {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn damage_is_found_and_removed() {
    let daemon = Daemon::start();
    let cache = Cache::new(&daemon.socket());
    for path in ["/whole", "/body", "/head", "/short"] {
        cache.publish(&req(path), head(0.0, [3600.0, 0.0, 0.0], &[]), BODY);
    }
    let client = daemon.client();
    put(&client, "/plain/a", b"no checksum");
    put(&client, "/varnish/r/h/%2Fnone", b"no record");
    daemon.ctl(&["verify", "/plain"]).expect(0, &["1 objects read", "0 damaged"]);

    writable(&file_of(&daemon, "/varnish/r/h/%2Fbody")).write_at(b"T", 0).unwrap();
    let path = file_of(&daemon, "/varnish/r/h/%2Fhead");
    let end = fs::metadata(&path).unwrap().len();
    writable(&path).write_at(b"\xff", end - 60).unwrap();
    writable(&file_of(&daemon, "/varnish/r/h/%2Fshort")).set_len(10).unwrap();

    let words = [
        "damaged: /varnish/r/h/%2Fbody: invalid checksum of the body",
        "damaged: /varnish/r/h/%2Fhead: invalid checksum of head and trailer",
        "damaged: /varnish/r/h/%2Fshort: invalid length: 10 bytes",
        "damaged: /varnish/r/h/%2Fnone: invalid trailer",
        "4 damaged, 0 removed",
        "verify --delete",
    ];
    let ran = daemon.ctl(&["verify"]).expect(1, &words);
    assert!(!ran.out.contains("whole") && !ran.out.contains("plain"), "{}", ran.out);
    daemon.ctl(&["show", "h/head"]).expect(0, &["damaged", "invalid checksum of head"]);
    daemon.ctl(&["get", "h/body"]).expect(1, &["damaged", "checksum of the body"]);

    let lines = daemon.ctl(&["verify", "--delete", "--json"]).expect(1, &["4 damaged objects, all removed"]).json();
    let (sums, damaged) = lines.split_last().unwrap();
    assert!(damaged.len() == 4 && damaged.iter().all(|object| object["deleted"] == true), "{damaged:?}");
    assert_eq!((sums["damaged"].as_u64(), sums["deleted"].as_u64()), (Some(4), Some(4)));
    daemon.ctl(&["verify"]).expect(0, &["0 damaged"]);
    assert!(matches!(cache.find(&req("/whole")), Finding::Hit(_)));
    assert!(matches!(cache.find(&req("/body")), Finding::Miss(_)));
}
