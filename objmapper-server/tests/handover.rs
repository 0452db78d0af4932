//! What a reply hands over: the server's own copy of a descriptor is no writer that a commit meets, and what cannot be sent
//! is given back.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::*;
use objmapper_proto::ObjUri;
use objmapper_proto::ext::{Commit, IfVersion, LeaseOutcome, Request, Stat, Token, Want};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

fn uri(text: &str) -> ObjUri<'_> {
    ObjUri::parse(text.as_bytes()).unwrap()
}

fn create(peer: &mut Peer, length: u64) -> (u64, OwnedFd) {
    match peer.call(&Request::Create { tier: None, length, uri: None }) {
        Ok((Answer::Created(handle), mut fds)) => (handle, fds.remove(0)),
        other => panic!("{other:?}"),
    }
}

fn stat(peer: &mut Peer) -> Stat {
    match peer.call(&Request::Stat) {
        Ok((Answer::Stat(stat), _)) => stat,
        other => panic!("{other:?}"),
    }
}

/// Takes all of the CPU between `start` and `stop`, but for less than a tenth of a second at a time.
struct Hog {
    busy: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Hog {
    fn new() -> Self {
        let busy = Arc::new(AtomicBool::new(false));
        let seen = busy.clone();
        let thread = std::thread::spawn(move || {
            while Arc::strong_count(&seen) > 1 {
                std::thread::park();
                let until = Instant::now() + Duration::from_millis(50);
                while seen.load(SeqCst) && Instant::now() < until {}
            }
        });
        Hog { busy, thread }
    }

    fn start(&self) {
        self.busy.store(true, SeqCst);
        self.thread.thread().unpark();
    }

    fn stop(&self) {
        self.busy.store(false, SeqCst);
    }

    fn end(self) {
        drop(self.busy);
        self.thread.thread().unpark();
        self.thread.join().unwrap();
    }
}

/// One CPU for the daemon's threads, the client and a hog, and one of the two event loops runs only when nothing else wants
/// to: the client it wakes by `sendmsg` takes the CPU before it has closed its copy of the descriptor.
#[test]
fn a_commit_over_another_connection_does_not_meet_the_servers_own_descriptor() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    // Of this thread, and so of the threads and processes that it begins.
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut command = Daemon::command(&socket);
    command.args(["--memory", "8M", "--threads", "2"]);
    let daemon = Daemon::start(command, &socket);
    // Successive connections are of different loops; both have a name once they answer.
    let mut peers = [Peer::connect(&socket), Peer::connect(&socket)];
    let mut token = Token::NEW;
    for peer in &mut peers {
        peer.extended();
        token = peer.attach(token);
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().map(|task| task.unwrap());
    let slow: Vec<i32> = tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).unwrap().trim() == "objm-loop-0")
        .map(|task| task.file_name().to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(slow.len(), 1);
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure lives through the call, which only reads it.
    assert_eq!(unsafe { libc::sched_setscheduler(slow[0], libc::SCHED_IDLE, &parameters) }, 0);
    let hog = Hog::new();
    let [mut one, mut two] = peers;
    for round in 0..20 {
        let (handle, file) = create(&mut one, 1);
        hog.start();
        File::from(file).write_all(b"x").unwrap();
        let commit = two.call(&Request::Commit(Commit {
            handle,
            length: 1,
            expires: 0,
            if_version: IfVersion::Any,
            uri: uri("/a"),
            want: Want::ENTRY,
            ephemeral: false,
            fence: None,
        }));
        hog.stop();
        assert!(commit.is_ok(), "round {round}: {commit:?}");
        std::mem::swap(&mut one, &mut two);
    }
    hog.end();
}

/// Sends `count` descriptors that nobody receives, as the user `id`. They are in flight until the result is dropped.
fn in_flight(id: libc::c_long, count: usize) -> Vec<OwnedFd> {
    std::thread::spawn(move || {
        // SAFETY: plain system calls; they change this thread's identity only, and it ends here.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setresgid, id, id, id), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, id, id, id), 0);
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
        for sent in (0..count).step_by(250) {
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = vec![ours.as_fd(); (count - sent).min(250)];
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            sendmsg(&ours, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL).unwrap();
        }
        vec![ours.into(), theirs.into()]
    })
    .join()
    .unwrap()
}

#[test]
fn what_a_reply_that_cannot_be_sent_grants_is_given_back_and_the_reason_is_logged() {
    if !rustix::process::geteuid().is_root() {
        return; // descriptors in flight are counted per user, and not for root
    }
    const USER: u32 = 54_321; // with no other process
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(USER), Some(USER)).unwrap();
    let socket = dir.path().join("s");
    // So that the user can execute it.
    let program = dir.path().join("objmapperd");
    fs::copy(env!("CARGO_BIN_EXE_objmapperd"), &program).unwrap();
    // What its options need, and so all that may be in flight.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 168; exec \"$@\"", "sh"]).arg(&program).arg("--socket").arg(&socket);
    command.args(["--memory", "8M", "--max-connections", "20", "--max-private", "20"]);
    let mut child = command.uid(USER).gid(USER).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("serving") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the daemon ended");
    }
    let daemon = Daemon { child, socket: socket.clone() };
    let mut watcher = Peer::connect(&socket);
    watcher.extended();
    let token = watcher.attach(Token::NEW);
    let attached = || {
        let mut peer = Peer::connect(&socket);
        peer.extended();
        peer.attach(token);
        peer
    };
    let unread = in_flight(USER.into(), 200);
    let before = stat(&mut watcher);
    for _ in 0..30 {
        let mut peer = attached();
        peer.request(&Request::Create { tier: None, length: 100_000, uri: None });
        peer.expect_end();
    }
    // Behind a reply that cannot be sent.
    let mut peer = attached();
    let mut both = Vec::new();
    Request::Create { tier: None, length: 100_000, uri: None }.encode(1, &mut both).unwrap();
    Request::Lease { wait: 0, hold: 60_000, uri: uri("/l"), want: Want::ENTRY }.encode(2, &mut both).unwrap();
    peer.send(&both);
    peer.expect_end();
    // And a session whose name does not arrive, because its directories do not.
    let mut peer = Peer::connect(&socket);
    peer.extended();
    peer.request(&Request::Attach { session: Token::NEW, directories: true, board: true, number: false });
    peer.expect_end();
    eventually("all of it is given back", || {
        let now = stat(&mut watcher);
        let of = |stat: &Stat| (stat.private, stat.sessions, stat.leases, stat.tiers.first().map(|tier| tier.used));
        of(&now) == of(&before)
    });
    drop(unread);
    eventually("descriptors can be sent again", || {
        let mut peer = attached();
        peer.request(&Request::Create { tier: None, length: 1, uri: None });
        peer.receive().is_ok_and(|more| more)
    });
    let lease = Request::Lease { wait: 0, hold: 1, uri: uri("/l"), want: Want::ENTRY };
    let (answer, _) = watcher.call(&lease).unwrap();
    assert!(matches!(answer, Answer::Lease(LeaseOutcome::Granted { .. })), "{answer:?}");

    drop(daemon);
    let lines: Vec<String> = log.lines().map(Result::unwrap).filter(|line| line.contains("is ended")).collect();
    assert!((1..10).contains(&lines.len()), "{lines:?}");
    assert!(lines[0].contains("remedy") && lines[0].contains("LimitNOFILE"), "{lines:?}");
}
