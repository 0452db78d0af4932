//! The server as its operator sees it: access, limits, peers that misbehave, signals, crashes.

mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use objmapper_proto::ext::{Commit, IfVersion, Request, Token, Want};
use objmapper_proto::{ObjUri, Status};
use objmapper_server::net::{NetError, Server};
use objmapper_server::store::{Store, StoreConfig};
use rustix::process::Signal;

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::parse(text.as_bytes()).unwrap()
}

fn put(peer: &mut Peer, name: &str, body: &[u8], want: Want) -> Result<u64, Status> {
    let request = Request::Create { tier: None, length: body.len() as u64, uri: None };
    let (Answer::Created(handle), mut fds) = peer.call(&request)? else { panic!() };
    File::from(fds.remove(0)).write_all(body).unwrap();
    let request = Request::Commit(Commit {
        handle,
        length: body.len() as u64,
        expires: 0,
        if_version: IfVersion::Any,
        uri: uri(name),
        want,
        ephemeral: false,
        fence: None,
    });
    let (Answer::Entry(entry), _) = peer.call(&request)? else { panic!() };
    Ok(entry.object)
}

#[test]
fn the_socket_has_its_mode_and_owner_before_anybody_can_connect() {
    let server = InProcess::with(StoreConfig::default(), |listen| {
        listen.mode = 0o640;
        listen.owner = Some(12345);
        listen.group = Some(23456);
    });
    let stat = fs::metadata(server.socket()).unwrap();
    assert_eq!((stat.mode() & 0o777, stat.uid(), stat.gid()), (0o640, 12345, 23456));
    assert_eq!(fs::read_dir(server.dir.path()).unwrap().count(), 1, "no temporary socket is left");
}

#[test]
fn who_is_on_no_list_is_refused() {
    let me = rustix::process::geteuid().as_raw();
    for (uids, gids, allowed) in [
        (vec![me], vec![], true),
        (vec![me + 1], vec![], false),
        (vec![], vec![rustix::process::getegid().as_raw()], true),
        (vec![], vec![54321], false),
    ] {
        let server = InProcess::with(StoreConfig::default(), |listen| {
            listen.allow_uids = uids;
            listen.allow_gids = gids;
        });
        let mut peer = server.peer();
        if allowed {
            peer.extended();
        } else {
            peer.expect_end();
            assert_eq!(server.server.as_ref().unwrap().refused(), 1);
        }
    }
}

#[test]
fn connections_are_bounded_and_a_place_that_is_free_again_can_be_taken() {
    let server = InProcess::with(StoreConfig::default(), |listen| listen.max_connections = 2);
    let one = server.attached();
    let _two = server.attached();
    server.peer().expect_end();
    drop(one);
    eventually("the place is free", || server.server.as_ref().unwrap().connections() == 1);
    server.attached();
}

#[test]
fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = listen(dir.path());
    drop(UnixListener::bind(&config.socket).unwrap());
    let memory = Some(objmapper_server::store::MemoryTier { limit: 1 << 20, mount: None });
    let store = Store::open(StoreConfig { memory, ..StoreConfig::default() }).unwrap();
    let server = Server::start(config.clone(), store.clone()).unwrap();
    let again = Server::start(config.clone(), store.clone());
    assert!(matches!(again, Err(NetError::InUse(_))));
    Peer::connect(&config.socket).extended();
    server.drain(Duration::from_secs(5));
    assert!(!config.socket.exists());
    fs::write(&config.socket, "mine").unwrap();
    assert!(matches!(Server::start(config, store), Err(NetError::NotASocket(_))));
}

#[test]
fn a_peer_that_does_not_read_blocks_nobody_and_is_bounded() {
    let server = InProcess::with(StoreConfig::default(), |listen| listen.threads = 1);
    let mut other = server.attached();
    put(&mut other, "/a", b"x", Want::ENTRY).unwrap();
    let mut greedy = server.attached();
    greedy.stream.set_nonblocking(true).unwrap();
    let mut lookup = Vec::new();
    Request::Lookup { uri: uri("/a"), want: Want::FD }.encode(1, &mut lookup).unwrap();
    // Until the server takes no more: it has stopped reading.
    let mut sent = 0usize;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        assert!(sent < 64 << 20, "the server reads without bound");
        match greedy.stream.write(&lookup[sent % lookup.len()..]) {
            Ok(n) => {
                sent += n;
                last = Instant::now();
            }
            Err(_) => std::thread::yield_now(),
        }
    }
    let fds = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(fds < 1000, "{fds} descriptors wait for a peer that does not read");
    let started = Instant::now();
    for _ in 0..100 {
        other.call(&Request::Stat).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    // And when it reads, it gets every reply.
    greedy.stream.set_nonblocking(false).unwrap();
    let whole = sent / lookup.len();
    for _ in 0..whole {
        let (id, answer) = greedy.reply();
        let (_, fds) = answer.unwrap();
        assert_eq!((id, fds.len()), (1, 1));
    }
}

#[test]
fn a_drain_lets_a_private_object_be_finished_and_ends_what_only_waits() {
    let mut server = InProcess::new();
    let mut busy = server.attached();
    let mut idle = server.attached();
    let mut waiting = server.attached();
    let lease = |wait| Request::Lease { wait, hold: 60_000, uri: uri("/l"), want: Want::ENTRY };
    idle.call(&lease(0)).unwrap();
    waiting.request(&lease(60_000));
    waiting.call(&Request::Stat).unwrap();
    let create = Request::Create { tier: None, length: 1, uri: None };
    let (Answer::Created(handle), mut fds) = busy.call(&create).unwrap() else { panic!() };
    let socket = server.socket();
    let running = server.server.take().unwrap();
    let drain = std::thread::spawn(move || running.drain(Duration::from_secs(60)));
    idle.expect_end();
    assert_eq!(waiting.reply().1.unwrap_err(), Status::Unavailable);
    waiting.expect_end();
    eventually("the socket is removed", || !socket.exists());
    assert_eq!(busy.call(&create).unwrap_err(), Status::Unavailable);
    File::from(fds.remove(0)).write_all(b"x").unwrap();
    let request = Request::Commit(Commit {
        handle,
        length: 1,
        expires: 0,
        if_version: IfVersion::Any,
        uri: uri("/late"),
        want: Want::ENTRY,
        ephemeral: false,
        fence: None,
    });
    busy.call(&request).unwrap();
    busy.expect_end();
    drain.join().unwrap();
    assert!(server.store.lookup(b"/late").unwrap().is_some());
}

#[test]
fn sigterm_ends_with_status_0_at_the_deadline_and_removes_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut command = Daemon::command(&socket);
    command.args(["--memory", "8M", "--drain-timeout", "200ms"]);
    let mut daemon = Daemon::start(command, &socket);
    let mut peer = Peer::connect(&socket);
    peer.extended();
    peer.attach(Token::NEW);
    peer.call(&Request::Create { tier: None, length: 1, uri: None }).unwrap();
    daemon.signal(Signal::TERM);
    peer.expect_end();
    let status = daemon.child.wait().unwrap();
    assert!(status.success() && !socket.exists(), "{status}");
}

#[test]
fn sighup_is_ignored_and_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut command = Daemon::command(&socket);
    command.args(["--memory", "8M"]);
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut until = |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the daemon ended without saying {text:?}");
        }
    };
    let daemon = Daemon { child, socket: socket.clone() };
    until("serving");
    let mut peer = Peer::connect(&socket);
    peer.extended();
    peer.attach(Token::NEW);
    put(&mut peer, "/a", b"hello", Want::ENTRY).unwrap();
    for _ in 0..2 {
        daemon.signal(Signal::HUP);
        until("SIGHUP is ignored");
    }
    let (_, mut fds) = peer.call(&Request::Lookup { uri: uri("/a"), want: Want::FD }).unwrap();
    assert_eq!(read_fd(fds.remove(0)), b"hello");
}

#[test]
fn unusable_options_end_with_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    for (arguments, parts) in [
        (&["--memory", "1K"][..], &["--memory", "1K", "1M"][..]),
        (&[], &["--memory", "--dir"]),
        (&["--memory", "8M", "--max-connections", "900000"], &["--max-connections", "LimitNOFILE"]),
        (&["--dir", "/proc/x", "--disk", "1G"], &["/proc/x", "remedy"]),
    ] {
        // A limit of our own, so that the test does not depend on the machine's.
        let script = format!("ulimit -n 8192; exec {} \"$@\"", env!("CARGO_BIN_EXE_objmapperd"));
        let out =
            Command::new("sh").args(["-c", &script, "sh", "--socket"]).arg(&socket).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{text}");
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        assert!(!socket.exists());
    }
}

#[test]
fn out_of_descriptors_it_answers_unavailable_pauses_accepting_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut command = Daemon::command(&socket);
    command.args(["--memory", "64M", "--max-connections", "200", "--max-private", "200"]);
    let daemon = Daemon::start(command, &socket);
    // Below what the options need, behind the daemon's back.
    let pid = rustix::process::Pid::from_child(&daemon.child);
    let low = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, low).unwrap();
    let mut peer = Peer::connect(&socket);
    peer.extended();
    peer.attach(Token::NEW);
    let mut handles = Vec::new();
    let refused = loop {
        match peer.call(&Request::Create { tier: None, length: 1, uri: None }) {
            Ok((Answer::Created(handle), _)) => handles.push(handle),
            Ok(other) => panic!("{other:?}"),
            Err(status) => break status,
        }
        assert!(handles.len() < 100);
    };
    assert_eq!(refused, Status::Unavailable);
    // Connections wait in the backlog meanwhile; nobody is dropped and the daemon does not spin.
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut late = Peer::connect(&socket);
        late.send(&hex("4f424a4d0280000064"));
        waiting.push(late);
    }
    for handle in handles {
        peer.call(&Request::Abort { handle }).unwrap();
    }
    for mut late in waiting {
        late.take(10);
    }
    put(&mut peer, "/a", b"x", Want::ENTRY).unwrap();
}

#[test]
fn sigkill_loses_no_acknowledged_commit_and_serves_no_half_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let start = || {
        let mut command = Daemon::command(&socket);
        command.arg("--dir").arg(dir.path().join("d")).args(["--disk", "512M"]);
        Daemon::start(command, &socket)
    };
    let mut seed = 88172645463325252u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    // What each URI must hold: the last acknowledged body, or the one that was on its way.
    let mut expected: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
    let mut session = Token::NEW;
    let mut pinned: Option<(u64, Vec<u8>)> = None;
    for round in 0..8u64 {
        let daemon = start();
        let mut peer = Peer::connect(&socket);
        peer.extended();
        session = peer.attach(session); // a disk tier keeps its sessions
        for (name, bodies) in &expected {
            let request = Request::Lookup { uri: uri(name), want: Want::FD };
            let (_, mut fds) = peer.call(&request).unwrap_or_else(|s| panic!("{name} lost: {s}"));
            let body = read_fd(fds.remove(0));
            assert!(bodies.contains(&body), "{name} holds {} bytes that nobody committed", body.len());
        }
        if let Some((object, body)) = &pinned {
            let (_, mut fds) =
                peer.call(&Request::Attach { session, directories: true, board: false, number: false }).unwrap();
            let path = objmapper_proto::ext::BodyPath::new(*object);
            let flags = rustix::fs::OFlags::RDONLY;
            let file = rustix::fs::openat(fds.remove(0), path.as_str(), flags, rustix::fs::Mode::empty());
            assert_eq!(read_fd(file.unwrap()), *body, "the pinned body is gone");
        }
        // In the middle of the next commit, or of the one behind it: a number of commits, because a slow machine
        // does none in a fixed time.
        let (kill_at, into) = (5 + random() % 60, Duration::from_micros(random() % 2_000));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let killer = std::thread::spawn({
            let acknowledged = acknowledged.clone();
            move || {
                eventually("commits", || acknowledged.load(Ordering::Relaxed) >= kill_at);
                std::thread::sleep(into);
                daemon.signal(Signal::KILL);
                daemon
            }
        });
        let mut commits = 0u64;
        loop {
            let name = format!("/k/{}", random() % 40);
            let length = (random() % 20_000) as usize;
            let body = [format!("{round}.{commits}.").into_bytes(), vec![b'x'; length]].concat();
            // From now on either is right, until the reply says which.
            expected.entry(name.clone()).or_default().push(body.clone());
            let first = expected[&name].len() == 1;
            let want = if commits.is_multiple_of(16) { Want::PIN } else { Want::ENTRY };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| put(&mut peer, &name, &body, want)));
            match outcome {
                Ok(Ok(object)) => {
                    expected.insert(name, vec![body.clone()]);
                    if want == Want::PIN {
                        pinned = Some((object, body));
                    }
                    commits += 1;
                    acknowledged.store(commits, Ordering::Relaxed);
                }
                Ok(Err(status)) => panic!("{status}"),
                Err(_) => {
                    // Killed. A URI that never was acknowledged need not exist.
                    if first {
                        expected.remove(&name);
                    }
                    break;
                }
            }
        }
        drop(killer.join().unwrap());
    }
    assert!(expected.len() > 10, "the daemon was killed before it did anything");
    // No half-written file is left under a name either.
    let _daemon = start();
    let mut peer = Peer::connect(&socket);
    peer.extended();
    peer.attach(session);
    let mut stat = || match peer.call(&Request::Stat).unwrap().0 {
        Answer::Stat(stat) => stat.tiers[0],
        other => panic!("{other:?}"),
    };
    let index = || -> u64 {
        let private = fs::read_dir(dir.path().join("d/objmapper-store")).unwrap().map(|f| f.unwrap());
        private
            .filter(|f| f.file_name().to_string_lossy().starts_with("index"))
            .map(|f| f.metadata().unwrap().len())
            .sum()
    };
    let on_disk = || {
        let objects = dir.path().join("d/objmapper-store/objects");
        let files = fs::read_dir(objects)
            .unwrap()
            .map(|d| d.unwrap().path())
            .filter(|d| d.is_dir())
            .flat_map(|d| fs::read_dir(d).unwrap())
            .map(|f| f.unwrap().metadata().unwrap());
        files.fold((0u64, 0u64), |(n, bytes), m| (n + 1, bytes + m.len().max(1).div_ceil(4096) * 4096))
    };
    eventually("orphans are swept and what is left is what is counted", || on_disk().1 + index() == stat().used);
    assert!(on_disk().0 >= stat().objects);
}

#[test]
fn another_user_can_use_the_store_but_not_write_into_it() {
    if !rustix::process::geteuid().is_root() {
        return; // only root can become somebody else
    }
    let server = InProcess::with(StoreConfig::default(), |listen| listen.mode = 0o666);
    fs::set_permissions(server.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = server.socket();
    std::thread::spawn(move || {
        // SAFETY: plain system calls; they change this thread's identity only, and it ends here.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setresgid, 65534, 65534, 65534), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534), 0);
        }
        let mut peer = Peer::connect(&socket);
        peer.extended();
        let request = Request::Attach { session: Token::NEW, directories: true, board: false, number: false };
        let (_, mut fds) = peer.call(&request).unwrap();
        let dir = fds.remove(0);
        let object = put(&mut peer, "/a", b"hello", Want::ENTRY).unwrap();
        let path = objmapper_proto::ext::BodyPath::new(object);
        let open = |flags| rustix::fs::openat(&dir, path.as_str(), flags, rustix::fs::Mode::empty());
        assert_eq!(read_fd(open(rustix::fs::OFlags::RDONLY).unwrap()), b"hello");
        assert!(open(rustix::fs::OFlags::RDWR).is_err());
        let unlink = rustix::fs::unlinkat(&dir, path.as_str(), rustix::fs::AtFlags::empty());
        assert_eq!(unlink.unwrap_err(), rustix::io::Errno::ACCESS);
    })
    .join()
    .unwrap();
}

#[test]
fn v1_clients_that_only_write_do_not_deadlock_with_us() {
    let server = InProcess::new();
    let mut peer = server.peer();
    let one = hex("3100082f742f6d69737331");
    let mut writer = peer.stream.try_clone().unwrap();
    let sent = std::thread::spawn(move || {
        for _ in 0..2000 {
            writer.write_all(&one).unwrap();
        }
    });
    for _ in 0..2000 {
        peer.expect("0000000000000000000000");
        peer.expect("58");
        peer.fds.remove(0);
    }
    sent.join().unwrap();
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_request_is_forgotten() {
    let server = InProcess::new();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(&hex("310008 2f74")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    eventually("it is forgotten", || server.server.as_ref().unwrap().connections() == 0);
}
