//! A store with a socket, objects in it, and the program.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use objmapper_client::{Client, CommitOptions, ObjUri};
use objmapper_records::{
    Config, Connect, Counters, Finding, Head, Headers, L2, Lookup, Outcome, Regex, Regexes, RequestView, Summer,
};
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{DiskTier, MemoryTier, Store, StoreConfig};

/// An objmapperd's store and socket, in this process, with a disk tier, whose files a test can damage.
pub(crate) struct Daemon {
    server: Option<Server>,
    pub(crate) dir: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// One with a memory tier instead, for many objects.
    pub(crate) fn in_memory() -> Self {
        let memory = Some(MemoryTier { limit: 256 << 20, mount: None });
        Self::of(tempfile::tempdir().unwrap(), StoreConfig { memory, ..StoreConfig::default() }, |_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut ListenConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Some(DiskTier { dir: dir.path().join("store"), limit: 256 << 20 });
        Self::of(dir, StoreConfig { disk, ..StoreConfig::default() }, change)
    }

    fn of(dir: tempfile::TempDir, config: StoreConfig, change: impl FnOnce(&mut ListenConfig)) -> Self {
        let store = Store::open(config).unwrap();
        let mut listen = ListenConfig {
            socket: dir.path().join("socket"),
            mode: 0o600,
            owner: None,
            group: None,
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
            max_connections: 64,
            threads: 1,
        };
        change(&mut listen);
        Self { server: Some(Server::start(listen, store).unwrap()), dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn client(&self) -> Client {
        Client::builder(self.socket()).connections(1).call_timeout(Duration::from_secs(20)).connect().unwrap()
    }

    /// Runs the program to its end.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Ran {
        ctl(&self.socket(), arguments)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain(Duration::ZERO);
        }
    }
}

/// What the program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) bytes: Vec<u8>,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        Self { code: output.status.code(), out, err, bytes: output.stdout }
    }
}

impl Ran {
    /// Requires an exit code, and words in what was written to standard output or error.
    #[track_caller]
    pub(crate) fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.out.contains(word) || self.err.contains(word), "no {word:?} in {}{}", self.out, self.err);
        }
        self
    }

    /// Returns the lines of standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub(crate) fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_objmapperctl"));
    command.args(arguments).env("OBJMAPPER_SOCKET", socket).stdin(Stdio::null());
    command
}

pub(crate) fn ctl(socket: &Path, arguments: &[&str]) -> Ran {
    command(socket, arguments).output().unwrap().into()
}

pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Publishes a plain object.
pub(crate) fn put(client: &Client, uri: &str, bytes: &[u8]) {
    let mut private = client.create(bytes.len() as u64, None, None).unwrap();
    File::from(private.take_fd().unwrap()).write_all(bytes).unwrap();
    let uri = ObjUri::parse(uri.as_bytes()).unwrap();
    private.commit(&uri, bytes.len() as u64, CommitOptions::default()).unwrap();
}

/// A cache, whose bans have no regular expressions.
pub(crate) struct Cache {
    pub(crate) l2: Arc<L2>,
    pub(crate) counters: Counters,
}

struct NoRegexes;

impl Regexes for NoRegexes {
    fn compile(&self, _pattern: &[u8]) -> Option<Box<dyn Regex>> {
        None
    }
}

/// A request for a path of the host `h`.
pub(crate) struct Req {
    path: &'static str,
    header: Option<(&'static str, &'static str)>,
}

pub(crate) fn req(path: &'static str) -> Req {
    Req { path, header: None }
}

impl Req {
    pub(crate) fn with(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

impl RequestView for Req {
    fn url(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        self.header.filter(|(header, _)| header.as_bytes().eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
    }
}

/// A response's head, made `age` seconds ago.
pub(crate) fn head(age: f64, [ttl, grace, keep]: [f32; 3], lines: &[&str]) -> Head {
    let mut headers = Headers::default();
    for line in lines {
        assert!(headers.push(line.as_bytes()));
    }
    let t_origin = now() - age;
    Head {
        status: 200,
        reason: b"OK".to_vec(),
        headers,
        t_origin,
        ttl,
        grace,
        keep,
        gzip_bits: None,
        flags: 0,
        origin: None,
    }
}

impl Cache {
    pub(crate) fn new(socket: &Path) -> Self {
        let l2 = L2::open(Config {
            store: Connect::Socket(socket.to_owned()),
            call_timeout: Duration::from_secs(20),
            connections: 1,
            prefix: b"varnish".to_vec(),
            regexes: Arc::new(NoRegexes),
            tags: vec![b"xkey".to_vec()],
            log_limit: Config::LOG_LIMIT,
            origin: None,
            since: None,
            follower: None,
            log: Arc::new(|_| {}),
        })
        .unwrap();
        assert!(l2.wait_up(Duration::from_secs(20)));
        Self { l2, counters: Counters::default() }
    }

    pub(crate) fn find(&self, request: &Req) -> Finding {
        let key = self.l2.key(Some(b"h"), request.url(), None);
        let lookup = Lookup {
            key: &key,
            request,
            client: request,
            wait: Duration::ZERO,
            hold: Duration::from_secs(60),
            now: now(),
            refresh: false,
            token: None,
            adopts: None,
        };
        self.l2.find(&lookup, &self.counters)
    }

    /// Publishes a response.
    pub(crate) fn publish(&self, request: &Req, head: Head, body: &[u8]) {
        let Finding::Miss(miss) = self.find(request) else { panic!("it is there") };
        let mut sum = Summer::new();
        sum.update(body);
        let ticket = miss.ticket.unwrap();
        let mut writer = ticket.writer(head, request, Some(body.len() as u64), &self.counters).unwrap();
        writer.write(body).unwrap();
        assert_eq!(writer.finish(&self.counters), Outcome::Published);
    }
}
