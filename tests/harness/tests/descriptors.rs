//! Descriptors of cached bodies leave enough of the process's for its clients and backends.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(30);
/// What varnishd may have open.
const LIMIT: u32 = 600;
/// More bodies than that.
const BODIES: u64 = 700;
const SIZE: usize = 5000;

/// A varnishd that has fetched more bodies than it may have descriptors, each in a file of its own.
fn filled(dir: &Path, h2o: &H2o, options: &str) -> Result<Varnishd> {
    let (host, port) = (h2o.address().ip(), h2o.address().port());
    let vcl = format!("vcl 4.1;\nbackend h2o {{ .host = \"{host}\"; .port = \"{port}\"; }}\n");
    let arrangement = Arrangement::Embedded;
    let storage = [arrangement.storage("s0", "100m", None, &format!("threshold=0{options}"))];
    let (listen, parameters, descriptors) = (&[][..], &[][..], Some(LIMIT));
    let options = Options { arrangement, storage: &storage, listen, vcl: &vcl, parameters, user: None, descriptors };
    let varnishd = Varnishd::start(dir, &options)?;
    let client = Client::new();
    // The second time they are hits, for which files are opened.
    for _ in 0..2 {
        for number in 0..BODIES {
            let response = client.fetch(&varnishd.url(&format!("/body?{number}")))?;
            ensure!(response.status == 200 && response.body == site::bytes(1, SIZE), "body {number}");
        }
    }
    wait_for("the bodies to be published", BOUND, || {
        Ok((varnishd.counter("OBJM.s0.c_published")? == BODIES).then_some(()))
    })?;
    Ok(varnishd)
}

/// So many clients at once are not too many.
fn takes_clients(varnishd: &Varnishd, count: usize) -> Result<()> {
    let idle: Vec<TcpStream> =
        (0..count).map(|_| TcpStream::connect(varnishd.address())).collect::<std::io::Result<_>>()?;
    let response = Client::new().fetch(&varnishd.url("/body?0"))?;
    ensure!(response.status == 200, "status {}", response.status);
    ensure!(varnishd.counter("MAIN.sess_fail_emfile")? == 0, "a client was not accepted");
    ensure!(varnishd.counter("OBJM.s0.c_err_io")? == 0, "a file was not opened");
    drop(idle);
    Ok(())
}

#[test]
fn cached_bodies_leave_descriptors_for_clients() -> Result<()> {
    let dir = open_directory()?;
    let root = dir.path().join("site");
    std::fs::create_dir(&root)?;
    site::write(&root, "body", 1, SIZE)?;
    let h2o = H2o::start(dir.path(), &root)?;
    for (name, options, kept, told) in [("default", "", 150, false), ("asked", ",fds=1000", 300, true)] {
        let own = dir.path().join(name);
        std::fs::create_dir(&own)?;
        let varnishd = filled(&own, &h2o, options)?;
        let open = varnishd.counter("OBJM.s0.g_fds")?;
        ensure!(open > kept / 2 && open <= kept, "{name}: {open} descriptors of bodies, of {kept}");
        ensure!(varnishd.counter("OBJM.s0.c_fds_closed")? > 0, "{name}: none was closed");
        takes_clients(&varnishd, 100)?;
        let line = "fds=1000: varnishd may have 600 files open";
        ensure!(varnishd.output().contains(line) == told, "{name}: {}", varnishd.output());
        varnishd.stop()?;
    }
    Ok(())
}
