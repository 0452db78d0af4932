//! The delivery filter changes no response: each request of a matrix is sent to a varnishd with `-s malloc` and without the filter, and to
//! one with the engine and `objmapper.deliver()`, and status line, headers and body must be equal.
//!
//! The matrix: method, condition (RFC 9110 13), Range and If-Range (14), Accept-Encoding, HTTP/1.0, 1.1 and 2, for objects that are
//! large and small, stored gzipped, with ESI and with ESI switched off, with status 200, 204 and 404, cached, passed and synthetic.
//! varnishd decides about 304 and its own filters after vcl_deliver: so some requests have VCL change what it decides by after
//! `objmapper.deliver()`.
//!
//! Chunks are cut where a storage's pieces end, so that a chunked body is compared without its frames, and a gzipped body that ESI
//! assembled as what it stands for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::h2o::H2o;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(30);

const PATHS: [&str; 12] = [
    "/large",
    "/small",
    "/empty",
    "/gzip",
    "/esi",
    "/esi-off",
    "/esi-gzip",
    "/no-content",
    "/not-found",
    "/large?pass",
    "/synth",
    "/absent",
];
/// Asked for by HTTP/2, too. Not `/empty`: what a client still gets of its Range before varnishd resets the stream is a matter of time.
const BY_HTTP2: [&str; 5] = ["/large", "/gzip", "/esi", "/no-content", "/not-found"];
const CONDITIONS: [&str; 5] = [
    "",
    "If-None-Match: \"r\"",
    "If-None-Match: \"x\"",
    "If-Modified-Since: Wed, 01 Jan 2020 00:00:00 GMT",
    "If-Modified-Since: Tue, 01 Jan 2019 00:00:00 GMT",
];
const RANGES: [&str; 10] = [
    "",
    "Range: bytes=0-9",
    "Range: bytes=1000-99999",
    "Range: bytes=-500",
    "Range: bytes=900000-",
    "Range: bytes=0-1,5-9",
    "Range: lines=1-2",
    "Range: bytes=0-9\r\nIf-Range: \"r\"",
    "Range: bytes=0-9\r\nIf-Range: \"x\"",
    "Range: bytes=0-9\r\nIf-Range: Wed, 01 Jan 2020 00:00:00 GMT",
];
/// What VCL changes after `objmapper.deliver()`.
const LATE: [&str; 6] = ["", "status", "range", "condition", "etag", "twice"];

/// VCL for both; `DELIVER` stands for the call of the filter.
const VCL: &str = r#"
sub vcl_recv {
	set req.http.Host = "site";
	if (req.url == "/synth") {
		return (synth(200));
	}
	if (req.url ~ "[?]pass" || req.method == "POST") {
		return (pass);
	}
}
sub vcl_backend_fetch {
	# Parts are made by varnishd, of what is passed too.
	unset bereq.http.Range;
	unset bereq.http.If-Range;
	set bereq.url = regsub(bereq.url, "^/(no-content|not-found)", "/large");
	set bereq.url = regsub(bereq.url, "^/(esi-off|esi-gzip)", "/esi");
}
sub vcl_backend_response {
	if (!bereq.uncacheable) {
		set beresp.do_stream = false;
		set beresp.ttl = 1h;
		set beresp.do_gzip = bereq.http.X-Path ~ "gzip";
		set beresp.do_esi = bereq.http.X-Path ~ "^/esi";
	}
	set beresp.http.Date = "Thu, 02 Jan 2020 00:00:00 GMT";
	set beresp.http.Last-Modified = "Wed, 01 Jan 2020 00:00:00 GMT";
	set beresp.http.ETag = {""r""};
	if (bereq.http.X-Path == "/no-content") {
		set beresp.status = 204;
	} elsif (bereq.http.X-Path == "/not-found") {
		set beresp.status = 404;
	}
}
sub vcl_recv {
	set req.http.X-Path = req.url;
}
sub vcl_deliver {
	# What names the transaction, the time or the machine.
	unset resp.http.X-Varnish;
	unset resp.http.X-Vinyl;
	unset resp.http.Age;
	unset resp.http.Via;
	set resp.http.X-Hits = obj.hits > 0;
	if (req.url == "/esi-off") {
		set resp.do_esi = false;
	}
	if (req.http.X-Late) {
		DELIVER
	}
	if (req.http.X-Late == "status") {
		set resp.status = 404;
	} elsif (req.http.X-Late == "range") {
		unset req.http.Range;
	} elsif (req.http.X-Late == "condition") {
		unset req.http.If-None-Match;
		unset req.http.If-Modified-Since;
	} elsif (req.http.X-Late == "etag") {
		set resp.http.ETag = {""x""};
	} elsif (req.http.X-Late == "twice") {
		DELIVER
	}
}
sub vcl_synth {
	unset resp.http.X-Varnish;
	unset resp.http.X-Vinyl;
	unset resp.http.Date;
	set resp.body = "synthetic";
	return (deliver);
}
"#;

/// A request of the matrix, without its protocol.
#[derive(Debug, Clone, Copy)]
struct Case {
    method: &'static str,
    path: &'static str,
    condition: &'static str,
    range: &'static str,
    gzip: bool,
    late: &'static str,
}

impl Case {
    /// The header lines.
    fn headers(&self) -> Vec<String> {
        let mut lines = vec!["Host: site".to_owned()];
        lines.extend([self.condition, self.range].iter().flat_map(|part| part.split("\r\n")).map(str::to_owned));
        if self.gzip {
            lines.push("Accept-Encoding: gzip".to_owned());
        }
        if !self.late.is_empty() {
            lines.push(format!("X-Late: {}", self.late));
        }
        if self.method == "POST" {
            lines.push("Content-Length: 1".to_owned());
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}

/// The matrix; what does not bear on each other is not multiplied.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in PATHS {
        for condition in CONDITIONS {
            for range in RANGES {
                // varnishd fails the fetch of what it passes for a Range that it cannot read (VRG_CheckBo): how long the error's body
                // is, is known to the delivery or not, as the fetch is over or not.
                let unreadable = range.contains(',') || range.contains("lines");
                if path.contains("pass") && unreadable {
                    continue;
                }
                let plain = Case { method: "GET", path, condition, range, gzip: false, late: "" };
                cases.push(plain);
                cases.push(Case { method: "HEAD", ..plain });
                if path.contains("gzip") || path.contains("esi") {
                    cases.push(Case { gzip: true, ..plain });
                }
                if path == "/large" {
                    cases.extend((!unreadable).then_some(Case { method: "POST", ..plain }));
                    cases.extend(LATE.into_iter().skip(1).map(|late| Case { late, ..plain }));
                }
            }
        }
        for late in LATE {
            cases.push(Case { method: "GET", path, condition: "", range: "", gzip: false, late });
        }
    }
    cases
}

/// A response as a client sees it.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Seen {
    /// Status line and headers.
    head: String,
    /// The body, without the frames of chunks.
    body: Vec<u8>,
    /// What came behind it on the connection.
    rest: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Takes apart what came on a connection of HTTP/1.
    fn parse(raw: &[u8], method: &str) -> Result<Seen> {
        let end = raw.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no head")? + 4;
        let (head, behind) = raw.split_at(end);
        let mut seen =
            Seen { head: String::from_utf8_lossy(head).into_owned(), body: Vec::new(), rest: behind.to_vec() };
        if method == "HEAD" || matches!(seen.status(), "204" | "304") {
            return Ok(seen);
        }
        let chunked = seen.header("Transfer-Encoding") == Some("chunked");
        let length = seen.header("Content-Length").map(str::parse::<usize>).transpose()?;
        match length {
            _ if chunked => (seen.body, seen.rest) = unchunk(behind)?,
            Some(length) => {
                // varnishd itself leaves a body short (Range of an empty one), and closes the connection.
                let (body, rest) = behind.split_at_checked(length).unwrap_or((behind, b"short"));
                (seen.body, seen.rest) = (body.to_vec(), rest.to_vec());
            }
            None => (seen.body, seen.rest) = (behind.to_vec(), Vec::new()),
        }
        Ok(seen)
    }
}

fn unchunk(mut raw: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut body = Vec::new();
    loop {
        let line = raw.windows(2).position(|bytes| bytes == b"\r\n").context("no chunk")?;
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..line])?, 16)?;
        let (chunk, behind) = raw[line + 2..].split_at_checked(size).context("the chunk is short")?;
        body.extend_from_slice(chunk);
        raw = behind.strip_prefix(b"\r\n").context("the chunk has no end")?;
        if size == 0 {
            return Ok((body, raw.to_vec()));
        }
    }
}

/// What a gzipped body stands for.
fn gunzip(body: &[u8]) -> Result<Vec<u8>> {
    let mut gzip =
        Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("gzip")?;
    let mut input = gzip.stdin.take().context("no input")?;
    let body = body.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&body));
    let output = gzip.wait_with_output()?;
    // An error of the writer is one of gzip's, too.
    let _ = writer.join();
    ensure!(output.status.success(), "gzip: {}", output.status);
    Ok(output.stdout)
}

/// The two varnishd, and what is behind them.
struct Stage {
    plain: Varnishd,
    filtered: Varnishd,
    dir: PathBuf,
    _h2o: H2o,
}

impl Stage {
    fn set(dir: &Path, arrangement: Arrangement) -> Result<Stage> {
        let root = dir.join("site");
        std::fs::create_dir_all(&root)?;
        site::write(&root, "large", 1, 200_000)?;
        site::write(&root, "gzip", 2, 300_000)?;
        site::write(&root, "small", 3, 3000)?;
        site::write(&root, "empty", 4, 0)?;
        let filler = "0123456789".repeat(10_000);
        let page = format!(
            "<a>{filler}<esi:include src=\"/large\"/><esi:include src=\"/gzip\"/><esi:include src=\"/small\"/>"
        );
        std::fs::write(root.join("esi"), page)?;
        let h2o = H2o::start(dir, &root)?;
        let (host, port) = (h2o.address().ip(), h2o.address().port());
        let backend = format!("backend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}");
        let start = |name: &str, arrangement: Arrangement, vcl: &str| {
            let dir = dir.join(name);
            std::fs::create_dir(&dir)?;
            let storage = [arrangement.storage("s0", "200m", None, "")];
            Varnishd::start(
                &dir,
                &Options {
                    arrangement,
                    storage: &storage,
                    listen: &[],
                    vcl,
                    parameters: &["feature=+http2"],
                    user: None,
                    descriptors: None,
                },
            )
        };
        let plain = start("plain", Arrangement::Malloc, &format!("vcl 4.1;\n{backend}{}", VCL.replace("DELIVER", "")))?;
        // varnishd compiles VCL as another user, who may not see where we are built.
        let vmod = artefacts::stage(&artefacts::vmod()?, dir)?;
        let vcl = artefacts::stage(&artefacts::workspace().join("vcl/objmapper.vcl"), dir)?;
        let head = format!(
            "vcl 4.1;\nimport objmapper from \"{}\";\ninclude \"{}\";\n{backend}",
            vmod.display(),
            vcl.display()
        );
        let filtered = start("filtered", arrangement, &(head + &VCL.replace("DELIVER", "objmapper.deliver();")))?;
        let stage = Stage { plain, filtered, dir: dir.to_owned(), _h2o: h2o };
        stage.warm()?;
        Ok(stage)
    }

    /// Has both fetch all, and waits until nothing of a fetch is left: a length that becomes known is then known to both.
    fn warm(&self) -> Result<()> {
        for varnishd in [&self.plain, &self.filtered] {
            for path in PATHS.into_iter().filter(|path| !path.contains("pass") && *path != "/synth") {
                wait_for(&format!("{path} to be cached"), BOUND, || {
                    let case = Case { method: "GET", path, condition: "", range: "", gzip: true, late: "" };
                    let seen = ask(varnishd.address(), "HTTP/1.1", &case)?;
                    let known =
                        seen.header("Content-Length").is_some() || path.starts_with("/esi") || seen.status() == "204";
                    Ok((known && seen.header("X-Hits") == Some("true")).then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// Compares what both answered.
    fn compare(&self, what: &str, plain: Seen, filtered: Seen) -> Result<()> {
        if plain == filtered {
            return Ok(());
        }
        ensure!(plain.head == filtered.head, "{what}\n--- malloc\n{}\n--- filter\n{}", plain.head, filtered.head);
        ensure!(plain.rest == filtered.rest, "{what}: what follows differs");
        if plain.header("Content-Encoding") == Some("gzip") && plain.header("Content-Length").is_none() {
            ensure!(gunzip(&plain.body)? == gunzip(&filtered.body)?, "{what}: the bodies stand for different ones");
            return Ok(());
        }
        bail!("{what}: bodies of {} and {} bytes differ", plain.body.len(), filtered.body.len())
    }
}

/// Sends the request, and behind it on the same connection (HTTP/1.1) another one, whose response must follow.
fn ask(address: SocketAddr, protocol: &str, case: &Case) -> Result<Seen> {
    let mut request = format!("{} {} {protocol}\r\n{}\r\n\r\n", case.method, case.path, case.headers().join("\r\n"));
    if case.method == "POST" {
        request.push('x');
    }
    if protocol == "HTTP/1.1" {
        request += "GET /small HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n";
    }
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.write_all(request.as_bytes())?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).with_context(|| format!("{request:?} after {} bytes", raw.len()))?;
    // It is closed already, or the test is over.
    let _ = stream.shutdown(Shutdown::Both);
    Seen::parse(&raw, case.method).with_context(|| format!("{request:?}"))
}

/// Sends all requests by HTTP/2, one after the other.
fn ask_by_http2(stage: &Stage, address: SocketAddr, cases: &[Case]) -> Result<Vec<Seen>> {
    let out = stage.dir.join(format!("h2.{}", address.port()));
    std::fs::create_dir(&out)?;
    let mut config = String::new();
    for (n, case) in cases.iter().enumerate() {
        let quoted = |text: &str| text.replace('"', "\\\"");
        if n > 0 {
            config += "next\n";
        }
        // A host of its own is a connection of its own: curl 7.88 fails a HEAD on one that it has used before.
        let (ip, port) = (address.ip(), address.port());
        writeln!(config, "silent\nhttp2-prior-knowledge\nmax-time = 30\nwrite-out = \"%{{exitcode}}\\n\"")?;
        writeln!(config, "resolve = \"c{n}.test:{port}:{ip}\"\nurl = \"http://c{n}.test:{port}{}\"", case.path)?;
        writeln!(
            config,
            "output = \"{}\"\ndump-header = \"{}\"",
            out.join(format!("{n}.body")).display(),
            out.join(format!("{n}.head")).display()
        )?;
        if case.method == "HEAD" {
            config += "head\n";
        }
        for header in case.headers() {
            writeln!(config, "header = \"{}\"", quoted(&header))?;
        }
    }
    let file = out.join("config");
    std::fs::write(&file, config)?;
    let output = Command::new("curl").arg("-K").arg(&file).output().context("curl")?;
    // curl's verdict of each: varnishd itself sends what curl refuses (a Range of an empty body).
    let codes = String::from_utf8_lossy(&output.stdout).into_owned();
    let codes: Vec<_> = codes.lines().collect();
    ensure!(codes.len() == cases.len(), "curl: {output:?}");
    let one = |(n, code): (usize, &&str)| {
        let head = std::fs::read_to_string(out.join(format!("{n}.head")))?;
        // curl makes no file of no body.
        let body = std::fs::read(out.join(format!("{n}.body"))).unwrap_or_default();
        Ok(Seen { head, body, rest: code.as_bytes().to_vec() })
    };
    codes.iter().enumerate().map(one).collect()
}

fn matrix(arrangement: Arrangement) -> Result<()> {
    let dir = open_directory()?;
    let stage = Stage::set(dir.path(), arrangement)?;
    let cases = cases();
    let mut statuses = BTreeMap::new();
    for protocol in ["HTTP/1.1", "HTTP/1.0"] {
        for case in &cases {
            let plain = ask(stage.plain.address(), protocol, case)?;
            let filtered = ask(stage.filtered.address(), protocol, case)?;
            *statuses.entry(plain.status().to_owned()).or_insert(0) += 1;
            stage.compare(&format!("{protocol} {case:?}"), plain, filtered)?;
        }
    }
    // A connection each: not all of them.
    let by_http2: Vec<_> = cases
        .iter()
        .copied()
        .filter(|case| BY_HTTP2.contains(&case.path) && matches!(case.method, "GET" | "HEAD"))
        .filter(|case| case.method == "GET" || case.range.is_empty() || case.condition.is_empty())
        .collect();
    let plain = ask_by_http2(&stage, stage.plain.address(), &by_http2)?;
    let filtered = ask_by_http2(&stage, stage.filtered.address(), &by_http2)?;
    let answers = plain.iter().filter(|seen| seen.head.starts_with("HTTP/2") && seen.rest == b"0").count();
    ensure!(answers * 10 > by_http2.len() * 9, "{answers} of {} were answered by HTTP/2", by_http2.len());
    for ((case, plain), filtered) in by_http2.iter().zip(plain).zip(filtered) {
        stage.compare(&format!("HTTP/2 {case:?}"), plain, filtered)?;
    }
    // The matrix has what it is for, and the filter had something to do.
    for status in ["200", "204", "206", "304", "404", "416"] {
        ensure!(statuses.contains_key(status), "no response with status {status}: {statuses:?}");
    }
    let counters = stage.filtered.counters("OBJM.s0.")?;
    for name in ["c_zero_copy", "b_zero_copy", "c_copy_filtered", "c_copy_http2"] {
        ensure!(counters.get(name).is_some_and(|value| *value > 0), "{name} is zero: {counters:?}");
    }
    ensure!(counters.get("c_err_internal") == Some(&0), "{counters:?}");
    Ok(())
}

#[test]
fn embedded() -> Result<()> {
    matrix(Arrangement::Embedded)
}

#[test]
fn every_body_in_a_file() -> Result<()> {
    matrix(Arrangement::EmbeddedT0)
}
