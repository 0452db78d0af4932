//! The helper child that mounts a tmpfs for an unprivileged process. In a user namespace of its
//! own it may mount; it sends the mount's descriptor to its parent and exits. Descriptors are sent and received by rustix, as owned ones; nix has
//! numbers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::tmpfs::{Options, detached_tmpfs};

/// Forks the helper, waits for it, and returns the mount it made.
pub(super) fn tmpfs_from_helper(options: &Options) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // The child may not allocate, so what it writes is formatted here.
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let uid_map = format!("{uid} {uid} 1\n");
    let gid_map = format!("{gid} {gid} 1\n");
    // SAFETY: the child of a process with threads may only make async-signal-safe calls: `helper`
    // makes plain system calls on data prepared above, allocates nothing, takes no lock, and ends
    // with `_exit`, so no destructor or handler of the parent runs in it.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let code = helper(options, uid_map.as_bytes(), gid_map.as_bytes(), theirs.as_fd());
            // SAFETY: ends the child without running any code of the parent's.
            unsafe { libc::_exit(code) }
        }
        _ => {}
    }
    drop(theirs);
    let received = receive(ours.as_fd());
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live int; the pid is our own child, not yet waited for.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    received
}

/// Runs in the child: sends the mount or an errno, and returns the exit code.
fn helper(options: &Options, uid_map: &[u8], gid_map: &[u8], to: BorrowedFd<'_>) -> i32 {
    match mount_in_namespace(options, uid_map, gid_map) {
        Ok(mount) => {
            let fds = [mount.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let data = 0i32.to_ne_bytes();
            i32::from(sendmsg(to, &[IoSlice::new(&data)], &mut control, SendFlags::NOSIGNAL).is_err())
        }
        Err(error) => {
            let data = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
            let mut control = SendAncillaryBuffer::default();
            let _ = sendmsg(to, &[IoSlice::new(&data)], &mut control, SendFlags::NOSIGNAL);
            1
        }
    }
}

fn mount_in_namespace(options: &Options, uid_map: &[u8], gid_map: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: only this child, which has one thread, changes its namespaces; no descriptor table is
    // unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
    // A process without CAP_SETGID in the parent namespace must deny setgroups first.
    write_file(c"/proc/self/setgroups", b"deny")?;
    write_file(c"/proc/self/uid_map", uid_map)?;
    write_file(c"/proc/self/gid_map", gid_map)?;
    detached_tmpfs(options)
}

fn write_file(path: &std::ffi::CStr, data: &[u8]) -> io::Result<()> {
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, data)?;
    Ok(())
}

fn receive(from: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut data = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(from, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if got.bytes != data.len() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the helper process died"));
    }
    let code = i32::from_ne_bytes(data);
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the helper process sent no descriptor"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::super::tmpfs::MountAccess;
    use super::*;

    const AS_CHILD: &str = "OBJMAPPER_TEST_ORDINARY_USER";
    const NOBODY: u32 = 65_534;

    /// As root, this test runs itself again as an ordinary user: root could mount without the helper.
    #[test]
    fn an_ordinary_user_gets_its_mount_from_the_helper() {
        if std::env::var_os(AS_CHILD).is_some() || !rustix::process::geteuid().is_root() {
            return mount_and_use();
        }
        // An ordinary user may not see where tests are built.
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let output = Command::new(&program)
            .args([
                "--exact",
                "store::tier::memory::userns::tests::an_ordinary_user_gets_its_mount_from_the_helper",
                "--nocapture",
            ])
            .env(AS_CHILD, "1")
            .current_dir("/")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    }

    fn mount_and_use() {
        let options = Options::new(1 << 20, MountAccess::Owner);
        assert!(detached_tmpfs(&options).is_err(), "an ordinary user may mount: nothing is shown here");
        let root = match tmpfs_from_helper(&options) {
            Ok(root) => root,
            Err(why) => {
                let unshare =
                    Command::new("unshare").args(["--user", "--map-current-user", "--mount", "true"]).output();
                assert!(unshare.is_ok_and(|o| !o.status.success()), "the kernel allows it, and yet: {why}");
                println!("skipped: this kernel forbids user namespaces to ordinary users: {why}");
                return;
            }
        };
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        assert_eq!(rustix::fs::fstatfs(&root).unwrap().f_type as u64, TMPFS_MAGIC);
        rustix::fs::mkdirat(&root, "00", Mode::from_raw_mode(0o755)).unwrap();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&root, "00/body", flags, Mode::from_raw_mode(0o444)).unwrap();
        assert_eq!(rustix::io::write(&file, b"body").unwrap(), 4);
    }
}
