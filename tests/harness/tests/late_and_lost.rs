//! Every kind of call, every way of losing its answer: afterwards nothing is held, in the real objmapperd and in the client.
//!
//! Held are leases, private objects with their reservations, pins, and descriptors. The tests count them at rest, when all
//! that was given up has reached the store.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_client::{Client, CommitOptions, Error, IfVersion, Leased, ObjUri, PrivateObject, Tier, Want};
use objmapper_harness::meddler::{Meddler, Meddling};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::proc::open_fds;
use objmapper_harness::process::{open_directory, wait_for};

const BOUND: Duration = Duration::from_secs(30);

/// How long a call waits for its answer.
const DEADLINE: Duration = Duration::from_millis(150);

/// For how long a lease is held: longer than any test.
const HOLD: Duration = Duration::from_secs(600);

/// The descriptors of this process are counted: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::try_from(text).unwrap_or_else(|why| panic!("{text}: {why}"))
}

/// What is there throughout.
const PRESENT: &str = "/present";

type Call = Box<dyn FnOnce(&Client) + Send>;
type Kind = (&'static str, fn(&Client) -> Result<Call>);

/// A private object whose body is written.
fn written(client: &Client) -> Result<PrivateObject> {
    let mut object = client.create(1 << 20, Some(Tier::Memory), None)?;
    let fd = object.take_fd().context("no descriptor")?;
    File::from(fd).write_all(&[7; 5000])?;
    Ok(object)
}

fn options(want: Want, ephemeral: bool) -> CommitOptions {
    CommitOptions { want, ephemeral, ..CommitOptions::default() }
}

fn publish(client: &Client, name: &str) -> Result<()> {
    written(client)?.commit(&uri(name), 5000, options(Want::ENTRY, false))?;
    Ok(())
}

/// Gives back what a call gave, as its user would. What did not come is not the user's.
fn release(client: &Client, found: Result<Option<objmapper_client::Found>, Error>) {
    if let Ok(Some(found)) = found {
        client.release(found.session, &[found.entry.object]);
    }
}

fn lease(name: &'static str, want: Want) -> Call {
    Box::new(move |client| {
        if let Ok(Leased::Present(found)) = client.lease(&uri(name), Duration::ZERO, HOLD, want)
            && want.pin
        {
            release(client, Ok(Some(found)));
        }
    })
}

fn commit(client: &Client, name: &'static str, want: Want, ephemeral: bool) -> Result<Call> {
    let mut object = written(client)?;
    Ok(Box::new(move |client| {
        let found = object.commit(&uri(name), 5000, options(want, ephemeral));
        if want.pin {
            release(client, found.map(Some));
        }
    }))
}

/// What is prepared while the store is well, and the call that is disturbed. It gives back at once what it is given.
const KINDS: &[Kind] = &[
    ("LOOKUP", |_| Ok(Box::new(|client| drop(client.lookup(&uri(PRESENT), Want::FD))))),
    ("LOOKUP, pin", |_| Ok(Box::new(|client| release(client, client.lookup(&uri(PRESENT), Want::FD_AND_PIN))))),
    ("LEASE, absent", |_| Ok(lease("/absent", Want::ENTRY))),
    ("LEASE, present, pin", |_| Ok(lease(PRESENT, Want::FD_AND_PIN))),
    ("CREATE", |_| Ok(Box::new(|client| drop(client.create(1 << 20, None, None))))),
    ("RESERVE", |client| {
        let object = written(client)?;
        Ok(Box::new(move |_| drop(object.reserve(4 << 20))))
    }),
    ("COMMIT", |client| commit(client, "/committed", Want::FD, false)),
    ("COMMIT, pin", |client| commit(client, "/committed", Want::FD_AND_PIN, false)),
    ("COMMIT, pin, ephemeral", |client| commit(client, "/own", Want::PIN, true)),
    ("ABORT", |client| {
        let object = written(client)?;
        Ok(Box::new(move |_| drop(object.abort())))
    }),
    ("UNLEASE", |client| {
        let Leased::Granted(lease) = client.lease(&uri("/leased"), Duration::ZERO, HOLD, Want::ENTRY)? else {
            anyhow::bail!("/leased is not free");
        };
        Ok(Box::new(move |_| drop(lease.refuse(Duration::from_millis(1)))))
    }),
    ("DELETE", |client| {
        publish(client, "/deleted")?;
        Ok(Box::new(|client| drop(client.delete(&uri("/deleted"), IfVersion::Any))))
    }),
    ("RELEASE", |client| {
        let found = client.lookup(&uri(PRESENT), Want::PIN)?;
        Ok(Box::new(|client| release(client, Ok(found))))
    }),
    ("BATCH", |client| {
        let mut object = written(client)?;
        Ok(Box::new(move |client| {
            let (present, batched) = (uri(PRESENT), uri("/batched"));
            let batch = client.batch().lookup(&present, Want::FD_AND_PIN);
            let outcomes = batch.commit(&mut object, &batched, 5000, options(Want::PIN, false)).run();
            for outcome in outcomes.into_iter().flatten() {
                if let Ok(objmapper_client::BatchOutcome::Found(found)) = outcome {
                    release(client, Ok(Some(found)));
                }
            }
        }))
    }),
    ("pipeline", |_| {
        Ok(Box::new(|client| {
            let Ok(pipeline) = client.pipeline() else { return };
            let pending: Vec<_> =
                (0..20).filter_map(|_| pipeline.lookup(&uri(PRESENT), Want::FD_AND_PIN).ok()).collect();
            // Not one of them is waited for.
            drop((pipeline.flush(), pending));
        }))
    }),
    ("LIST", |_| Ok(Box::new(|client| drop(client.list_page(b"/", b"", 100))))),
    ("STAT", |_| Ok(Box::new(|client| drop(client.stat())))),
];

/// An objmapperd, a client of it through a meddler, and what is held at rest.
struct Stage {
    // In the order in which they are to end.
    client: Client,
    /// Asks the store how it is, without the meddler.
    observer: Client,
    meddler: Meddler,
    daemon: Objmapperd,
    at_rest: Held,
    _directory: tempfile::TempDir,
}

/// What is held in all, by whatever.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    leases: u32,
    private: u32,
    pinned: u64,
    used: u64,
    objmapperd_fds: usize,
    our_fds: usize,
}

impl Stage {
    fn set() -> Result<Self> {
        let directory = open_directory()?;
        let daemon = Objmapperd::start(directory.path(), "64m")?;
        let socket = directory.path().join("meddled");
        let meddler = Meddler::start(&socket, &daemon.socket())?;
        let client = Client::builder(&socket).connections(2).call_timeout(DEADLINE).connect_timeout(BOUND).connect()?;
        let observer = Client::builder(daemon.socket()).connections(1).call_timeout(BOUND).connect()?;
        let at_rest = Held { leases: 0, private: 0, pinned: 0, used: 0, objmapperd_fds: 0, our_fds: 0 };
        let mut stage = Self { client, observer, meddler, daemon, at_rest, _directory: directory };
        publish(&stage.client, PRESENT)?;
        stage.both_connected()?;
        stage.at_rest = stage.held()?;
        ensure!(
            stage.at_rest.leases == 0 && stage.at_rest.private == 0 && stage.at_rest.pinned == 0,
            "{:?}",
            stage.at_rest
        );
        Ok(stage)
    }

    fn both_connected(&self) -> Result<()> {
        wait_for("both connections", BOUND, || {
            let state = self.client.state();
            let both = matches!(state, objmapper_client::ConnectionState::Extended { connections: 2, .. });
            Ok(both.then_some(()))
        })
    }

    fn held(&self) -> Result<Held> {
        let stat = self.observer.stat()?;
        let pid = self.daemon.pid().context("objmapperd does not run")?;
        Ok(Held {
            leases: stat.leases,
            private: stat.private,
            pinned: stat.tiers.iter().map(|tier| tier.pinned).sum(),
            used: stat.tiers.iter().map(|tier| tier.used).sum(),
            objmapperd_fds: open_fds(pid)?,
            our_fds: open_fds(std::process::id())?,
        })
    }

    /// Deletes what the calls have published.
    fn delete_the_rest(&self) -> Result<(), Error> {
        for item in self.observer.list(b"/") {
            let (uri, _) = item?;
            if uri.as_bytes() != PRESENT.as_bytes() {
                self.observer.delete(&uri, IfVersion::Any)?;
            }
        }
        Ok(())
    }

    /// Waits until as much is held as before, when what the calls have published is deleted. Nothing else is asked of the store
    /// by the client meanwhile.
    fn rests(&self, what: &str) -> Result<()> {
        self.both_connected()?;
        self.observer.wait_connected(BOUND)?;
        let mut last = None;
        let rests = wait_for("nothing to be held", BOUND, || {
            // The observer may not have noticed yet that the store was killed.
            if let Err(why) = self.delete_the_rest() {
                return if why.should_reconnect() { Ok(None) } else { Err(why.into()) };
            }
            let held = self.held()?;
            let done = held == self.at_rest;
            last = Some(held);
            Ok(done.then_some(()))
        });
        rests.with_context(|| format!("{what}: {last:?}, at rest {:?}", self.at_rest))
    }
}

/// SIGSTOP for longer than the deadline: the call gives up, and the store carries it out afterwards.
#[test]
fn stopped_for_longer_than_the_deadline() -> Result<()> {
    let _alone = alone();
    let stage = Stage::set()?;
    for (name, prepare) in KINDS {
        let call = prepare(&stage.client).with_context(|| (*name).to_owned())?;
        let stalled = stage.daemon.stall()?;
        call(&stage.client);
        drop(stalled);
        stage.rests(name)?;
    }
    Ok(())
}

/// The answer to ATTACH comes when its client has gone: the session is nobody's.
#[test]
fn attached_late() -> Result<()> {
    let _alone = alone();
    let stage = Stage::set()?;
    // HELLO is answered in time, ATTACH behind it is not.
    stage.meddler.set(Meddling::Late(DEADLINE * 2 / 3));
    for _ in 0..10 {
        let socket = stage.meddler.path();
        let why = Client::builder(socket).connections(1).connect_timeout(DEADLINE).connect();
        ensure!(matches!(why, Err(Error::Down { .. })), "{why:?}");
    }
    stage.meddler.set(Meddling::Nothing);
    stage.rests("ATTACH")?;
    wait_for("the sessions to end", BOUND, || Ok((stage.observer.stat()?.sessions == 2).then_some(())))
}

/// The answer comes after the deadline, on a connection that is alive.
#[test]
fn answered_late() -> Result<()> {
    let _alone = alone();
    let stage = Stage::set()?;
    for (name, prepare) in KINDS {
        let call = prepare(&stage.client).with_context(|| (*name).to_owned())?;
        stage.meddler.set(Meddling::Late(2 * DEADLINE));
        call(&stage.client);
        stage.meddler.set(Meddling::Nothing);
        stage.rests(name)?;
    }
    Ok(())
}

/// The connection ends before, in the middle of and right behind the answer.
#[test]
fn cut_in_each_answer() -> Result<()> {
    let _alone = alone();
    let stage = Stage::set()?;
    for (name, prepare) in KINDS {
        for percent in [0, 50, 99, 100] {
            let call = prepare(&stage.client).with_context(|| (*name).to_owned())?;
            stage.meddler.set(Meddling::CutAt(percent));
            call(&stage.client);
            stage.meddler.set(Meddling::Nothing);
            stage.rests(&format!("{name}, cut at {percent} %"))?;
        }
    }
    Ok(())
}

/// The store is killed while it owes the answer. Its successor knows nothing; the client keeps no descriptor.
#[test]
fn store_killed() -> Result<()> {
    let _alone = alone();
    let mut stage = Stage::set()?;
    for (name, prepare) in KINDS {
        let call = prepare(&stage.client).with_context(|| (*name).to_owned())?;
        let stalled = stage.daemon.stall()?;
        let (client, daemon) = (&stage.client, &mut stage.daemon);
        let asked = client.counters().requests;
        std::thread::scope(|scope| -> Result<()> {
            let calling = scope.spawn(|| call(client));
            wait_for("the call", BOUND, || {
                Ok((calling.is_finished() || client.counters().requests > asked).then_some(()))
            })?;
            daemon.kill()
        })?;
        drop(stalled);
        stage.daemon.start_again()?;
        wait_for("the store again", BOUND, || Ok(publish(&stage.client, PRESENT).ok()))?;
        stage.rests(name)?;
    }
    Ok(())
}

/// The client's process is killed with all sorts of things in its hands.
#[test]
fn client_killed() -> Result<()> {
    let _alone = alone();
    let directory = open_directory()?;
    let daemon = Objmapperd::start_with(directory.path(), &["--session-grace", "1s"])?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "the_client_that_is_killed", "--nocapture"]).env(SOCKET, daemon.socket());
    let mut client = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(client.stdout.take().context("no output")?);
    let ready = output.lines().any(|line| line.is_ok_and(|line| line.contains(READY)));
    let held = daemon.stat();
    client.kill()?;
    client.wait()?;
    ensure!(ready, "the client has not come so far");
    let held = held?;
    ensure!((held.leases, held.private) == (1, 1) && held.tiers[0].pinned > 0, "{held:?}");
    wait_for("nothing to be held", BOUND, || {
        let stat = daemon.stat()?;
        let pinned = stat.tiers[0].pinned;
        Ok(((stat.leases, stat.private, pinned, stat.sessions) == (0, 0, 0, 1)).then_some(()))
    })
}

/// Where the client that is to be killed finds its store.
const SOCKET: &str = "OBJM_LATE_AND_LOST_SOCKET";
const READY: &str = "ready to be killed";

/// Not a test of its own: the process that [`client_killed`] kills.
#[test]
fn the_client_that_is_killed() -> Result<()> {
    let Some(socket) = std::env::var_os(SOCKET) else { return Ok(()) };
    let client = Client::builder(Path::new(&socket)).connect()?;
    written(&client)?.commit(&uri(PRESENT), 5000, options(Want::PIN, false))?;
    let lease = client.lease(&uri("/absent"), Duration::ZERO, HOLD, Want::ENTRY)?;
    let object = client.create(1 << 20, None, None)?;
    println!("{READY}");
    loop {
        std::thread::park();
        std::hint::black_box((&lease, &object));
    }
}
