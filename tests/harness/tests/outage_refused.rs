//! Outages by refusal: objmapperd runs and does not serve this varnishd.
//!
//! docs/outages.md has a row for each.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::{Stage, socket};
use objmapper_harness::process::wait_for;

const BOUND: Duration = Duration::from_secs(30);

/// The director alone; the storage engine and the director.
const BOTH: [Arrangement; 2] = [Arrangement::Malloc, Arrangement::Daemon];

/// A varnishd that is refused by an objmapperd: it says so once, with `remedy`; neither side floods its log; and it is served
/// as soon as `lift` has removed the reason.
fn refused(
    arrangement: Arrangement,
    remedy: &str,
    start: impl FnOnce(&Path) -> Result<Objmapperd>,
    lift: impl FnOnce(&mut Objmapperd) -> Result<()>,
) -> Result<()> {
    let mut daemon = None;
    let mut stage = Stage::set(arrangement, |dir| {
        daemon = Some(start(dir)?);
        Ok(None)
    })?;
    stage.daemon = daemon;
    wait_for("a line that names the remedy", BOUND, || Ok(stage.log().contains(remedy).then_some(())))?;
    stage.misses(20)?;
    let counters = stage.cache.counters()?;
    ensure!(counters["c_out_down"] >= 80 && counters["c_hits"] == 0 && counters["g_up"] == 0, "{counters:?}");
    ensure!(stage.changes() == (1, 0), "{}", stage.log());
    let with_remedy = stage.log().lines().filter(|line| line.contains(remedy)).count();
    // One of the director, and one of the storage engine.
    let expected = 1 + usize::from(arrangement.has_daemon());
    ensure!(with_remedy == expected, "{with_remedy} lines of varnishd:\n{}", stage.log());
    let log = stage.daemon()?.log();
    let refusals = log.lines().filter(|line| line.contains("refused")).count();
    ensure!((1..=10).contains(&refusals) && log.contains(remedy), "{refusals} lines of objmapperd:\n{log}");

    lift(stage.daemon()?)?;
    stage.wait_state(true)?;
    stage.shares()?;
    ensure!(stage.changes() == (1, 1), "{}", stage.log());
    stage.end()
}

/// varnishd's child is another user than the one that may connect.
#[test]
fn not_allowed() -> Result<()> {
    for arrangement in BOTH {
        let start = |dir: &Path| Objmapperd::start_with(dir, &["--allow-uid", "0"]);
        refused(arrangement, "--allow-uid", start, |daemon| {
            daemon.kill()?;
            daemon.start_again_with(&[])
        })?;
    }
    Ok(())
}

/// A connection that is served: it has answered a V1 request. `None`: all connections are taken.
fn served(socket: &Path) -> Result<Option<UnixStream>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.write_all(b"1\0\x09/delete/a")?;
    let mut answer = [0; 11];
    stream.read_exact(&mut answer)?;
    Ok((answer[0] == NOT_FOUND).then_some(stream))
}

/// The status of V1 for the request of [`served`].
const NOT_FOUND: u8 = 1;

/// All connections are taken.
#[test]
fn no_connection_left() -> Result<()> {
    const CONNECTIONS: usize = 20;
    for arrangement in BOTH {
        let taken = RefCell::new(Vec::new());
        let start = |dir: &Path| {
            let daemon = Objmapperd::start_with(dir, &["--max-connections", &CONNECTIONS.to_string()])?;
            *taken.borrow_mut() = wait_for("all connections to be taken", BOUND, || {
                let served: Vec<_> = (0..CONNECTIONS).map(|_| served(&socket(dir))).collect::<Result<_>>()?;
                Ok(served.into_iter().collect::<Option<Vec<_>>>())
            })?;
            Ok(daemon)
        };
        refused(arrangement, "--max-connections", start, |_| {
            taken.borrow_mut().clear();
            Ok(())
        })?;
    }
    Ok(())
}
