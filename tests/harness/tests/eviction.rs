//! Objects that are evicted in the background are not counted any more.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::process::open_directory;
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const OBJECTS: usize = 40_000;
const CONNECTIONS: usize = 4;
/// Nearly the whole storage: most of the objects above make room for it.
const LARGE: usize = 30 << 20;
/// What threads have not summed yet, and what one sample sees more of than the one before it.
const SLACK: u64 = 500;

/// Fetches objects without a body, many requests ahead of their responses.
fn fill(varnishd: &Varnishd, numbers: std::ops::Range<usize>) -> Result<()> {
    let mut stream = TcpStream::connect(varnishd.address())?;
    let mut responses = BufReader::new(stream.try_clone()?);
    for first in numbers.clone().step_by(100) {
        let last = (first + 100).min(numbers.end);
        let requests: String =
            (first..last).map(|number| format!("HEAD /tiny{number} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        stream.write_all(requests.as_bytes())?;
        for _ in first..last {
            let mut line = String::new();
            responses.read_line(&mut line)?;
            ensure!(line.starts_with("HTTP/1.1 200 "), "{line}");
            while line != "\r\n" {
                line.clear();
                ensure!(responses.read_line(&mut line)? > 0, "the connection ended");
            }
        }
    }
    Ok(())
}

#[test]
fn evicted_objects_are_not_counted() -> Result<()> {
    let directory = open_directory()?;
    let dir = directory.path();
    let root = dir.join("site");
    std::fs::create_dir(&root)?;
    site::write(&root, "large", 1, LARGE)?;
    let h2o = H2o::start(dir, &root)?;
    let (host, port) = (h2o.address().ip(), h2o.address().port());
    let vcl = format!(
        r#"vcl 4.1;
backend h2o {{ .host = "{host}"; .port = "{port}"; }}
sub vcl_backend_fetch {{
	if (bereq.url ~ "tiny") {{ return (error(200)); }}
}}
sub vcl_backend_error {{
	set beresp.ttl = 1h;
	set beresp.body = "";
	return (deliver);
}}
"#
    );
    let arrangement = Arrangement::Embedded;
    let storage = [arrangement.storage("s0", "32m", None, "")];
    let varnishd = Varnishd::start(dir, &Options::new(arrangement, &storage, &vcl))?;
    std::thread::scope(|scope| {
        let share = OBJECTS / CONNECTIONS;
        let varnishd = &varnishd;
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|connection| scope.spawn(move || fill(varnishd, connection * share..(connection + 1) * share)))
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client panicked"))
    })?;
    let full = varnishd.counter("MAIN.n_object")?;
    ensure!(full as usize > OBJECTS / 2, "{full} objects");

    let done = AtomicBool::new(false);
    let samples = std::thread::scope(|scope| -> Result<Vec<(u64, u64)>> {
        let sampling = scope.spawn(|| -> Result<Vec<(u64, u64)>> {
            let mut samples = Vec::new();
            while !done.load(Relaxed) {
                let counters = varnishd.counters("")?;
                let value = |name: &str| counters.get(name).copied().with_context(|| format!("no {name}"));
                samples.push((value("MAIN.n_object")?, value("SMA.s0.g_alloc")?));
            }
            Ok(samples)
        });
        let response = Client::new().fetch(&varnishd.url("/large"));
        done.store(true, Relaxed);
        ensure!(response?.body == site::bytes(1, LARGE), "the body differs");
        sampling.join().expect("sampling panicked")
    })?;
    ensure!(varnishd.counter("OBJM.s0.c_evicted_ahead")? > 10_000, "little was evicted in the background");
    // Every object is one allocation, and there were no fewer when the sample before was taken.
    for pair in samples.windows(2) {
        let ((_, allocations), (objects, _)) = (pair[0], pair[1]);
        ensure!(objects <= allocations + SLACK, "n_object is {objects} with {allocations} allocations: {samples:?}");
    }
    ensure!(varnishd.panic().is_none(), "{:?}", varnishd.panic());
    varnishd.stop()
}
