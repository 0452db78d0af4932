//! A varnishd that shares what it fetches with others: a director with the second level before H2O, in the VCL that an
//! operator would write, with handles for tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::arrangement::Arrangement;
use crate::artefacts;
use crate::h2o::H2o;
use crate::http::{Client, Request, Response};
use crate::process::wait_for;
use crate::varnishd::{Options, Varnishd};

/// How long anything that must come about by itself may take.
const BOUND: Duration = Duration::from_secs(30);

/// What a cache is started with.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The storage.
    pub arrangement: Arrangement,
    /// The objmapperd of the storage engine, if the arrangement has one.
    pub engine_socket: Option<&'a Path>,
    /// The objmapperd of the director; `None`: that of the storage engine.
    pub director_socket: Option<&'a Path>,
    /// More arguments of the director, as in VCL, each with a comma before it.
    pub arguments: &'a str,
    /// The origin.
    pub h2o: &'a H2o,
    /// How many descriptors varnishd may have, if not as many as we.
    pub descriptors: Option<u32>,
    /// More VCL, before the test's own.
    pub vcl: &'a str,
}

/// A running varnishd with the director `om`. Stopped when dropped.
#[derive(Debug)]
pub struct Cache {
    varnishd: Option<Varnishd>,
    dir: PathBuf,
    arrangement: Arrangement,
    storage: String,
    descriptors: Option<u32>,
    vcl: String,
}

impl Cache {
    /// Starts one with its files in `name` below `dir`.
    pub fn start(dir: &Path, name: &str, setup: &Setup<'_>) -> Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir(&dir)?;
        artefacts::stage(&artefacts::vmod()?, &dir)?;
        artefacts::stage(&artefacts::workspace().join("vcl/objmapper.vcl"), &dir)?;
        let vcl = vcl(setup, &dir);
        let mut cache = Self {
            varnishd: None,
            dir,
            arrangement: setup.arrangement,
            storage: setup.arrangement.storage("s0", "256m", setup.engine_socket, ""),
            descriptors: setup.descriptors,
            vcl,
        };
        cache.start_again()?;
        Ok(cache)
    }

    /// Stops it as an operator does.
    pub fn stop(&mut self) -> Result<()> {
        match self.varnishd.take() {
            Some(varnishd) => varnishd.stop(),
            None => Ok(()),
        }
    }

    /// Starts it with the arguments that it had.
    pub fn start_again(&mut self) -> Result<()> {
        let path = self.dir.display();
        let parameters =
            [format!("vcl_path={path}"), "ban_lurker_sleep=0.01".to_owned(), "ban_lurker_age=0.1".to_owned()];
        let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
        self.varnishd = Some(Varnishd::start(
            &self.dir,
            &Options {
                arrangement: self.arrangement,
                storage: std::slice::from_ref(&self.storage),
                listen: &[],
                vcl: &self.vcl,
                parameters: &parameters,
                user: None,
                descriptors: self.descriptors,
            },
        )?);
        Ok(())
    }

    /// The varnishd itself.
    pub fn varnishd(&self) -> Result<&Varnishd> {
        self.varnishd.as_ref().context("varnishd does not run")
    }

    /// Makes a request for `path` of the site that all caches of a test share: an address and a port as the Host would
    /// be another site for each of them.
    pub fn send(&self, client: &Client, path: &str, request: &Request<'_>) -> Result<Response> {
        let headers = [&[("Host", "site.example")], request.headers].concat();
        client.send(&self.varnishd()?.url(path), &Request { headers: &headers, ..*request })
    }

    /// GETs `path`, which may be answered by what this varnishd has.
    pub fn get(&self, client: &Client, path: &str) -> Result<Response> {
        self.send(client, path, &Request::default())
    }

    /// GETs `path` with a miss: the answer is from the second level or from the origin.
    pub fn miss(&self, client: &Client, path: &str) -> Result<Response> {
        self.send(client, path, &Request { headers: &[("X-Miss", "1")], ..Request::default() })
    }

    /// Purges `path`; an error unless that was answered 200.
    pub fn purge(&self, client: &Client, path: &str) -> Result<()> {
        let response = self.send(client, path, &Request { method: Some("PURGE"), ..Request::default() })?;
        ensure!(response.status == 200, "PURGE {path}: status {}", response.status);
        Ok(())
    }

    /// Bans by VCL; an error unless that was answered 200.
    pub fn ban(&self, client: &Client, expression: &str) -> Result<()> {
        let headers = [("X-Ban", expression)];
        let response =
            self.send(client, "/", &Request { method: Some("BAN"), headers: &headers, ..Request::default() })?;
        ensure!(response.status == 200, "BAN {expression}: status {}", response.status);
        Ok(())
    }

    /// The director's counters, `c_hits` and so on.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        self.varnishd()?.counters(DIRECTOR)
    }

    /// One of the director's counters.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.varnishd()?.counter(&format!("{DIRECTOR}{name}"))
    }

    /// Waits until one of the director's counters is as `wanted` says.
    pub fn wait_counter(&self, name: &str, wanted: impl Fn(u64) -> bool) -> Result<u64> {
        let what = format!("{DIRECTOR}{name}");
        wait_for(&what, BOUND, || Ok(Some(self.counter(name)?).filter(|v| wanted(*v))))
            .with_context(|| format!("{:?}", self.counters()))
    }

    /// Waits until the director can use its store, or, with `false`, until it knows that it cannot.
    pub fn wait_state(&self, up: bool) -> Result<()> {
        // The counter `g_up` is as of the last look-up.
        wait_for(if up { "the store to be up" } else { "the store to be down" }, BOUND, || {
            let list = self.varnishd()?.cli(&["backend.list", "-p", "boot.om"])?;
            let state = list.lines().find_map(|line| line.trim().strip_prefix("State:"));
            let state = state.with_context(|| format!("no state in {list}"))?.trim();
            Ok((state.starts_with("up") == up).then_some(()))
        })
    }

    /// Waits until the director can use its store.
    pub fn wait_up(&self) -> Result<()> {
        self.wait_state(true)
    }
}

/// What the names of the director's counters begin with.
const DIRECTOR: &str = "OBJM.boot.om.";

/// How a response came about, as the test's VCL tells it: `hit`, `miss`, `revalidated`, …; of an object that this
/// varnishd had, how that came about.
pub fn status(response: &Response) -> &str {
    response.header("x-l2").unwrap_or_default()
}

fn vcl(setup: &Setup<'_>, dir: &Path) -> String {
    let (host, port) = (setup.h2o.address().ip(), setup.h2o.address().port());
    let socket = setup.director_socket.map_or(String::new(), |s| format!("\"{}\"", s.display()));
    let arguments = format!("{socket}{}", setup.arguments);
    let arguments = arguments.trim_start_matches([',', ' ']);
    format!(
        r#"vcl 4.1;
import objmapper from "{dir}/libvmod_objmapper.so";

backend h2o {{ .host = "{host}"; .port = "{port}"; }}

sub vcl_init {{
	new om = objmapper.director({arguments});
	om.set_backend(h2o);
}}
sub vcl_backend_response {{
	# before objmapper.vcl, which ends the sub for a stale record
	set beresp.http.X-L2 = om.status();
}}
# X-Miss is past this varnishd's own cache only: the record may answer
sub vcl_miss {{
	set req.hash_always_miss = false;
}}
include "objmapper.vcl";
sub vcl_recv {{
	set req.backend_hint = om.backend();
}}
{more}
# what tests need beyond that
import std;
sub vcl_recv {{
	if (req.http.X-Miss) {{
		set req.hash_always_miss = true;
	}}
	if (req.method == "BAN") {{
		if (std.ban(req.http.X-Ban)) {{
			return (synth(200));
		}}
		return (synth(400, std.ban_error()));
	}}
}}
"#,
        dir = dir.display(),
        more = setup.vcl,
    )
}
