//! One table of failures: what the store answers, or does, is the same event in the storage engine and in the director.
//!
//! Engine and director are those that varnishd loads, without varnishd; both are clients of a real objmapperd, whose answers
//! [`Meddler`] changes.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use objmapper_client::{Fence, Outage, Published, Status};
use objmapper_counters::CounterSet;
use objmapper_engine::account::{Account, SmaCounters};
use objmapper_engine::backing::{Backing, Remote};
use objmapper_engine::body::Body;
use objmapper_engine::counters::Counters as EngineCounters;
use objmapper_engine::engine::Engine;
use objmapper_engine::grant::ChunkLimits;
use objmapper_engine::options::Options;
use objmapper_engine::record::NewRecord;
use objmapper_harness::meddler::{Meddler, Meddling};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_records::{
    Config, Connect, Counters, Finding, Head, Headers, L2, Lookup, Outcome, Regex, Regexes, RequestView, Ticket,
};

const BOUND: Duration = Duration::from_secs(30);
/// The deadline of a call.
const DEADLINE: Duration = Duration::from_millis(500);
const NOW: f64 = 1_800_000_000.0;
/// Bytes of a body that goes to the store.
const LEN: u64 = 200_000;

/// The status of an answer, and what it is counted as.
const STATUSES: &[(Status, Outage)] = &[
    (Status::NotFound, Outage::Protocol),
    (Status::InvalidRequest, Outage::Protocol),
    (Status::InvalidMode, Outage::Protocol),
    (Status::UriTooLong, Outage::Protocol),
    (Status::Unsupported, Outage::Protocol),
    (Status::Internal, Outage::Protocol),
    (Status::Storage, Outage::Io),
    (Status::Memory, Outage::Io),
    (Status::Timeout, Outage::Timeout),
    (Status::Unavailable, Outage::Down),
    (Status::Protocol, Outage::Protocol),
    (Status::Version, Outage::Protocol),
    (Status::Capability, Outage::Protocol),
    (Status::Conflict, Outage::Protocol),
    (Status::Busy, Outage::Protocol),
    (Status::UnknownSession, Outage::Down),
    (Status::UnknownHandle, Outage::Protocol),
    (Status::Full, Outage::Full),
    (Status::Refused, Outage::Down),
];

/// What else may happen to an answer, and what it is counted as.
const TROUBLES: &[(Meddling, Outage)] = &[
    (Meddling::Late(Duration::from_secs(1)), Outage::Timeout),
    (Meddling::CutAt(0), Outage::Down),
    (Meddling::NoDescriptors, Outage::Protocol),
];

/// The counters of a kind: of bodies that stay in heap, and of the director.
fn counters(kind: Outage) -> (&'static str, &'static str) {
    match kind {
        Outage::Down => ("c_fallback_down", "c_out_down"),
        Outage::Timeout => ("c_fallback_timeout", "c_out_timeout"),
        Outage::Full => ("c_fallback_full", "c_out_full"),
        Outage::Io => ("c_fallback_io", "c_out_io"),
        Outage::Protocol => ("c_fallback_protocol", "c_out_protocol"),
    }
}

/// The storage engine's counter of requests that failed, for the kinds that are errors.
fn errors(kind: Outage) -> Option<&'static str> {
    match kind {
        Outage::Down | Outage::Full => None,
        Outage::Timeout => Some("c_err_timeout"),
        Outage::Io => Some("c_err_io"),
        Outage::Protocol => Some("c_err_protocol"),
    }
}

/// The counters of a set, with their names.
fn values<C: CounterSet>(set: &C) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    let definitions = C::description().definitions();
    assert_eq!(size_of::<C>(), definitions.len() * size_of::<AtomicU64>());
    // SAFETY: a CounterSet consists of an AtomicU64 for each definition, in their order; the slice borrows from `set`.
    let values = unsafe { std::slice::from_raw_parts((&raw const *set).cast::<AtomicU64>(), definitions.len()) };
    definitions.iter().zip(values).map(|(definition, value)| (definition.name, value.load(Relaxed)))
}

/// Held by each test: one of them limits the sizes of this process's files.
static ONE_BY_ONE: Mutex<()> = Mutex::new(());

struct NoRegexes;

impl Regexes for NoRegexes {
    fn compile(&self, _: &[u8]) -> Option<Box<dyn Regex>> {
        None
    }
}

struct Get(String);

impl RequestView for Get {
    fn url(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn header(&self, _: &[u8]) -> Option<&[u8]> {
        None
    }
}

/// A storage engine and a director, clients of the same store.
struct Both {
    engine: Engine,
    l2: Arc<L2>,
    director: Counters,
    urls: AtomicU64,
}

impl Both {
    fn at(socket: &Path) -> Result<Self> {
        let sma: &'static SmaCounters = Box::leak(Box::default());
        let counters: &'static EngineCounters = Box::leak(Box::default());
        let options = Options::default();
        let account = Account::new(options.size, sma);
        let remote = Remote::new("s0", socket, DEADLINE, Arc::default())?;
        let backing = Backing::Remote(remote);
        let engine = Engine::new("s0", options, account, counters, backing, Arc::default(), "/varnish/s0/1".into());
        let l2 = L2::open(Config {
            store: Connect::Socket(socket.to_owned()),
            call_timeout: DEADLINE,
            connections: 1,
            prefix: b"cdn://example.com".to_vec(),
            regexes: Arc::new(NoRegexes),
            tags: Vec::new(),
            log_limit: Config::LOG_LIMIT,
            follower: None,
            origin: None,
            since: None,
            log: Arc::new(|_| {}),
        })?;
        Ok(Self { engine, l2, director: Counters::default(), urls: AtomicU64::new(0) })
    }

    fn wait_up(&self) -> Result<()> {
        let up = || self.engine.backing().answers() && self.l2.is_up();
        wait_for("both to be connected", BOUND, || Ok(up().then_some(())))
    }

    /// All counters of the engine and of the director, except figures of time and gauges.
    fn snapshot(&self) -> Vec<(String, u64)> {
        let engine = values(self.engine.counters).map(|(name, value)| (format!("engine {name}"), value));
        let director = values(&self.director).map(|(name, value)| (format!("director {name}"), value));
        let wanted = ["c_fallback_", "c_err_", "c_out_", "c_record_", "c_publish_"];
        engine.chain(director).filter(|(name, _)| wanted.iter().any(|part| name.contains(part))).collect()
    }

    /// Checks that `act` moves exactly these counters, each by 1.
    fn moves(&self, what: &str, mut expected: Vec<String>, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.snapshot();
        act().with_context(|| what.to_owned())?;
        let mut moved: Vec<String> = Vec::new();
        for ((name, old), (_, new)) in before.into_iter().zip(self.snapshot()) {
            ensure!(new - old <= 1, "{what}: {name} moved by {}", new - old);
            if new > old {
                moved.push(name);
            }
        }
        expected.sort();
        moved.sort();
        ensure!(moved == expected, "{what}: {moved:?} moved instead of {expected:?}");
        Ok(())
    }

    /// A complete body: written by a fetch, and not settled.
    fn fetched(&self) -> Result<Body> {
        let body = Body::default();
        let limits = ChunkLimits { chunk: 16 << 10, max: 256 << 20 };
        while body.len() < LEN {
            let want = (LEN - body.len()) as usize;
            let space = body.space(&self.engine, want, true, limits, &mut || false);
            let (ptr, room) = space.map_err(|why| anyhow::anyhow!("no space: {why:?}"))?;
            let n = room.min(want);
            // SAFETY: `room >= n` bytes at `ptr` are the writer's until `extend`.
            unsafe { ptr.as_ptr().write_bytes(b'x', n) };
            body.extend(n as u64);
        }
        body.trim(&self.engine);
        Ok(body)
    }

    /// A body that a fetch brings, and what it leaves.
    fn body(&self) -> Result<()> {
        let body = self.fetched()?;
        ensure!(body.settle(&self.engine, false, 0), "the object left the cache");
        body.slim(&self.engine);
        Ok(())
    }

    /// The right to publish, and the request that it is for.
    fn ticket(&self) -> Result<(Ticket, Get)> {
        let request = Get(format!("/{}", self.urls.fetch_add(1, Relaxed)));
        let key = self.l2.key(Some(b"www"), request.0.as_bytes(), None);
        let (wait, hold) = (Duration::ZERO, BOUND);
        let (client, refresh, adopts) = (&request, false, None);
        let lookup =
            Lookup { key: &key, request: &request, client, wait, token: None, hold, now: NOW, refresh, adopts };
        let Finding::Miss(miss) = self.l2.find(&lookup, &Counters::default()) else { anyhow::bail!("not a miss") };
        let ticket = miss.ticket.with_context(|| format!("no ticket: {}", miss.why))?;
        Ok((ticket, request))
    }

    fn head() -> Head {
        Head {
            status: 200,
            reason: b"OK".to_vec(),
            headers: Headers::default(),
            t_origin: NOW,
            ttl: 60.0,
            grace: 10.0,
            keep: 0.0,
            gzip_bits: None,
            flags: 0,
            origin: None,
        }
    }

    /// Publishes a copy of a body of [`LEN`] bytes, as the director does without the engine.
    fn copy(&self, (ticket, request): (Ticket, Get)) -> Outcome {
        match ticket.writer(Self::head(), &request, Some(LEN), &self.director) {
            Err(outcome) => outcome,
            // What fails is counted at the end.
            Ok(mut writer) => {
                let _ = writer.write(&vec![b'x'; LEN as usize]);
                writer.finish(&self.director)
            }
        }
    }
}

/// The director's counters for a response that is not published.
fn unpublished(kind: Outage) -> [String; 2] {
    [format!("director {}", counters(kind).1), "director c_publish_failed".to_owned()]
}

/// The engine's counters for a body that stays in heap.
fn in_heap(kind: Outage) -> Vec<String> {
    let counted = errors(kind).map(|name| format!("engine {name}"));
    counted.into_iter().chain([format!("engine {}", counters(kind).0)]).collect()
}

#[test]
fn a_failure_is_the_same_event_in_the_engine_and_in_the_director() -> Result<()> {
    let _one = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = open_directory()?;
    let dir = directory.path();
    let objmapperd = Objmapperd::start(dir, "1g")?;
    let meddler = Meddler::start(&dir.join("meddler"), &objmapperd.socket())?;
    let both = Both::at(meddler.path())?;
    both.wait_up()?;
    ensure!(STATUSES.len() + 1 == Status::ALL.len(), "a status is not in the table");
    let statuses = STATUSES.iter().map(|&(status, kind)| (Meddling::Status(status.code()), kind, Some(status)));
    let troubles = TROUBLES.iter().map(|&(trouble, kind)| (trouble, kind, None));
    for (meddling, kind, status) in statuses.chain(troubles) {
        let what = format!("{status:?} {meddling:?}");
        both.wait_up()?;
        let ticket = both.ticket().with_context(|| what.clone())?;
        meddler.set(meddling);
        both.moves(&format!("engine: {what}"), in_heap(kind), || both.body())?;
        both.moves(&format!("director: {what}"), unpublished(kind).into(), || {
            let outcome = both.copy(ticket);
            ensure!(outcome == Outcome::Outage(kind), "{outcome:?}");
            Ok(())
        })?;
        meddler.set(Meddling::Nothing);
    }
    Ok(())
}

/// The engine publishes what the director has sealed: its answer goes to the director as it is.
#[test]
fn a_failed_publication_is_the_same_event_in_the_engine_and_in_the_director() -> Result<()> {
    let _one = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = open_directory()?;
    let dir = directory.path();
    let objmapperd = Objmapperd::start(dir, "1g")?;
    let meddler = Meddler::start(&dir.join("meddler"), &objmapperd.socket())?;
    let both = Both::at(meddler.path())?;
    for &(status, kind) in STATUSES {
        both.wait_up()?;
        let (ticket, request) = both.ticket()?;
        let sealed = ticket.seal(Both::head(), &request, LEN, None, &both.director);
        let sealed = sealed.map_err(|outcome| anyhow::anyhow!("{outcome:?}"))?;
        let body = both.fetched()?;
        let fence = Fence { shard: sealed.shard, value: sealed.fence };
        let record = NewRecord { uri: sealed.uri.as_bytes(), tail: &sealed.tail, expires: sealed.expires_ms, fence };
        let conflict = status == Status::Conflict;
        let expected = if conflict { Published::Conflict } else { Published::Outage(kind) };
        let counted = match errors(kind).filter(|_| !conflict) {
            Some(name) => vec![format!("engine {name}"), "engine c_record_failed".to_owned()],
            None if conflict => vec!["engine c_record_conflict".to_owned()],
            None => vec!["engine c_record_failed".to_owned()],
        };
        meddler.set(Meddling::Status(status.code()));
        both.moves(&format!("engine: {status:?}"), counted, || {
            let published = body.publish(&both.engine, &record, &mut || false);
            ensure!(published == expected, "{published:?}");
            Ok(())
        })?;
        meddler.set(Meddling::Nothing);
        // The fence has not moved: another cache was first.
        let counted = if conflict { vec!["director c_publish_overtaken".to_owned()] } else { unpublished(kind).into() };
        both.moves(&format!("director: {status:?}"), counted, || {
            sealed.settle(expected, &both.director).map_err(|_| anyhow::anyhow!("a copy is asked for"))?;
            Ok(())
        })?;
        ensure!(body.settle(&both.engine, false, 0));
        body.slim(&both.engine);
    }
    Ok(())
}

/// A file that cannot take a body is a full store, whoever writes to it.
#[test]
fn a_file_that_is_full_is_the_same_event_in_the_engine_and_in_the_director() -> Result<()> {
    let _one = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = open_directory()?;
    let dir = directory.path();
    let objmapperd = Objmapperd::start(dir, "1g")?;
    let both = Both::at(&objmapperd.socket())?;
    both.wait_up()?;
    let ticket = both.ticket()?;
    // SAFETY: no handler is installed; a write beyond the limit fails instead, by EFBIG.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn)? };
    let (old, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
    setrlimit(Resource::RLIMIT_FSIZE, LEN / 4, hard)?;
    let limited = tempfile::tempfile()?.write_all_at(&[0], LEN).is_err();
    let outcome = both.moves("engine", in_heap(Outage::Full), || both.body()).and_then(|()| {
        both.moves("director", unpublished(Outage::Full).into(), || {
            let outcome = both.copy(ticket);
            ensure!(outcome == Outcome::Outage(Outage::Full), "{outcome:?}");
            Ok(())
        })
    });
    setrlimit(Resource::RLIMIT_FSIZE, old, hard)?;
    ensure!(limited, "no limit of files' sizes");
    outcome
}
