//! A real site behind a real H2O, fetched through varnishd in every way, every byte compared.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::{Client, Request};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::open_directory;
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

/// Fetches of every size: missed, hit, by a slow and a fast reader at once, in part, HEAD.
fn check(arrangement: Arrangement) -> Result<()> {
    let dir = open_directory()?;
    let root = dir.path().join("site");
    std::fs::create_dir(&root)?;
    for size in site::SIZES {
        site::write(&root, &size.to_string(), size as u64, size)?;
    }
    let h2o = H2o::start(dir.path(), &root)?;
    let daemon = match arrangement.has_daemon() {
        true => Some(Objmapperd::start(dir.path(), "1g")?),
        false => None,
    };
    let socket = daemon.as_ref().map(Objmapperd::socket);
    let varnishd = Varnishd::start(
        dir.path(),
        &Options {
            arrangement,
            storage: &[arrangement.storage("s0", "100m", socket.as_deref(), "")],
            listen: &[],
            vcl: &backend(&h2o),
            parameters: &[],
            user: None,
            descriptors: None,
        },
    )?;
    let client = Client::new();
    for size in site::SIZES {
        each_way(&client, &varnishd, size).with_context(|| format!("{size} bytes"))?;
    }
    // The slow and the fast reader miss another URL of the same file together.
    ensure!(varnishd.counter("MAIN.cache_miss")? == 2 * site::SIZES.len() as u64, "one miss per URL");
    ensure!(varnishd.counter("MAIN.fetch_failed")? == 0, "no fetch failed");
    ensure!(varnishd.panic().is_none(), "{:?}", varnishd.panic());
    Ok(())
}

fn each_way(client: &Client, varnishd: &Varnishd, size: usize) -> Result<()> {
    let want = site::bytes(size as u64, size);
    let url = varnishd.url(&format!("/{size}"));
    for round in ["missed", "hit"] {
        let got = client.fetch(&url)?;
        ensure!(got.status == 200, "{round}: status {}", got.status);
        ensure!(got.body == want, "{round}: the body differs");
    }

    let head = client.send(&url, &Request { method: Some("HEAD"), ..Request::default() })?;
    ensure!(head.header("content-length") == Some(size.to_string().as_str()), "HEAD: {:?}", head.headers);

    for (first, last) in ranges(size) {
        let range = format!("bytes={first}-{last}");
        let got = client.send(&url, &Request { headers: &[("Range", &range)], ..Request::default() })?;
        ensure!(got.status == 206, "{range}: status {}", got.status);
        ensure!(got.body == want[first..=last], "{range}: the part differs");
    }

    // Both miss, and follow the same fetch at their own pace.
    let together = format!("{url}?together");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let pace = Some((64 * 1024, Duration::from_millis(2)));
            client.send(&together, &Request { slowly: pace, ..Request::default() })
        });
        let fast = client.fetch(&together)?;
        ensure!(fast.body == want, "fast reader: the body differs");
        let slow = slow.join().map_err(|_| anyhow::anyhow!("the slow reader panicked"))??;
        ensure!(slow.body == want, "slow reader: the body differs");
        Ok(())
    })
}

/// Parts at the ends, around a page and around the threshold.
fn ranges(size: usize) -> Vec<(usize, usize)> {
    let edges = [(0, 0), (0, 4095), (4095, 4096), (65_535, 65_536), (65_536, 65_536), (size / 3, size / 2)];
    let mut ranges: Vec<_> = edges.into_iter().filter(|(first, last)| first <= last && *last < size).collect();
    if size > 0 {
        ranges.push((size - 1, size - 1));
    }
    ranges
}

fn backend(h2o: &H2o) -> String {
    let (host, port) = (h2o.address().ip(), h2o.address().port());
    format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n")
}

#[test]
fn control_malloc() -> Result<()> {
    check(Arrangement::Malloc)
}

#[test]
fn embedded() -> Result<()> {
    check(Arrangement::Embedded)
}

#[test]
fn embedded_with_threshold_0() -> Result<()> {
    check(Arrangement::EmbeddedT0)
}

#[test]
fn daemon() -> Result<()> {
    check(Arrangement::Daemon)
}

#[test]
fn daemon_with_threshold_0() -> Result<()> {
    check(Arrangement::DaemonT0)
}
