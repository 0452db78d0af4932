//! A storage whose store cannot take what the storage's limit allows: a file system smaller than that. Every client gets every
//! byte, and neither varnishd's memory nor its descriptors make up for the store.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::{Client, Request};
use objmapper_harness::mount;
use objmapper_harness::needs::Need;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// `fallback_heap` of every storage here.
const HEAP: u64 = 8 * MIB;
/// What passes through beyond what it had (`objmapper_engine::transit::WINDOW`).
const WINDOW: u64 = MIB;
const LARGE: usize = 3_000_017;
const HUGE: usize = 24_000_011;

const VCL: &str = r#"
sub vcl_recv {
	if (req.method == "PURGE") { return (purge); }
	if (req.url ~ "pass") { return (pass); }
}
sub vcl_backend_response {
	if (bereq.url ~ "whole") { set beresp.do_stream = false; }
}
sub vcl_deliver {
	set resp.http.happy = storage.s0.happy;
}
"#;

struct Stage {
    // In the order in which they are to end.
    varnishd: Varnishd,
    _h2o: H2o,
    store: PathBuf,
    _directory: tempfile::TempDir,
}

impl Stage {
    /// A varnishd whose objmapperd never comes.
    fn without_objmapperd() -> Result<Stage> {
        let directory = open_directory()?;
        let socket = format!("socket={}", directory.path().join("absent").display());
        Stage::start(directory, &socket)
    }

    /// A varnishd with a disk of 24 MB for 1 GB of bodies. `None`: that cannot be made here, and `test` is skipped.
    fn set(test: &str, options: &str) -> Result<Option<Stage>> {
        if Need::Mounts.skips(&format!("full_store::{test}"))? {
            return Ok(None);
        }
        let directory = open_directory()?;
        let store = directory.path().join("store");
        mount::small(&store, "24m")?;
        Stage::start(directory, &format!("dir={}{options}", store.display())).map(Some)
    }

    fn start(directory: tempfile::TempDir, options: &str) -> Result<Stage> {
        let dir = directory.path();
        let root = dir.join("site");
        std::fs::create_dir(&root)?;
        site::write(&root, "large", 1, LARGE)?;
        site::write(&root, "huge", 2, HUGE)?;
        let h2o = H2o::start(dir, &root)?;
        let (host, port) = (h2o.address().ip(), h2o.address().port());
        let vcl = format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n{VCL}");
        let arrangement = Arrangement::Embedded;
        let absent = format!("fallback_heap={HEAP}b,socket={}", dir.join("absent").display());
        let storage = [
            arrangement.storage("s0", "1g", None, &format!("fallback_heap={HEAP}b,{options}")),
            arrangement.storage("Transient", "1g", None, &absent),
        ];
        let varnishd = Varnishd::start(dir, &Options::new(arrangement, &storage, &vcl))?;
        Ok(Stage { varnishd, _h2o: h2o, store: dir.join("store"), _directory: directory })
    }

    fn counter(&self, name: &str) -> Result<u64> {
        self.varnishd.counter(&format!("OBJM.s0.{name}"))
    }

    fn fetch(&self, client: &Client, path: &str) -> Result<()> {
        let response = client.fetch(&self.varnishd.url(path))?;
        let wanted = if path.starts_with("/huge") { site::bytes(2, HUGE) } else { site::bytes(1, LARGE) };
        ensure!(response.status == 200, "{path}: status {}", response.status);
        ensure!(response.body == wanted, "{path}: the body differs");
        Ok(())
    }

    /// Fetches bodies until objmapper takes no more, and heap does not either. Returns how many.
    fn fill(&self) -> Result<u64> {
        let client = Client::new();
        for number in 0..40 {
            self.fetch(&client, &format!("/large?fill{number}"))?;
            ensure!(self.counter("g_fallback_bytes")? <= HEAP, "the heap has no bound");
            if self.counter("c_transit")? > 0 {
                return Ok(number + 1);
            }
        }
        anyhow::bail!("a disk of 24 MB and a heap of 8 took 120 MB")
    }

    /// Bytes of the child's memory that no file has.
    fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.varnishd.child_pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// How many files of the store the child has open.
    fn open_bodies(&self) -> Result<usize> {
        let objects = self.store.canonicalize()?;
        let mut open = 0;
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.varnishd.child_pid()?))? {
            let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
            let name = target.to_string_lossy();
            let body = name.contains("/objects/") || name.contains("(deleted)") || name.starts_with("/#");
            open += usize::from(target.starts_with(&objects) && body);
        }
        Ok(open)
    }

    fn end(self) -> Result<()> {
        ensure!(self.varnishd.panic().is_none(), "{:?}", self.varnishd.panic());
        self.varnishd.stop()
    }
}

#[test]
fn a_full_disk_is_not_full_memory() -> Result<()> {
    let Some(stage) = Stage::set("a_full_disk_is_not_full_memory", "")? else { return Ok(()) };
    let filled = stage.fill()?;
    ensure!(filled > 7, "{filled} bodies of 3 MB fill 24 MB on the disk and 8 in heap");
    has_bounded_memory(stage)
}

#[test]
fn an_absent_objmapperd_is_not_full_memory() -> Result<()> {
    let stage = Stage::without_objmapperd()?;
    stage.fill()?;
    has_bounded_memory(stage)
}

/// Many bodies at once, each larger than what the storage has left, pass through.
fn has_bounded_memory(stage: Stage) -> Result<()> {
    let before = stage.memory()?;
    let largest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|number| {
                let (stage, largest) = (&stage, &largest);
                scope.spawn(move || -> Result<()> {
                    let client = Client::new();
                    for round in 0..3 {
                        // Each body has two readers.
                        stage.fetch(&client, &format!("/huge?{round}-{}", number / 2))?;
                        largest.fetch_max(stage.memory()?, Relaxed);
                        ensure!(stage.counter("g_fallback_bytes")? <= HEAP, "the heap has no bound");
                    }
                    Ok(())
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client panicked"))
    })?;
    // Beside the window of each body there are a thread and a connection for each client, and what malloc keeps.
    let bound = before + 12 * (WINDOW + 3 * MIB) + 16 * MIB;
    ensure!(largest.load(Relaxed) < bound, "{} bytes of memory, {bound} would do", largest.load(Relaxed));
    ensure!(stage.varnishd.counter("MAIN.fetch_failed")? == 0, "a fetch failed");
    ensure!(stage.counter("c_transit_failed")? == 0, "a body in transit failed");
    ensure!(stage.counter("c_transit")? > 12, "{} in transit", stage.counter("c_transit")?);
    wait_for("what passed through to be freed", BOUND, || Ok((stage.counter("g_transit_bytes")? == 0).then_some(())))?;
    ensure!(
        stage.varnishd.output().contains("fallback_heap (8388608 bytes) is used up"),
        "{}",
        stage.varnishd.output()
    );
    stage.end()
}

/// A reader that stops holds the fetch, and not the body: others are given all of it meanwhile, by fetches of their own.
#[test]
fn a_slow_reader_holds_a_window_and_not_a_body() -> Result<()> {
    let Some(stage) = Stage::set("a_slow_reader_holds_a_window_and_not_a_body", "")? else { return Ok(()) };
    stage.fill()?;
    let transits = stage.counter("c_transit")?;
    let mut slow = TcpStream::connect(stage.varnishd.address())?;
    slow.write_all(b"GET /huge?slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut received = vec![0; 100_000];
    slow.read_exact(&mut received)?;
    wait_for("the body to be in transit", BOUND, || Ok((stage.counter("c_transit")? > transits).then_some(())))?;
    let client = Client::new();
    stage.fetch(&client, "/huge?slow")?;
    let transit = stage.counter("g_transit_bytes")?;
    ensure!(transit <= 2 * WINDOW, "{transit} bytes are in transit for one slow reader");
    slow.read_to_end(&mut received)?;
    let head = received.windows(4).position(|end| end == b"\r\n\r\n").context("no head")? + 4;
    ensure!(received[head..] == site::bytes(2, HUGE), "the slow reader's body differs");
    ensure!(stage.varnishd.counter("MAIN.fetch_failed")? == 0, "a fetch failed");
    stage.end()
}

/// A reader that goes away ends the fetch, which is for nothing then.
#[test]
fn a_body_in_transit_ends_with_its_readers() -> Result<()> {
    let Some(stage) = Stage::set("a_body_in_transit_ends_with_its_readers", "")? else { return Ok(()) };
    stage.fill()?;
    let mut gone = TcpStream::connect(stage.varnishd.address())?;
    gone.write_all(b"GET /huge?gone HTTP/1.1\r\nHost: a\r\n\r\n")?;
    gone.read_exact(&mut vec![0; 100_000])?;
    drop(gone);
    wait_for("the body to be freed", BOUND, || Ok((stage.counter("g_transit_bytes")? == 0).then_some(())))?;
    wait_for("the fetch to end", BOUND, || Ok((stage.counter("c_transit_failed")? == 1).then_some(())))?;
    stage.fetch(&Client::new(), "/huge?gone")?;
    stage.end()
}

/// A pass has one reader, which may go away at any time.
#[test]
fn passes_that_the_store_cannot_take_go_through() -> Result<()> {
    let stage = Stage::without_objmapperd()?;
    let transient = |name: &str| stage.varnishd.counter(&format!("OBJM.Transient.{name}"));
    let clients = 6;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| {
                let stage = &stage;
                scope.spawn(move || stage.fetch(&Client::new(), &format!("/huge?pass{number}")))
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client panicked"))
    })?;
    ensure!(transient("c_transit")? == clients, "{} in transit", transient("c_transit")?);
    ensure!(stage.varnishd.counter("MAIN.fetch_failed")? == 0, "a fetch failed");

    let mut gone = TcpStream::connect(stage.varnishd.address())?;
    gone.write_all(b"GET /huge?pass HTTP/1.1\r\nHost: a\r\n\r\n")?;
    gone.read_exact(&mut vec![0; 100_000])?;
    wait_for("the pass to be in transit", BOUND, || Ok((transient("c_transit")? == clients + 1).then_some(())))?;
    ensure!(transient("g_transit_bytes")? <= WINDOW, "{} bytes in transit", transient("g_transit_bytes")?);
    drop(gone);
    wait_for("the pass to be freed", BOUND, || Ok((transient("g_heap_bytes")? == 0).then_some(())))?;
    stage.end()
}

/// A response that is not streamed is complete before its first reader.
#[test]
fn what_is_not_streamed_is_delivered_too() -> Result<()> {
    let Some(stage) = Stage::set("what_is_not_streamed_is_delivered_too", "")? else { return Ok(()) };
    stage.fill()?;
    let client = Client::new();
    for number in 0..5 {
        stage.fetch(&client, &format!("/large?whole{number}"))?;
    }
    wait_for("what passed through to be freed", BOUND, || Ok((stage.counter("g_transit_bytes")? == 0).then_some(())))?;
    // As in a storage that is full: more than all there is for such ones.
    let response = client.fetch(&stage.varnishd.url("/huge?whole"))?;
    ensure!(response.status == 503, "status {}", response.status);
    ensure!(stage.counter("c_transit_failed")? == 1, "not counted");
    stage.fetch(&client, "/huge?streamed")?;
    stage.end()
}

/// Bodies that begin on the disk and end in heap, and bodies that cannot be published, keep no descriptor of their own.
#[test]
fn no_cached_body_has_descriptors_of_its_own() -> Result<()> {
    const KEPT: usize = 4;
    let Some(stage) = Stage::set("no_cached_body_has_descriptors_of_its_own", &format!(",fds={KEPT}"))? else {
        return Ok(());
    };
    let client = Client::new();
    // Another program's file leaves room for a part of the next body, again and again: the body begins on the disk and ends
    // in heap. Three of them stay in the cache.
    let other = stage.store.join("other");
    let mut number = 0_u64;
    wait_for("bodies to begin on the disk and end in heap", BOUND, || {
        let mut file = std::fs::File::create(&other)?;
        while file.write_all(&[7; 4096]).is_ok() {}
        file.set_len(file.metadata()?.len().saturating_sub(MIB))?;
        stage.fetch(&client, &format!("/large?mixed{number}"))?;
        std::fs::remove_file(&other)?;
        if let Some(old) = number.checked_sub(3) {
            let purge = Request { method: Some("PURGE"), ..Request::default() };
            client.send(&stage.varnishd.url(&format!("/large?mixed{old}")), &purge)?;
        }
        number += 1;
        Ok((number > 8 && stage.counter("c_mixed")? >= 3).then_some(()))
    })?;
    wait_for("no body to be written any more", BOUND, || Ok((stage.counter("g_writing")? == 0).then_some(())))?;
    let open = stage.open_bodies()?;
    ensure!(open <= KEPT, "{open} files of bodies are open, fds={KEPT}");
    stage.end()
}

/// The state follows the whole of what it takes to store a body; a change is a line, and changes are bounded in rate.
#[test]
fn a_store_that_takes_nothing_is_not_happy() -> Result<()> {
    let Some(stage) = Stage::set("a_store_that_takes_nothing_is_not_happy", "")? else { return Ok(()) };
    let client = Client::new();
    stage.fetch(&client, "/large?first")?;
    ensure!(stage.counter("g_happy")? == 1, "not happy at the start");
    // Another program's file takes what is left. Drafts are created, and cannot be written.
    let other = stage.store.join("other");
    let mut file = std::fs::File::create(&other)?;
    while file.write_all(&[7; 4096]).is_ok() {}
    for number in 0..60 {
        stage.fetch(&client, &format!("/large?full{number}"))?;
    }
    let response = client.fetch(&stage.varnishd.url("/large?happy"))?;
    ensure!(response.header("happy") == Some("false"), "happy: {:?}", response.header("happy"));
    ensure!(stage.counter("g_happy")? == 0, "happy although the disk is full");
    let output = stage.varnishd.output();
    let lines = output.lines().filter(|line| line.contains("objmapper storage s0")).count();
    ensure!(lines <= 12, "{lines} lines for 60 bodies:\n{output}");

    // The disk has room again, and no request says so.
    std::fs::remove_file(&other)?;
    drop(file);
    wait_for("it to be happy again", BOUND, || Ok((stage.counter("g_happy")? == 1).then_some(())))?;
    ensure!(stage.varnishd.output().contains("objmapper takes bodies again"), "{}", stage.varnishd.output());
    stage.end()
}
