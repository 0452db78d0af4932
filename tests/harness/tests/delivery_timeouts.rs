//! A slow client is given up at the same time with the delivery filter as without it: `send_timeout` is passed by at most one
//! `idle_send_timeout`.
//!
//! One thread reads from two clients of one varnishd in turns, so that both have the same pace: a client of a body in malloc, and one of
//! a body that the filter sends. What is compared is how much each of them was sent until varnishd gave it up, not a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::artefacts;
use objmapper_harness::h2o::H2o;
use objmapper_harness::http::Client;
use objmapper_harness::process::{open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::varnishd::{Options, Varnishd};

const BOUND: Duration = Duration::from_secs(30);
const BODY: usize = 8 << 20;
/// Bytes per turn, and the pause after each. 64 KiB take longer than half of `idle_send_timeout`, so that no call of the kernel's
/// is idle for too long, and many of them take many times `send_timeout`.
const PIECE: usize = 8 << 10;
const PAUSE: Duration = Duration::from_millis(50);
const PARAMETERS: [&str; 3] = ["idle_send_timeout=0.7", "send_timeout=1.4", "vsl_mask=+Debug"];

/// A connection over which the kernel of the sender has little on its way: small segments into a small buffer.
fn narrow(address: SocketAddr) -> Result<TcpStream> {
    let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::TcpMaxSeg, &1000)?;
    setsockopt(&fd, sockopt::RcvBuf, &4096)?;
    rustix::net::connect(&fd, &address)?;
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// A client that is being sent a body.
struct Reader {
    stream: TcpStream,
    received: usize,
    ended: bool,
}

impl Reader {
    fn ask(address: SocketAddr, path: &str) -> Result<Reader> {
        let mut stream = narrow(address)?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: site\r\n\r\n").as_bytes())?;
        Ok(Reader { stream, received: 0, ended: false })
    }

    /// Takes what is there, at most a piece.
    fn read(&mut self) -> Result<()> {
        let mut piece = [0; PIECE];
        match self.stream.read(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(got) => self.received += got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.ended = true,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[test]
fn send_timeout_is_passed_by_at_most_one_idle_send_timeout() -> Result<()> {
    let dir = open_directory()?;
    let root = dir.path().join("site");
    std::fs::create_dir(&root)?;
    for (seed, name) in ["plain", "sendfile", "splice"].into_iter().enumerate() {
        site::write(&root, name, seed as u64, BODY)?;
    }
    let h2o = H2o::start(dir.path(), &root)?;
    // varnishd compiles VCL as another user, who may not see where we are built.
    let vmod = artefacts::stage(&artefacts::vmod()?, dir.path())?;
    let vcl = format!(
        r#"vcl 4.1;
import objmapper from "{}";
backend h2o {{ .host = "{}"; .port = "{}"; }}
sub vcl_backend_response {{
	set beresp.do_stream = false;
	set beresp.storage = storage.plain;
	if (bereq.url == "/sendfile") {{ set beresp.storage = storage.sendfile; }}
	if (bereq.url == "/splice") {{ set beresp.storage = storage.splice; }}
}}
sub vcl_deliver {{ objmapper.deliver(); }}
"#,
        vmod.display(),
        h2o.address().ip(),
        h2o.address().port()
    );
    let arrangement = Arrangement::Embedded;
    let storage = [
        "plain=malloc,50m".to_owned(),
        arrangement.storage("sendfile", "50m", None, "zero_copy=sendfile"),
        arrangement.storage("splice", "50m", None, "zero_copy=splice"),
    ];
    let options = Options {
        arrangement,
        storage: &storage,
        listen: &[],
        vcl: &vcl,
        parameters: &PARAMETERS,
        user: None,
        descriptors: None,
    };
    let varnishd = Varnishd::start(dir.path(), &options)?;
    let paths = ["/plain", "/sendfile", "/splice"];
    for path in paths {
        let response = Client::new().fetch(&varnishd.url(path))?;
        ensure!(response.status == 200 && response.body.len() == BODY, "{path}: {}", response.status);
    }

    let mut readers: Vec<_> =
        paths.into_iter().map(|path| Reader::ask(varnishd.address(), path)).collect::<Result<_>>()?;
    let end = Instant::now() + BOUND;
    while readers.iter().any(|reader| !reader.ended) {
        ensure!(Instant::now() < end, "a client is still being sent to after {BOUND:?}");
        for reader in &mut readers {
            reader.read()?;
        }
        // Not a wait for something: the clients' pace is what is tested.
        std::thread::sleep(PAUSE);
    }
    let received: Vec<_> = readers.iter().map(|reader| reader.received).collect();
    println!("{paths:?}: {received:?} bytes");
    let [plain, filtered @ ..] = received.as_slice() else { bail!("no readers") };
    // With and without the filter it takes until send_timeout, and at most an idle_send_timeout, half of it, longer.
    for (path, filtered) in paths.iter().skip(1).zip(filtered) {
        ensure!(2 * filtered <= 3 * plain, "{path}: {filtered} bytes were sent, without the filter {plain}");
        ensure!(filtered > &PIECE, "{path}: {filtered} bytes were sent");
    }
    wait_for("all to be given up in the log", BOUND, || {
        let given_up = varnishd.log()?.matches("Hit total send timeout").count();
        Ok((given_up == paths.len()).then_some(()))
    })?;
    let sent = varnishd.counter("OBJM.splice.b_zero_copy").context("no counter")?;
    ensure!(sent > BODY as u64, "only {sent} bytes were sent by the filter");
    Ok(())
}
