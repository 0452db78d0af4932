//! Which congestion control the delivery filter leaves to a connection (`vmod_objmapper/src/deliver_send.rs`): a client on the
//! same machine whose connection is paced by BBR is taken off it by the first large body, and nobody else is.
//!
//! With which one a connection begins is decided by the route to the client: unlike the system's default it can be any
//! that the kernel has. So each test is in a network namespace of its own (root), and a client that is not on the machine is
//! in another.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::cell::Cell;
use objmapper_harness::h2o::H2o;
use objmapper_harness::needs::Need;
use objmapper_harness::process::open_directory;
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(30);
/// From this many bytes on a body is large.
const LARGE: usize = 1 << 20;
const SIZES: [usize; 4] = [100_000, LARGE - 1, LARGE, 3 * LARGE + 17];
/// The machine's address where others see it, and that of another machine.
const OURS: &str = "10.77.0.1";
const THEIRS: &str = "10.77.0.2";

fn run(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("{words:?}"))?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Puts this test's thread, and all that it starts, into a network namespace of its own. Returns false if the machine
/// forbids that: `test` is skipped.
fn enter(test: &str) -> Result<bool> {
    if Need::Network.skips(&format!("pacing::{test}"))? {
        return Ok(false);
    }
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace takes root")?;
    run(&["ip", "link", "set", "lo", "up"])?;
    Ok(true)
}

/// With which congestion control connections to clients on 127.0.0.1 begin from now on.
fn begin_with(control: &str) -> Result<()> {
    let route = "local 127.0.0.1 dev lo src 127.0.0.1 table local congctl";
    let words = ["ip", "route", "replace"].into_iter().chain(route.split(' ')).chain([control]);
    run(&words.collect::<Vec<_>>()).map(|_| ())
}

/// Has the kernel BBR? If not, this says so, and connections begin with something else.
fn begin_with_bbr(test: &str) -> Result<bool> {
    match begin_with("bbr") {
        Err(error) if error.to_string().contains("Unknown tcp congestion algorithm") => {
            Need::Bbr.record(&format!("pacing::{test}"))?;
            Ok(false)
        }
        done => done.map(|()| true),
    }
}

/// A varnishd with the filter, with a body of each size in its storage s0, and below /off in s1, which copies.
struct Stage {
    varnishd: Varnishd,
    _h2o: H2o,
}

impl Stage {
    fn set(dir: &Path, listen: &[&str]) -> Result<Self> {
        let root = dir.join("site");
        for (seed, size) in SIZES.into_iter().enumerate() {
            for root in [root.clone(), root.join("off")] {
                std::fs::create_dir_all(&root)?;
                site::write(&root, &size.to_string(), seed as u64, size)?;
            }
        }
        let h2o = H2o::start(dir, &root)?;
        let vmod = artefacts::stage(&artefacts::vmod()?, dir)?;
        let vcl = format!(
            r#"vcl 4.1;
import objmapper from "{}";
backend h2o {{ .host = "{}"; .port = "{}"; }}
sub vcl_recv {{ set req.http.Host = "site"; }}
sub vcl_backend_response {{
	set beresp.do_stream = false;
	set beresp.storage = storage.s0;
	if (bereq.url ~ "^/off/") {{ set beresp.storage = storage.s1; }}
}}
sub vcl_deliver {{ set resp.filters = resp.filters + " objmapper"; }}
"#,
            vmod.display(),
            h2o.address().ip(),
            h2o.address().port()
        );
        let arrangement = Arrangement::Embedded;
        let storage =
            [arrangement.storage("s0", "100m", None, ""), arrangement.storage("s1", "100m", None, "zero_copy=off")];
        let varnishd = Varnishd::start(
            dir,
            &Options {
                arrangement,
                storage: &storage,
                listen,
                vcl: &vcl,
                parameters: &[],
                user: None,
                descriptors: None,
            },
        )?;
        Ok(Self { varnishd, _h2o: h2o })
    }

    /// Connections that were taken off pacing.
    fn unpaced(&self) -> Result<u64> {
        Ok(self.varnishd.counter("OBJM.s0.c_unpaced")? + self.varnishd.counter("OBJM.s1.c_unpaced")?)
    }

    fn sent(&self) -> Result<u64> {
        self.varnishd.counter("OBJM.s0.c_zero_copy")
    }
}

/// GETs a body of the site, on a connection that stays; it must be whole.
fn get(stream: impl Read + Write, path: &str) -> Result<()> {
    let mut stream = BufReader::new(stream);
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: site\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(stream.read_until(b'\n', &mut head)? > 0, "{path}: the connection ended");
    }
    ensure!(head.starts_with(b"HTTP/1.1 200 "), "{path}: {}", String::from_utf8_lossy(&head));
    let size = path.rsplit('/').next().unwrap_or_default().parse()?;
    let seed = SIZES.iter().position(|s| *s == size).context("no such body")?;
    let mut body = vec![0; size];
    stream.read_exact(&mut body).with_context(|| format!("the body of {path}"))?;
    ensure!(body == site::bytes(seed as u64, size), "{path}: the body differs");
    Ok(())
}

/// A connection of a client, and what varnishd's end of it is controlled by.
struct Connection(TcpStream);

impl Connection {
    fn to(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| address.to_string())?;
        stream.set_read_timeout(Some(BOUND))?;
        Ok(Self(stream))
    }

    /// Of a client that is where `cell` is.
    fn from(cell: &Cell, address: SocketAddr) -> Result<Self> {
        let namespace = File::open(format!("/proc/{}/ns/net", cell.pid()))?;
        // A socket stays in the namespace of the thread that made it.
        let make = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Self::to(address)
        };
        std::thread::scope(|scope| scope.spawn(make).join()).map_err(|_| anyhow::anyhow!("panicked"))?
    }

    fn get(&self, path: &str) -> Result<()> {
        get(&self.0, path)
    }

    /// The congestion control with which varnishd sends to it.
    fn control(&self) -> Result<String> {
        let filter = format!("( src = {} and dst = {} )", self.0.peer_addr()?, self.0.local_addr()?);
        let text = run(&["ss", "-tinH", "state", "established", &filter])?;
        let mut words = text.split_whitespace();
        let found = words.find(|word| ["bbr", "reno", "cubic"].contains(word));
        Ok(found.with_context(|| format!("{filter}: {text:?}"))?.to_owned())
    }

    /// GETs a body; thereafter the connection is controlled by this.
    fn expect(&self, path: &str, control: &str) -> Result<()> {
        self.get(path)?;
        let is = self.control()?;
        ensure!(is == control, "{is}, not {control}, after {path}");
        Ok(())
    }
}

#[test]
fn a_client_on_the_machine_is_sent_large_bodies_without_pacing() -> Result<()> {
    if !enter("a_client_on_the_machine_is_sent_large_bodies_without_pacing")?
        || !begin_with_bbr("a_client_on_the_machine_is_sent_large_bodies_without_pacing")?
    {
        return Ok(());
    }
    let directory = open_directory()?;
    let path = directory.path().join("socket");
    let mut listen = vec![path.to_str().context("a path")?];
    let has_ipv6 = std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|text| !text.is_empty());
    if has_ipv6 {
        listen.push("[::1]:8080");
    }
    let stage = Stage::set(directory.path(), &listen)?;

    let connection = Connection::to(stage.varnishd.address())?;
    connection.expect("/100000", "bbr")?;
    connection.expect("/1048575", "bbr")?;
    ensure!(stage.unpaced()? == 0, "a body was counted that is not large");
    connection.expect("/1048576", "reno")?;
    ensure!(stage.unpaced()? == 1, "the change was not counted");
    connection.expect("/3145745", "reno")?;
    connection.expect("/100000", "reno")?;
    ensure!(stage.unpaced()? == 1, "a connection counts once");
    ensure!(stage.sent()? == 5, "not all of this was sent without a copy");

    // The others are not concerned; their bodies were.
    let another = Connection::to(stage.varnishd.address())?;
    another.expect("/1048575", "bbr")?;
    another.expect("/3145745", "reno")?;
    ensure!(stage.unpaced()? == 2, "one per connection");

    // Who wants none of this.
    let copied = Connection::to(stage.varnishd.address())?;
    copied.expect("/off/3145745", "bbr")?;

    // Those that are not paced keep what they have.
    begin_with("cubic")?;
    Connection::to(stage.varnishd.address())?.expect("/3145745", "cubic")?;
    begin_with("reno")?;
    Connection::to(stage.varnishd.address())?.expect("/3145745", "reno")?;
    get(UnixStream::connect(&path)?, "/3145745")?;
    ensure!(stage.unpaced()? == 2, "counted although nothing was changed");
    ensure!(stage.sent()? == 10, "not all of this was sent without a copy");

    if has_ipv6 {
        // The kernel's own route would be preferred.
        run(&["ip", "-6", "route", "delete", "local", "::1", "dev", "lo", "table", "local"])?;
        run(&["ip", "-6", "route", "add", "local", "::1", "dev", "lo", "table", "local", "congctl", "bbr"])?;
        let connection = Connection::to("[::1]:8080".parse()?)?;
        connection.expect("/1048575", "bbr")?;
        connection.expect("/3145745", "reno")?;
        ensure!(stage.unpaced()? == 3, "IPv6 is like IPv4");
    }
    Ok(())
}

#[test]
fn a_client_on_another_machine_stays_paced() -> Result<()> {
    if !enter("a_client_on_another_machine_stays_paced")? || !begin_with_bbr("a_client_on_another_machine_stays_paced")?
    {
        return Ok(());
    }
    let directory = open_directory()?;
    let elsewhere = Cell::new(directory.path(), &[])?;
    let pid = elsewhere.pid().to_string();
    run(&["ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", &pid])?;
    run(&["ip", "address", "add", &format!("{OURS}/24"), "dev", "here"])?;
    run(&["ip", "link", "set", "here", "up"])?;
    run(&["ip", "route", "add", THEIRS, "dev", "here", "congctl", "bbr"])?;
    run(&["ip", "route", "replace", "local", OURS, "dev", "here", "table", "local", "congctl", "bbr"])?;
    elsewhere.output(&["ip", "address", "add", &format!("{THEIRS}/24"), "dev", "there"])?;
    elsewhere.output(&["ip", "link", "set", "there", "up"])?;
    let address = SocketAddr::new(OURS.parse()?, 8080);
    let stage = Stage::set(directory.path(), &[&address.to_string()])?;

    let connection = Connection::from(&elsewhere, address)?;
    connection.expect("/100000", "bbr")?;
    connection.expect("/1048576", "bbr")?;
    connection.expect("/3145745", "bbr")?;
    ensure!(stage.sent()? == 3, "not all of this was sent without a copy");
    ensure!(stage.unpaced()? == 0, "counted although nothing was changed");

    // To the same address, but on the machine.
    Connection::to(address)?.expect("/3145745", "reno")?;
    ensure!(stage.unpaced()? == 1, "the change was not counted");
    Ok(())
}
