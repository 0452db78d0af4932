//! Outages of the store as such: it is not there, refuses, stalls, is slow, talks nonsense, is killed, is replaced.
//!
//! docs/outages.md has a row for each.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::http::Request;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::{DEADLINE, Stage, socket};
use objmapper_harness::process::wait_for;
use objmapper_harness::shared::status;

/// Bodies are copied; bodies are adopted.
const BOTH: [Arrangement; 2] = [Arrangement::Malloc, Arrangement::Daemon];

fn memory(dir: &Path) -> Result<Option<Objmapperd>> {
    Objmapperd::start(dir, "1g").map(Some)
}

/// Clients at once.
const CLIENTS: usize = 8;

/// So many misses of each size by each of some clients at once.
fn together(stage: &Stage, rounds: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| stage.misses(rounds))).collect();
        clients.into_iter().try_for_each(|client| match client.join() {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("a client panicked")),
        })
    })
}

#[test]
fn no_socket() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, |_| Ok(None))?;
        stage.misses(20)?;
        ensure!(stage.cache.counter("c_out_down")? >= 80, "{:?}", stage.cache.counters());
        ensure!(stage.cache.counter("c_out_timeout")? == 0, "{:?}", stage.cache.counters());
        ensure!(stage.changes() == (1, 0), "{}", stage.log());

        stage.daemon = memory(stage.dir())?;
        stage.wait_state(true)?;
        stage.shares()?;
        ensure!(stage.changes() == (1, 1), "{}", stage.log());
        stage.end()?;
    }
    Ok(())
}

/// SIGKILL leaves the socket's file: a connection is refused.
#[test]
fn refused() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, memory)?;
        stage.shares()?;
        stage.daemon()?.kill()?;
        stage.wait_state(false)?;
        let before = stage.cache.counter("c_out_down")?;
        stage.misses(20)?;
        ensure!(stage.cache.counter("c_out_down")? >= before + 80, "{:?}", stage.cache.counters());
        ensure!(stage.cache.counter("c_out_timeout")? == 0, "{:?}", stage.cache.counters());

        stage.daemon()?.start_again()?;
        stage.wait_state(true)?;
        stage.shares()?;
        ensure!(stage.changes() == (1, 2), "{}", stage.log());
        stage.end()?;
    }
    Ok(())
}

/// SIGSTOP: the kernel takes connections and requests for it, nobody answers.
#[test]
fn stalled() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, memory)?;
        stage.shares()?;
        let kept = stage.published(200_000)?;
        let stalled = stage.daemon()?.stall()?;
        together(&stage, 5)?;
        let counters = stage.cache.counters()?;
        // Who is under way at that moment waits for the deadline, on its look-up or its publication; the others know
        // better.
        ensure!((1..=2 * CLIENTS as u64).contains(&counters["c_out_timeout"]), "{counters:?}");
        ensure!(counters["c_out_down"] >= 80, "{counters:?}");
        stage.miss(&kept)?;

        drop(stalled);
        stage.wait_state(true)?;
        stage.shares()?;
        ensure!(status(&stage.miss(&kept)?) == "hit", "the store has lost a record");
        ensure!(stage.changes() == (1, 2), "{}", stage.log());
        stage.end()?;
    }
    Ok(())
}

/// It answers too late for some calls and in time for others, without end.
#[test]
fn slow() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, memory)?;
        stage.shares()?;
        let stop = AtomicBool::new(false);
        let daemon = stage.daemon.take().context("no objmapperd")?;
        let pauses = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let pauser = scope.spawn(|| -> Result<()> {
                // Not a wait for something: its pace is what is tested.
                while !stop.load(Ordering::Relaxed) {
                    let stalled = daemon.stall()?;
                    std::thread::sleep(DEADLINE / 2 * (1 + pauses.fetch_add(1, Ordering::Relaxed) as u32 % 4));
                    drop(stalled);
                    std::thread::sleep(Duration::from_millis(30));
                }
                Ok(())
            });
            let outcome = wait_for("pauses", Duration::from_secs(60), || {
                stage.misses(1)?;
                Ok((pauses.load(Ordering::Relaxed) >= 20).then_some(()))
            });
            stop.store(true, Ordering::Relaxed);
            pauser.join().map_err(|_| anyhow::anyhow!("the pauser panicked"))??;
            outcome
        })?;
        let counters = stage.cache.counters()?;
        ensure!(counters["c_out_timeout"] >= 1, "{counters:?}");
        // Not one per look-up, but at most a few for each pause.
        ensure!(counters["c_out_timeout"] <= 8 * pauses.load(Ordering::Relaxed) as u64, "{counters:?}");
        stage.daemon = Some(daemon);
        stage.wait_state(true)?;
        stage.shares()?;
        stage.end()?;
    }
    Ok(())
}

#[test]
fn killed_with_a_memory_tier() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, memory)?;
        let path = stage.published(200_000)?;
        for round in 1..=3 {
            stage.daemon()?.kill()?;
            stage.misses(2)?;
            stage.miss(&path)?;
            stage.daemon()?.start_again()?;
            stage.wait_state(true)?;
            // An empty store: a miss, then a hit.
            let response = stage.miss(&path)?;
            ensure!(status(&response) == "miss", "{:?}", response.headers);
            wait_for("a hit", Duration::from_secs(30), || Ok((status(&stage.miss(&path)?) == "hit").then_some(())))?;
            stage.shares()?;
            ensure!(stage.changes() == (round, round + 1), "{}", stage.log());
        }
        stage.end()?;
    }
    Ok(())
}

#[test]
fn killed_with_a_disk_tier() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, |dir| Objmapperd::start_on_disk(dir, "1g").map(Some))?;
        let path = stage.published(200_000)?;
        for _ in 0..3 {
            stage.daemon()?.kill()?;
            stage.misses(2)?;
            stage.miss(&path)?;
            stage.daemon()?.start_again()?;
            stage.wait_state(true)?;
            let asked = stage.h2o.requests()?.len();
            let response = stage.miss(&path)?;
            ensure!(status(&response) == "hit", "a record was lost: {:?}", response.headers);
            ensure!(stage.h2o.requests()?.len() == asked, "H2O was asked");
            stage.shares()?;
        }
        stage.end()?;
    }
    Ok(())
}

/// A purge that may not hold is not confirmed: what was to be purged is still in the store when that is back.
#[test]
fn a_purge_that_the_store_cannot_confirm() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, |dir| Objmapperd::start_on_disk(dir, "1g").map(Some))?;
        let path = stage.published(200_000)?;
        stage.daemon()?.kill()?;
        stage.wait_state(false)?;
        let purge = Request { method: Some("PURGE"), ..Request::default() };
        let response = stage.cache.send(&stage.client, &path, &purge)?;
        ensure!(response.status == 503, "PURGE: status {}", response.status);
        ensure!(stage.cache.counter("c_purge_failed")? == 1, "{:?}", stage.cache.counters());

        stage.daemon()?.start_again()?;
        stage.wait_state(true)?;
        ensure!(stage.cache.send(&stage.client, &path, &purge)?.status == 200, "PURGE: not with the store either");
        let response = stage.miss(&path)?;
        ensure!(status(&response) == "miss", "{:?}", response.headers);
        stage.end()?;
    }
    Ok(())
}

/// Another objmapperd takes over the path while the old one still serves who is connected to it.
#[test]
fn socket_replaced() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, memory)?;
        let path = stage.published(65_000)?;
        let elsewhere = stage.dir().join("new");
        std::fs::create_dir(&elsewhere)?;
        let new = Objmapperd::start(&elsewhere, "1g")?;
        std::fs::rename(new.socket(), socket(stage.dir()))?;
        ensure!(status(&stage.miss(&path)?) == "hit", "the connected one is still right");
        stage.misses(2)?;
        stage.daemon()?.kill()?;
        // In the new one there is nothing, and then there is.
        wait_for("a miss", Duration::from_secs(30), || Ok((status(&stage.miss(&path)?) == "miss").then_some(())))?;
        stage.wait_state(true)?;
        stage.shares()?;
        let client = objmapper_client::Client::builder(socket(stage.dir())).connections(1).connect()?;
        ensure!(client.stat()?.tiers[0].objects > 0, "the new one is not in use");
        client.detach()?;
        stage.daemon = Some(new);
        stage.end()?;
    }
    Ok(())
}

/// A peer that accepts everything and answers it as `answer` says; ended when dropped.
struct Peer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    fn start(dir: &Path, answer: fn(&mut UnixStream, usize)) -> Result<Self> {
        let path = socket(dir);
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(mut stream) = stream {
                    // Whatever it says, nobody may wait for it for ever.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                    answer(&mut stream, number);
                }
            }
        });
        Ok(Self { path, stop, thread: Some(thread) })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it; if it cannot be connected to, it has ended.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// HELLO_ACK with the extensions.
const ACK: [u8; 10] = [0x4f, 0x42, 0x4a, 0x4d, 0x02, 0x80, 0x00, 0x00, 0x10, 0x01];

fn garbage(stream: &mut UnixStream, number: usize) {
    // Errors are the client's good right: it may hang up at any byte.
    let mut heard = [0; 4096];
    let _ = stream.read(&mut heard);
    let noise = objmapper_harness::site::bytes(number as u64, 5000);
    match number % 6 {
        0 => {}
        1 => drop(stream.write_all(&noise)),
        2 => drop(stream.write_all(&ACK[..7])),
        3 => {
            let _ = stream.write_all(&ACK);
            let _ = stream.read(&mut heard);
            let _ = stream.write_all(&noise);
        }
        4 => {
            // A reply of a length that no frame has.
            let _ = stream.write_all(&ACK);
            let _ = stream.read(&mut heard);
            let _ = stream.write_all(&[0x11, 0, 0, 0, 1, 1, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        }
        _ => {
            // Says that descriptors come, and sends none.
            let _ = stream.write_all(&ACK);
            let _ = stream.read(&mut heard);
            let mut reply = vec![0x11, 0, 0, 0, 1, 1, 0, 2, 0, 0, 0, 52];
            reply.resize(12 + 52, 0);
            reply.push(0x58);
            let _ = stream.write_all(&reply);
        }
    }
}

#[test]
fn protocol_garbage() -> Result<()> {
    for arrangement in BOTH {
        let mut stage = Stage::set(arrangement, |_| Ok(None))?;
        let peer = Peer::start(stage.dir(), garbage)?;
        stage.misses(20)?;
        let counters = stage.cache.counters()?;
        let kinds = ["c_out_down", "c_out_protocol", "c_out_timeout", "c_out_io"];
        ensure!(kinds.iter().map(|k| counters[*k]).sum::<u64>() >= 80, "{counters:?}");
        ensure!(counters["c_out_timeout"] <= 16, "{counters:?}");
        ensure!(counters["c_hits"] == 0, "{counters:?}");
        drop(peer);
        stage.daemon = memory(stage.dir())?;
        stage.wait_state(true)?;
        stage.shares()?;
        stage.end()?;
    }
    Ok(())
}
