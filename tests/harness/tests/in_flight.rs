//! Bodies are evicted, purged, replaced and given back while the kernel still has their pages on the way to slow readers:
//! every byte arrives as it was.
//!
//! Delivered without a copy, a body's pages belong to its file and to the sockets of its readers at once. So each
//! reader stops in the midst of a body, with its receive buffer small and varnishd's send buffer full of pages, and goes on
//! only when the store has changed: files of the site replaced and purged, so much fetched that the limit evicts what is
//! being sent, bodies of passed requests given back piece by piece, objmapperd killed and started anew.
//!
//! `OBJM_IN_FLIGHT_SECONDS` (8) is how long each test goes on; `OBJM_SEED` repeats the choices of a run.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::{Client, Response};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::random::Random;
use objmapper_harness::varnishd::{Options, Varnishd};
use objmapper_harness::versioned::VersionedSite;

const FILES: usize = 6;
const SIZES: [usize; 3] = [300_000, 2_100_000, 4_300_000];
/// Each file is this many objects.
const KEYS: usize = 4;
const READERS: usize = 10;
/// Less than all objects need, so that some are evicted, and more than what readers can hold, so that others come in.
const LIMIT: &str = "50m";
/// A reader takes this much before it stops for the first time; more than the head, less than any body.
const FIRST: usize = 100_000;
const BOUND: Duration = Duration::from_secs(60);

fn vcl(h2o: &H2o, vmod: &Path) -> String {
    format!(
        r#"vcl 4.1;
import objmapper from "{}";
backend h2o {{ .host = "{}"; .port = "{}"; }}
sub vcl_recv {{
	if (req.method == "PURGE") {{ return (purge); }}
	if (req.url ~ "[?]pass") {{ return (pass); }}
}}
sub vcl_deliver {{
	set resp.filters = resp.filters + " objmapper";
}}
"#,
        vmod.display(),
        h2o.address().ip(),
        h2o.address().port()
    )
}

struct Stage {
    // In the order in which they are to end.
    varnishd: Varnishd,
    daemon: Option<Objmapperd>,
    _h2o: H2o,
    site: VersionedSite,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn set(arrangement: Arrangement, store: impl FnOnce(&Path) -> Result<Option<Objmapperd>>) -> Result<Self> {
        let directory = open_directory()?;
        let dir = directory.path();
        let site = VersionedSite::create(&dir.join("site"), FILES, &SIZES)?;
        let h2o = H2o::start(dir, &dir.join("site"))?;
        let daemon = store(dir)?;
        let socket = daemon.as_ref().map(Objmapperd::socket);
        let vmod = artefacts::stage(&artefacts::vmod()?, dir)?;
        let storage = ["s0", "Transient"].map(|name| arrangement.storage(name, LIMIT, socket.as_deref(), ""));
        let varnishd = Varnishd::start(
            dir,
            &Options {
                arrangement,
                storage: &storage,
                listen: &[],
                vcl: &vcl(&h2o, &vmod),
                parameters: &["idle_send_timeout=60", "thread_pool_min=50", "nuke_limit=1000"],
                user: None,
                descriptors: None,
            },
        )?;
        Ok(Self { varnishd, daemon, _h2o: h2o, site, _directory: directory })
    }

    fn sum(&self, counter: &str) -> Result<u64> {
        let of = |storage: &str| self.varnishd.counter(&format!("OBJM.{storage}.{counter}"));
        Ok(of("s0")? + of("Transient")?)
    }
}

/// What readers and changes have in common.
#[derive(Default)]
struct Course {
    stop: AtomicBool,
    /// How often the store has changed.
    changes: AtomicUsize,
    read: AtomicUsize,
    complaints: Mutex<Vec<String>>,
}

impl Course {
    fn complain(&self, complaint: String) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(complaint);
    }

    /// Waits until the store has changed since it had changed `since` times.
    fn wait_for_change(&self, since: usize) -> Result<()> {
        wait_for("the store to change", BOUND, || {
            let over = self.stop.load(Ordering::SeqCst);
            Ok((over || self.changes.load(Ordering::SeqCst) > since).then_some(()))
        })
    }

    fn read_until_the_end(&self, stage: &Stage, mut random: Random) {
        while !self.stop.load(Ordering::SeqCst) {
            let file = random.below(FILES);
            let key = if random.below(4) == 0 { "pass".to_owned() } else { random.below(KEYS).to_string() };
            let outcome = self.read_slowly(stage, &format!("/{}?{key}", VersionedSite::name(file)), &mut random);
            let complaint = match outcome {
                Ok(response) => stage.site.judge(file, 1, &response).err().map(|wrong| format!("{wrong:?}")),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(complaint) = complaint {
                self.complain(format!("/{file}?{key}: {complaint}"));
            }
            self.read.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn read_slowly(&self, stage: &Stage, path: &str, random: &mut Random) -> Result<Response> {
        let mut stream = TcpStream::connect(stage.varnishd.address())?;
        setsockopt(&stream, sockopt::RcvBuf, &16_384)?;
        stream.set_read_timeout(Some(BOUND))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n")?;
        let mut got = Vec::new();
        (&stream).take(FIRST as u64).read_to_end(&mut got).context("the first bytes")?;
        let end = got.windows(4).position(|w| w == b"\r\n\r\n").context("no head")?;
        let head = String::from_utf8_lossy(&got[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
        self.wait_for_change(self.changes.load(Ordering::SeqCst))?;
        if random.below(2) == 0 {
            (&stream).take(random.below(1 << 20) as u64).read_to_end(&mut got).context("the next bytes")?;
            self.wait_for_change(self.changes.load(Ordering::SeqCst))?;
        }
        stream.read_to_end(&mut got).context("the last bytes")?;
        Ok(Response { status, headers: Vec::new(), body: got.split_off(end + 4) })
    }
}

/// One change of the store: some files become others, and more is fetched than there is room for.
fn change(stage: &Stage, client: &Client, random: &mut Random) -> Result<()> {
    let mut stream = TcpStream::connect(stage.varnishd.address())?;
    for _ in 0..2 {
        let file = random.below(FILES);
        stage.site.change(file)?;
        for key in 0..KEYS {
            let path = format!("/{}?{key}", VersionedSite::name(file));
            write!(stream, "PURGE {path} HTTP/1.1\r\nHost: site\r\nConnection: keep-alive\r\n\r\n")?;
        }
    }
    for _ in 0..6 {
        let (file, key) = (random.below(FILES), random.below(KEYS));
        let url = stage.varnishd.url(&format!("/{}?{key}", VersionedSite::name(file)));
        let response = client.fetch(&url)?;
        ensure!(response.status == 200, "{url}: status {}", response.status);
    }
    Ok(())
}

fn in_flight(mut stage: Stage, kill: bool) -> Result<()> {
    let seconds = std::env::var("OBJM_IN_FLIGHT_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8);
    let seed = Random::seed();
    let child = stage.varnishd.child_pid()?;
    let course = Course::default();
    let mut daemon = stage.daemon.take();
    let outcome = std::thread::scope(|scope| {
        let (course, stage) = (&course, &stage);
        for reader in 0..READERS {
            scope.spawn(move || course.read_until_the_end(stage, Random::new(seed + 1 + reader as u64)));
        }
        let mut changes = || {
            let (client, mut random) = (Client::new(), Random::new(seed));
            let begin = Instant::now();
            let mut killed = 0;
            while begin.elapsed() < Duration::from_secs(seconds) || course.read.load(Ordering::SeqCst) < 2 * READERS {
                ensure!(begin.elapsed() < Duration::from_secs(seconds) + BOUND, "the readers do not get on");
                change(stage, &client, &mut random)?;
                if let Some(daemon) = daemon.as_mut().filter(|_| kill)
                    && course.changes.load(Ordering::SeqCst) % 8 == 3
                {
                    daemon.kill()?;
                    daemon.start_again()?;
                    killed += 1;
                }
                course.changes.fetch_add(1, Ordering::SeqCst);
            }
            ensure!(!kill || killed > 0, "objmapperd was never killed");
            Ok(())
        };
        let outcome = changes();
        course.stop.store(true, Ordering::SeqCst);
        outcome
    });
    let complaints = course.complaints.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(complaints.is_empty(), "{} complaints: {:#?}", complaints.len(), &complaints[..complaints.len().min(5)]);
    outcome?;
    ensure!(stage.varnishd.panic().is_none(), "{:?}", stage.varnishd.panic());
    ensure!(stage.varnishd.child_pid()? == child, "another child than before:\n{}", stage.varnishd.output());

    let (sent, copied) = (stage.sum("b_zero_copy")?, stage.sum("b_copy")?);
    let evicted = stage.varnishd.counter("MAIN.n_lru_nuked")? + stage.sum("c_evicted_ahead")?;
    let (read, changes) = (course.read.into_inner(), course.changes.into_inner());
    eprintln!("{read} read, {changes} changes, {sent} bytes sent, {copied} copied, {evicted} evicted");
    ensure!(sent > copied && stage.sum("c_copy_other")? == 0, "{sent} bytes sent, {copied} copied");
    ensure!(stage.varnishd.counter("OBJM.Transient.b_zero_copy")? > 0, "nothing passed was sent");
    ensure!(evicted > 0 && stage.varnishd.counter("MAIN.n_purges")? > 0, "nothing was evicted or purged");
    Ok(())
}

#[test]
fn in_memory() -> Result<()> {
    in_flight(Stage::set(Arrangement::EmbeddedT0, |_| Ok(None))?, false)
}

#[test]
fn objmapperd_in_memory_killed() -> Result<()> {
    in_flight(Stage::set(Arrangement::DaemonT0, |dir| Objmapperd::start(dir, "1g").map(Some))?, true)
}

#[test]
fn objmapperd_on_disk_killed() -> Result<()> {
    in_flight(Stage::set(Arrangement::DaemonT0, |dir| Objmapperd::start_on_disk(dir, "1g").map(Some))?, true)
}
