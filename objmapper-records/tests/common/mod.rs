//! A store in this process, caches that share it, requests, responses and bans.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod proxy;
pub(crate) mod v01_peer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use objmapper_records::{
    Config, Connect, Counters, Finding, Head, Headers, Hit, Key, L2, Log, Lookup, Miss, MissReason, Notice, Outcome,
    Regex, Regexes, RequestView, Stale, Subject, Test, TextOper, Ticket,
};
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{DiskTier, MemoryTier, Store, StoreConfig};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const NOW: f64 = 1_800_000_000.0;

/// Waits for a condition.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::yield_now();
    }
}

pub(crate) struct Pcre;

impl Regexes for Pcre {
    fn compile(&self, pattern: &[u8]) -> Option<Box<dyn Regex>> {
        let regex = regex::bytes::Regex::new(std::str::from_utf8(pattern).ok()?).ok()?;
        Some(Box::new(Compiled(regex)))
    }
}

struct Compiled(regex::bytes::Regex);

impl Regex for Compiled {
    fn is_match(&self, subject: &[u8]) -> Option<bool> {
        Some(self.0.is_match(subject))
    }
}

/// A request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Req {
    pub(crate) url: Vec<u8>,
    pub(crate) headers: Vec<(&'static str, Vec<u8>)>,
}

pub(crate) fn req(url: &str) -> Req {
    Req { url: url.into(), headers: Vec::new() }
}

impl Req {
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl RequestView for Req {
    fn url(&self) -> &[u8] {
        &self.url
    }

    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| n.as_bytes().eq_ignore_ascii_case(name)).map(|(_, v)| &v[..])
    }
}

/// A response's head, made at [`NOW`].
pub(crate) fn head(ttl: f32, lines: &[&str]) -> Head {
    let mut headers = Headers::default();
    for line in lines {
        assert!(headers.push(line.as_bytes()));
    }
    Head {
        status: 200,
        reason: b"OK".to_vec(),
        headers,
        t_origin: NOW,
        ttl,
        grace: 10.0,
        keep: 0.0,
        gzip_bits: None,
        flags: 0,
        origin: None,
    }
}

/// A ban, built test by test.
pub(crate) struct Ban(pub(crate) objmapper_records::Ban);

pub(crate) const EQ: TextOper = TextOper::Equal;
pub(crate) const MATCH: TextOper = TextOper::Match;

impl Ban {
    pub(crate) fn at(time: f64) -> Self {
        Self(objmapper_records::Ban { time, timeless: true, tests: Vec::new() })
    }

    fn text(mut self, subject: Subject, oper: TextOper, text: &str) -> Self {
        self.0.tests.push(Test::Text { subject, oper, text: text.into() });
        self
    }

    pub(crate) fn url(self, oper: TextOper, text: &str) -> Self {
        self.text(Subject::Url, oper, text)
    }

    pub(crate) fn obj_http(self, name: &str, oper: TextOper, text: &str) -> Self {
        self.text(Subject::ObjectHeader(name.into()), oper, text)
    }
}

/// A store that is served at a socket.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    server: Option<Server>,
    store: Option<Store>,
    disk: bool,
}

impl Site {
    pub(crate) fn memory() -> Self {
        Self::new(false)
    }

    pub(crate) fn disk() -> Self {
        Self::new(true)
    }

    fn new(disk: bool) -> Self {
        let mut site = Self { dir: tempfile::tempdir().unwrap(), server: None, store: None, disk };
        site.start();
        site
    }

    pub(crate) fn start(&mut self) {
        let limit = 64 << 20;
        let disk = self.disk.then(|| DiskTier { dir: self.dir.path().join("disk"), limit });
        let memory = (!self.disk).then_some(MemoryTier { limit, mount: None });
        let store = Store::open(StoreConfig { memory, disk, ..StoreConfig::default() }).unwrap();
        let config = ListenConfig {
            socket: self.socket(),
            mode: 0o600,
            owner: None,
            group: None,
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
            max_connections: 100,
            threads: 1,
        };
        self.server = Some(Server::start(config, store.clone()).unwrap());
        self.store = Some(store);
    }

    /// Leases that are held in the store.
    pub(crate) fn leases(&self) -> usize {
        self.store.as_ref().map_or(0, |store| store.stats().leases)
    }

    pub(crate) fn stop(&mut self) {
        self.store = None;
        if let Some(server) = self.server.take() {
            assert_eq!(server.protocol_errors(), 0);
            server.drain(Duration::ZERO);
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn cache(&self) -> Cache {
        Cache::at(&self.socket(), PATIENCE)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain(Duration::ZERO);
        }
    }
}

/// A cache: what a varnishd is to us.
pub(crate) struct Cache {
    pub l2: Arc<L2>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) notices: Arc<Mutex<Vec<Notice>>>,
}

/// What a look-up of [`Cache::get`] brought.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a test takes it apart at once")]
pub(crate) enum Got {
    Hit(Vec<u8>, Hit),
    Stale(Vec<u8>, Stale),
    Miss(Miss),
}

impl Got {
    #[track_caller]
    pub(crate) fn body(self) -> Vec<u8> {
        match self {
            Got::Hit(body, _) => body,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn ticket(self) -> Ticket {
        match self {
            Got::Miss(Miss { ticket: Some(ticket), .. }) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn why(self) -> MissReason {
        match self {
            Got::Miss(miss) => miss.why,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn stale(self) -> (Vec<u8>, Stale) {
        match self {
            Got::Stale(body, stale) => (body, stale),
            other => panic!("{other:?}"),
        }
    }
}

impl Cache {
    /// `timeout` is for a call.
    pub(crate) fn at(socket: &Path, timeout: Duration) -> Self {
        let cache = Self::not_connected(socket, timeout);
        assert!(cache.l2.wait_up(PATIENCE));
        cache
    }

    pub(crate) fn not_connected(socket: &Path, timeout: Duration) -> Self {
        Self::with(socket, |config| config.call_timeout = timeout)
    }

    pub(crate) fn with(socket: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&notices);
        let log: Log = Arc::new(move |notice: &Notice| told.lock().unwrap().push(notice.clone()));
        let store = Connect::Socket(socket.into());
        Self { notices, ..Self::over(store, PATIENCE, 2, log, change) }
    }

    /// A cache whose notices `log` receives.
    pub(crate) fn over(
        store: Connect,
        call_timeout: Duration,
        connections: usize,
        log: Log,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config {
            store,
            call_timeout,
            connections,
            prefix: b"cdn://example.com".to_vec(),
            regexes: Arc::new(Pcre),
            tags: vec![b"xkey".to_vec(), b"Surrogate-Key".to_vec()],
            log_limit: Config::LOG_LIMIT,
            origin: None,
            since: None,
            follower: None,
            log,
        };
        change(&mut config);
        let l2 = L2::open(config).unwrap();
        Self { l2, counters: Arc::default(), notices: Arc::default() }
    }

    pub(crate) fn key(&self, url: &str) -> Key {
        self.l2.key(Some(b"www"), url.as_bytes(), None)
    }

    /// Looks up without waiting for another fetch.
    pub(crate) fn get(&self, req: &Req) -> Got {
        self.get_at(req, NOW, Duration::ZERO)
    }

    pub(crate) fn get_at(&self, req: &Req, now: f64, wait: Duration) -> Got {
        self.look_up(req, now, wait, None, false)
    }

    /// Looks up for a request that carries a token, and would wait for so long.
    pub(crate) fn get_for_fetch(&self, req: &Req, token: &str, wait: Duration) -> Got {
        self.look_up(req, NOW, wait, Some(token), false)
    }

    /// Asks the origin, whatever there is.
    pub(crate) fn refresh(&self, req: &Req) -> Got {
        self.look_up(req, NOW, PATIENCE, None, true)
    }

    fn look_up(&self, req: &Req, now: f64, wait: Duration, token: Option<&str>, refresh: bool) -> Got {
        let token = token.map(str::as_bytes);
        let key = self.l2.key(Some(b"www"), &req.url, None);
        let hold = PATIENCE;
        let lookup = Lookup { key: &key, request: req, client: req, wait, token, hold, now, refresh, adopts: None };
        match self.l2.find(&lookup, &self.counters) {
            Finding::Hit(hit) => Got::Hit(body(&hit), hit),
            Finding::Stale(stale) => Got::Stale(body(&stale.hit), stale),
            Finding::Miss(miss) => Got::Miss(miss),
        }
    }

    pub(crate) fn publish(&self, ticket: Ticket, req: &Req, head: Head, body: &[u8]) -> Outcome {
        let mut writer = match ticket.writer(head, req, Some(body.len() as u64), &self.counters) {
            Ok(writer) => writer,
            Err(outcome) => return outcome,
        };
        for piece in body.chunks(10_000) {
            if let Err(outcome) = writer.write(piece) {
                return outcome;
            }
        }
        writer.finish(&self.counters)
    }

    /// Misses (after the holder of the ticket has given it up), and publishes.
    #[track_caller]
    pub(crate) fn put(&self, req: &Req, head: Head, body: &[u8]) {
        let ticket = self.get_at(req, NOW, PATIENCE).ticket();
        assert_eq!(self.publish(ticket, req, head, body), Outcome::Published);
    }

    /// Announces a ban.
    pub(crate) fn ban(&self, ban: &Ban) {
        self.l2.announce_ban(&ban.0);
    }

    pub(crate) fn purge(&self, url: &str) -> bool {
        self.l2.purge(&self.key(url), false, &self.counters).unwrap()
    }
}

pub(crate) fn body(hit: &Hit) -> Vec<u8> {
    let mut body = vec![0; hit.record.body_len() as usize + 10];
    let mut at = 0;
    loop {
        let end = body.len().min(at + 7000);
        match hit.record.read_at(&mut body[at..end], at as u64).unwrap() {
            0 => break,
            n => at += n,
        }
    }
    body.truncate(at);
    assert_eq!(at as u64, hit.record.body_len());
    body
}
