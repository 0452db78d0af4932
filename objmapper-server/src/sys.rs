//! System calls that no safe wrapper offers. The crate's other `unsafe` code is the user-namespace helper
//! (`store/tier/memory/userns.rs`) and the board's atomics (`store/board.rs`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `F_SETSIG` of `asm-generic/fcntl.h`, which the `libc` crate leaves out.
const F_SETSIG: libc::c_int = 10;

/// Returns true if no process holds the file of `fd` open for writing, by a descriptor or by a writable
/// shared mapping. `fd` must be read-only.
///
/// The kernel grants a read lease only while the inode's count of writers is zero, so asking for
/// one (and giving it back) is an exact test. A lease that is broken in that instant sends a
/// signal; its default, SIGIO, would end a process that does not handle it, so SIGURG (ignored by
/// default) is chosen first.
pub(crate) fn has_no_writers(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let raw = fd.as_raw_fd();
    // SAFETY: `fd` is borrowed, hence open for the whole call; F_SETSIG takes an int by value.
    if unsafe { libc::fcntl(raw, F_SETSIG, libc::SIGURG) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; F_SETLEASE takes an int by value and touches no memory of ours.
    if unsafe { libc::fcntl(raw, libc::F_SETLEASE, libc::F_RDLCK) } == -1 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EAGAIN) { Ok(false) } else { Err(error) };
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(raw, libc::F_SETLEASE, libc::F_UNLCK) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}
