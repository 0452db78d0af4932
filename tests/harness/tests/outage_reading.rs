//! Bodies whose files cannot be read: no signal ends varnishd's child, no response is cut and looks whole, and the objects
//! leave the cache.
//!
//! The failing disk is an ext4 on a loop device over a file on a tmpfs, in a mount namespace of the test (root). The file is
//! cut off and cannot grow again, so that what is not in the page cache is EIO.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sched::{CloneFlags, unshare};
use objmapper_client::{Client, CommitOptions, Want};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::h2o::H2o;
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::process::{Process, open_directory, wait_for};
use objmapper_harness::varnishd::{Options, Varnishd};
use objmapper_harness::{artefacts, site};

const BOUND: Duration = Duration::from_secs(30);
/// Sent from files by sendfile, and by splice.
const SIZES: [usize; 2] = [300_000, 2_000_003];
const HOSTILE: usize = 20 << 20;
const MAPPED: usize = 100_000;

const DIRECTOR: &str = "sub vcl_init { new om = objmapper.director(); om.set_backend(h2o); }
sub vcl_recv { set req.backend_hint = om.backend(); }";

fn run(words: &[&str]) -> Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("{words:?}"))?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Says, also in the output of a test that passes, that it did not run.
fn skipped(test: &str, why: &anyhow::Error) -> Result<()> {
    writeln!(std::io::stderr(), "{test}: SKIPPED, {why:#}")?;
    Ok(())
}

/// A disk that can be made to fail, mounted in the mount namespace of this thread and of what it starts.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    fn mount(dir: &Path) -> Result<Disk> {
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace takes root")?;
        run(&["mount", "--make-rprivate", "/"])?;
        let (backing, mount) = (dir.join("backing"), dir.join("disk"));
        std::fs::create_dir(&backing)?;
        std::fs::create_dir(&mount)?;
        let (at, image) = (backing.display().to_string(), backing.join("image"));
        run(&["mount", "-t", "tmpfs", "-o", "size=200m", "objm", &at])?;
        std::fs::File::create(&image)?.set_len(160 << 20)?;
        let file = image.display().to_string();
        run(&["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0", &file])?;
        run(&["mount", "-o", "loop,noatime", &file, &mount.display().to_string()])?;
        std::fs::set_permissions(&mount, std::fs::Permissions::from_mode(0o777))?;
        Ok(Disk { image, mount })
    }

    /// From now on what was not read yet, and all bodies, cannot be read.
    fn fail(&self) -> Result<()> {
        let files: Vec<_> = files(&self.mount)?.iter().map(std::fs::File::open).collect::<Result<_, _>>()?;
        run(&["sync", "-f", &self.mount.display().to_string()])?;
        std::fs::File::options().write(true).open(&self.image)?.set_len(0)?;
        let backing = self.image.parent().context("the image is in a directory")?;
        run(&["mount", "-o", "remount,size=4k", &backing.display().to_string()])?;
        let mut failing = 0;
        for file in &files {
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            failing += usize::from(file.read_at(&mut [0], 100_000).is_err());
        }
        ensure!(failing > 0, "the disk does not fail");
        Ok(())
    }
}

/// All files below `dir`.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => dirs.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// A varnishd before H2O. `/zc…` is delivered by the filter, `/gz…` stored compressed and delivered unpacked, all else copied.
struct Stage {
    varnishd: Varnishd,
    child: u32,
    _h2o: H2o,
}

impl Stage {
    fn set(dir: &Path, arrangement: Arrangement, storage: String, vcl: &str) -> Result<Stage> {
        let root = dir.join("site");
        std::fs::create_dir(&root)?;
        let others = [("gz-hostile".to_owned(), HOSTILE), ("mapped".to_owned(), MAPPED)];
        for (name, size) in names().into_iter().chain(others) {
            site::write(&root, &name, size as u64, size)?;
        }
        let h2o = H2o::start(dir, &root)?;
        let vmod = artefacts::stage(&artefacts::vmod()?, dir)?;
        let vcl = format!(
            r#"vcl 4.1;
import objmapper from "{}";
backend h2o {{ .host = "{}"; .port = "{}"; }}
sub vcl_recv {{
	if (req.http.X-Miss) {{ set req.hash_always_miss = true; }}
}}
sub vcl_backend_response {{
	set beresp.do_stream = false;
	if (bereq.url ~ "^/gz") {{ set beresp.do_gzip = true; }}
}}
sub vcl_deliver {{
	if (req.url ~ "^/zc") {{ set resp.filters = resp.filters + " objmapper"; }}
}}
{vcl}"#,
            vmod.display(),
            h2o.address().ip(),
            h2o.address().port()
        );
        let options = Options {
            arrangement,
            storage: &[storage],
            listen: &[],
            vcl: &vcl,
            parameters: &[],
            user: None,
            descriptors: None,
        };
        let varnishd = Varnishd::start(dir, &options)?;
        wait_for("the store", BOUND, || Ok((varnishd.counter("OBJM.s0.g_happy")? == 1).then_some(())))?;
        let child = varnishd.child_pid()?;
        Ok(Stage { varnishd, child, _h2o: h2o })
    }

    /// What a GET of `name` is answered, byte by byte, until the connection is closed.
    fn get(&self, name: &str, headers: &str) -> Result<Vec<u8>> {
        let mut connection = TcpStream::connect(self.varnishd.address())?;
        connection.set_read_timeout(Some(BOUND))?;
        write!(connection, "GET /{name} HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n{headers}\r\n")?;
        let mut answer = Vec::new();
        match connection.read_to_end(&mut answer) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
            _ => Ok(answer),
        }
    }

    /// GETs `name`, of `size` bytes, whole.
    fn whole(&self, name: &str, size: usize) -> Result<()> {
        let answer = self.get(name, "")?;
        ensure!(
            body(&answer)?.is_some_and(|body| body == site::bytes(size as u64, size)),
            "/{name}: {}",
            text(&answer)
        );
        Ok(())
    }

    /// As [`Stage::whole`], and waits until the body is published.
    fn fetch(&self, name: &str, size: usize) -> Result<()> {
        let published = self.counter("c_published")?;
        self.whole(name, size)?;
        wait_for("the publication", BOUND, || Ok((self.counter("c_published")? > published).then_some(())))
    }

    /// Has the only mapping (`maps=1`) be that of a body which is not asked for again: a mapping is delivered without asking
    /// the disk, and keeps pages in memory.
    fn take_the_mapping(&self) -> Result<()> {
        let mapped = self.counter("c_mapped")?;
        self.fetch("mapped", MAPPED)?;
        wait_for("the mapping", BOUND, || {
            self.whole("mapped", MAPPED)?;
            Ok((self.counter("c_mapped")? > mapped).then_some(()))
        })
    }

    fn counter(&self, name: &str) -> Result<u64> {
        self.varnishd.counter(&format!("OBJM.s0.{name}"))
    }

    fn director_is_up(&self) -> Result<()> {
        wait_for("the director", BOUND, || Ok((self.varnishd.counter("OBJM.boot.om.g_up")? == 1).then_some(())))
    }

    fn is_alive(&self) -> Result<()> {
        ensure!(self.varnishd.panic().is_none(), "{:?}\n{}", self.varnishd.panic(), self.varnishd.output());
        let child = self.varnishd.child_pid().with_context(|| self.varnishd.output())?;
        ensure!(child == self.child, "the child was started again:\n{}", self.varnishd.output());
        Ok(())
    }
}

fn names() -> Vec<(String, usize)> {
    let name = |kind: &&str| SIZES.map(|size| (format!("{kind}{size}"), size));
    ["zc", "gz", "copy"].iter().flat_map(name).collect()
}

fn text(answer: &[u8]) -> String {
    format!("{} bytes: {}", answer.len(), String::from_utf8_lossy(&answer[..answer.len().min(300)]))
}

/// The body of an answer that is whole by its own head, and has status 200. `None`: there is no answer.
fn body(answer: &[u8]) -> Result<Option<Vec<u8>>> {
    if answer.is_empty() {
        return Ok(None);
    }
    let end = answer.windows(4).position(|at| at == b"\r\n\r\n").context("half a head")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    let mut rest = &answer[end + 4..];
    if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        ensure!(rest.len() == length.parse::<usize>()?, "{} of {length} bytes", rest.len());
        return Ok(Some(rest.to_vec()));
    }
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|at| at == b"\r\n").context("no last chunk")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + size).context("half a chunk")?);
        rest = rest.get(line + size + 4..).context("half a chunk")?;
    }
}

#[test]
fn a_disk_that_fails_costs_its_bodies_and_nothing_else() -> Result<()> {
    fail("a_disk_that_fails_costs_its_bodies_and_nothing_else", "")
}

#[test]
fn records_on_a_disk_that_fails_are_not_used_again() -> Result<()> {
    fail("records_on_a_disk_that_fails_are_not_used_again", DIRECTOR)
}

fn fail(test: &str, director: &str) -> Result<()> {
    let directory = open_directory()?;
    let dir = directory.path();
    let disk = match Disk::mount(dir) {
        Ok(disk) => disk,
        Err(why) => return skipped(test, &why),
    };
    let store = disk.mount.join("store");
    // varnishd's child runs as another user, and keeps its store there.
    std::fs::create_dir(&store)?;
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o777))?;
    let storage = format!("s0=objmapper,100m,dir={},maps=1", store.display());
    let stage = Stage::set(dir, Arrangement::Embedded, storage, director)?;
    if !director.is_empty() {
        stage.director_is_up()?;
    }
    for (name, size) in names() {
        stage.fetch(&name, size)?;
    }
    stage.take_the_mapping()?;
    ensure!(stage.counter("c_err_io")? == 0 && stage.counter("c_lost")? == 0);

    disk.fail()?;
    for (lost, (name, size)) in (1..).zip(names()) {
        let answer = stage.get(&name, "")?;
        ensure!(!matches!(body(&answer), Ok(Some(_))), "/{name}: a whole answer: {}", text(&answer));
        stage.is_alive().with_context(|| name.clone())?;
        ensure!(stage.counter("c_lost")? == lost, "/{name}: {} lost", stage.counter("c_lost")?);
        ensure!(stage.counter("c_err_io")? > 0);
        // It has left the cache.
        stage.whole(&name, size)?;
    }
    if !director.is_empty() {
        let damaged = stage.varnishd.counter("OBJM.boot.om.c_damaged")?;
        ensure!(damaged >= names().len() as u64, "{damaged} records were found to be unreadable");
    }
    let output = stage.varnishd.output();
    let lines = output.lines().filter(|line| line.contains("cannot read the file")).count();
    ensure!((1..=names().len()).contains(&lines), "{output}");
    stage.varnishd.stop()
}

#[test]
fn a_hit_whose_file_cannot_be_opened_is_no_answer_and_then_a_miss() -> Result<()> {
    let directory = open_directory()?;
    let dir = directory.path();
    let daemon = Objmapperd::start_on_disk(dir, "1g")?;
    let storage = Arrangement::Daemon.storage("s0", "100m", Some(&daemon.socket()), "fds=1,maps=1");
    let stage = Stage::set(dir, Arrangement::Daemon, storage, "")?;
    for (name, size) in names() {
        stage.fetch(&name, size)?;
    }
    stage.take_the_mapping()?;
    // Only root, who started objmapperd, may enter them from now on; varnishd's child is another user.
    for entry in std::fs::read_dir(daemon.bodies())? {
        std::fs::set_permissions(entry?.path(), std::fs::Permissions::from_mode(0o700))?;
    }
    for (name, size) in names() {
        let answer = stage.get(&name, "")?;
        ensure!(answer.is_empty(), "/{name}: {}", text(&answer));
        stage.whole(&name, size)?;
    }
    ensure!(stage.counter("c_lost")? == names().len() as u64);
    stage.is_alive()?;
    stage.varnishd.stop()
}

#[test]
fn a_client_of_another_user_cannot_end_varnishd_by_a_record_with_a_hole() -> Result<()> {
    let directory = open_directory()?;
    let dir = directory.path();
    let daemon = Objmapperd::start(dir, "80m")?;
    let socket = daemon.socket();
    let storage = Arrangement::Daemon.storage("s0", "60m", Some(&socket), "");
    let stage = Stage::set(dir, Arrangement::Daemon, storage, DIRECTOR)?;
    stage.director_is_up()?;
    stage.whole("gz-hostile", HOSTILE)?;
    wait_for("the record", BOUND, || Ok((stage.counter("c_records")? == 1).then_some(())))?;

    // An ordinary user may not see where we are built.
    let program = dir.join("hostile");
    std::fs::copy(std::env::current_exe()?, &program)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]).arg(&program);
    command.args(["--ignored", "--exact", "hostile_client", "--nocapture"]).env("OBJM_HOSTILE", &socket);
    let mut hostile = Process::start("the hostile client", &mut command, &dir.join("hostile.log"))?;
    let log = dir.join("hostile.log");
    hostile.wait_ready(|| Ok(std::fs::read_to_string(&log).is_ok_and(|text| text.contains("READY"))))?;

    let answer = stage.get("gz-hostile", "X-Miss: 1\r\n")?;
    let found = body(&answer);
    ensure!(
        !matches!(&found, Ok(Some(body)) if *body != site::bytes(HOSTILE as u64, HOSTILE)),
        "a whole answer with other bytes: {}",
        text(&answer)
    );
    stage.is_alive()?;
    stage.whole("copy300000", 300_000)?;
    hostile.kill()?;
    stage.varnishd.stop()
}

/// The client of another user: it replaces the large record by one whose body is a hole, and takes all room of the
/// memory tier. It holds it until it is killed. Started by the test above.
#[test]
#[ignore = "not a test: the program of another user, which a test starts"]
fn hostile_client() -> Result<()> {
    let Some(socket) = std::env::var_os("OBJM_HOSTILE") else { bail!("OBJM_HOSTILE is not set") };
    let client = Client::builder(PathBuf::from(socket)).connections(1).connect()?;
    let session = client.session().context("no session")?;
    let (uri, entry) = client
        .list(b"")
        .filter_map(Result::ok)
        .find(|(_, entry)| entry.length > HOSTILE as u64 / 2)
        .context("no large record")?;
    let record = std::fs::File::from(session.open_entry(&entry)?);
    // The record's head and trailer, and something of its body.
    let mut tail = vec![0; 64 << 10];
    let from = entry.length - tail.len() as u64;
    record.read_exact_at(&mut tail, from)?;
    let mut hole = client.create(0, None, None)?;
    let file = std::fs::File::from(hole.take_fd().context("no file")?);
    file.write_all_at(&tail, from)?;
    drop((file, record));
    let fence = Some(session.board().context("no board")?.fence(&uri));
    let committed =
        hole.commit(&uri, entry.length, CommitOptions { fence, want: Want::ENTRY, ..CommitOptions::default() });
    println!("a record with a hole: {}", committed.map_or_else(|why| why.to_string(), |_| "committed".to_owned()));
    let mut filler = client.create(0, None, None)?;
    let file = std::fs::File::from(filler.take_fd().context("no file")?);
    let mut at = 0;
    let piece = vec![1; 4096];
    while at < 1 << 30 && file.write_all_at(&piece, at).is_ok() {
        at += piece.len() as u64;
    }
    println!("filled by {at} bytes of descriptor {}: READY", file.as_raw_fd());
    loop {
        std::thread::park();
    }
}
