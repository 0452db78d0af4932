//! A varnishd whose storage keeps its objects (`persist=on`), before an H2O, started again and again on the same directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::arrangement::Arrangement;
use crate::h2o::H2o;
use crate::http::{Client, Request, Response};
use crate::process::wait_for;
use crate::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(60);

/// Purges, soft purges and bans for tests; what is fetched is fresh for long.
const VCL: &str = r#"
import std;
import purge;
sub vcl_recv {
	if (req.method == "PURGE") { return (purge); }
	if (req.method == "BAN") {
		if (std.ban(req.http.x-ban)) { return (synth(200)); }
		return (synth(400, std.ban_error()));
	}
	if (req.method == "SOFT") { set req.http.x-soft = "1"; set req.method = "GET"; }
	if (req.http.x-miss) { set req.hash_always_miss = true; }
	return (hash);
}
sub vcl_hit { if (req.http.x-soft) { purge.soft(0s, -1s, -1s); return (synth(200)); } }
sub vcl_miss { if (req.http.x-soft) { purge.soft(0s, -1s, -1s); return (synth(200)); } }
sub vcl_backend_response {
	set beresp.ttl = 1h;
	set beresp.grace = 0s;
	set beresp.keep = 10m;
	set beresp.http.X-File = regsub(bereq.url, "^/([^?]*).*", "\1");
}
sub vcl_deliver { set resp.http.X-Hits = obj.hits; }
"#;

/// The varnishd, its directory, and what it is started with.
pub struct Keeper {
    varnishd: Option<Varnishd>,
    dir: PathBuf,
    store: PathBuf,
    vcl: String,
}

impl Keeper {
    /// Makes a directory for the storage below `dir`, for varnishd's child, which runs as another user. Starts nothing.
    pub fn new(dir: &Path, h2o: &H2o) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let store = dir.join("store");
        std::fs::create_dir(&store)?;
        std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o777))?;
        let (host, port) = (h2o.address().ip(), h2o.address().port());
        let vcl = format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n{VCL}");
        Ok(Self { varnishd: None, dir: dir.to_owned(), store, vcl })
    }

    /// Starts it, with a storage of this size and these further options.
    pub fn start(&mut self, size: &str, options: &str) -> Result<()> {
        let storage = format!("s0=objmapper,{size},dir={}{options}", self.store.display());
        let options = Options {
            parameters: &["ban_lurker_sleep=0.01", "ban_lurker_age=0.1", "feature=+no_coredump"],
            ..Options::new(Arrangement::Embedded, std::slice::from_ref(&storage), &self.vcl)
        };
        self.varnishd = Some(Varnishd::start(&self.dir, &options)?);
        Ok(())
    }

    /// The varnishd.
    pub fn varnishd(&self) -> Result<&Varnishd> {
        self.varnishd.as_ref().context("varnishd does not run")
    }

    /// Stops it as an operator does.
    pub fn stop(&mut self) -> Result<()> {
        self.varnishd.take().map_or(Ok(()), Varnishd::stop)
    }

    /// Kills it, manager and child.
    pub fn kill(&mut self) -> Result<()> {
        self.varnishd.take().map_or(Ok(()), Varnishd::kill)
    }

    /// Makes a request.
    pub fn send(&self, client: &Client, path: &str, request: &Request<'_>) -> Result<Response> {
        // The address and the port are another site after each start.
        let headers = [&[("Host", "site.example")], request.headers].concat();
        client.send(&self.varnishd()?.url(path), &Request { headers: &headers, ..*request })
    }

    /// GETs `path`.
    pub fn get(&self, client: &Client, path: &str) -> Result<Response> {
        self.send(client, path, &Request::default())
    }

    /// Makes a request with this method, which is answered 200.
    pub fn command(&self, client: &Client, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<()> {
        let response = self.send(client, path, &Request { method: Some(method), headers, ..Request::default() })?;
        ensure!(response.status == 200, "{method} {path}: status {}", response.status);
        Ok(())
    }

    /// A counter of the storage.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.varnishd()?.counter(&format!("OBJM.s0.{name}"))
    }

    /// Waits until so many objects are written.
    pub fn wait_persisted(&self, objects: u64) -> Result<()> {
        wait_for("objects to be written", BOUND, || {
            let written = self.counter("c_persisted")? >= objects;
            Ok((written && self.counter("g_persisted")? >= objects).then_some(()))
        })
    }

    /// The directory of what is kept.
    pub fn kept(&self) -> PathBuf {
        self.store.join("objmapper-persist")
    }

    /// Changes the header of what is kept; its checksum is right afterwards.
    pub fn change_header(&self, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let path = self.kept().join("header");
        let mut header = std::fs::read(&path)?;
        change(&mut header);
        let at = header.len() - 8;
        let check = xxh3_64(&header[..at]);
        header[at..].copy_from_slice(&check.to_le_bytes());
        // In place: it belongs to another user.
        std::fs::OpenOptions::new().write(true).open(&path)?;
        std::fs::write(&path, &header)?;
        Ok(())
    }
}
