//! Pipes through which pages of a file go to a socket.
//!
//! sendfile(2) has a pipe of its own with 16 pages, so that the socket is given 64 KiB at a time; one of [`CAPACITY`] gives
//! it 16 times as much. They are few, because the kernel allows a user without privileges 64 MiB of pipes
//! (`pipe-user-pages-soft` in pipe(7)), and shared: who finds none that is free uses sendfile.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::{Mutex, MutexGuard};

/// Bodies that are shorter than this are sent by sendfile(2).
pub(crate) const WORTHWHILE: usize = 512 << 10;

/// Bytes of pages that a pipe holds.
const CAPACITY: usize = 1 << 20;
/// Pipes that are smaller (the kernel did not allow more) are not worth it.
const LEAST: usize = 256 << 10;
/// Pipes in this process.
const PIPES: usize = 32;

/// A pipe.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    /// Bytes in it.
    filled: usize,
}

/// What a place for a pipe holds.
enum Slot {
    /// Nothing yet.
    New,
    /// A pipe that is empty.
    Made(Pipe),
    /// The kernel does not allow it.
    Refused,
}

static SLOTS: [Mutex<Slot>; PIPES] = [const { Mutex::new(Slot::New) }; PIPES];

thread_local! {
    /// Where this thread looks first.
    static FIRST: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed)
    };
}

/// A pipe that is this thread's alone while it has this.
pub(crate) struct Taken(MutexGuard<'static, Slot>);

/// A free pipe; does not wait for one.
pub(crate) fn take() -> Option<Taken> {
    let first = FIRST.try_with(|first| *first).unwrap_or(0);
    (0..PIPES).find_map(|n| {
        let mut slot = SLOTS[(first + n) % PIPES].try_lock()?;
        if matches!(*slot, Slot::New) {
            *slot = Pipe::new().map_or(Slot::Refused, Slot::Made);
        }
        matches!(*slot, Slot::Made(_)).then_some(Taken(slot))
    })
}

impl Drop for Taken {
    fn drop(&mut self) {
        // What was not sent must not be sent to somebody else.
        if matches!(&*self.0, Slot::Made(pipe) if pipe.filled > 0) {
            *self.0 = Slot::New;
        }
    }
}

impl Taken {
    /// Takes as many of the `left` bytes of `file` from `offset` on into the pipe as it holds, unless it has some that were not
    /// sent. `Err`: the file cannot be read; EIO if it ends there.
    pub(crate) fn fill(&mut self, file: c_int, offset: u64, left: usize) -> Result<(), c_int> {
        let Slot::Made(pipe) = &mut *self.0 else { return Err(libc::EINVAL) };
        if pipe.filled == 0 {
            pipe.filled = loop {
                match splice(file, Some(offset), pipe.write.as_raw_fd(), left.min(pipe.capacity), false) {
                    Ok(0) => return Err(libc::EIO),
                    Err(libc::EINTR) => {}
                    filled => break filled?,
                }
            };
        }
        Ok(())
    }

    /// Sends at most `want` of the bytes in the pipe, which are the first of `left`. Returns how many the socket took. `Err`: the
    /// socket's.
    pub(crate) fn send(&mut self, socket: c_int, want: usize, left: usize) -> Result<usize, c_int> {
        let Slot::Made(pipe) = &mut *self.0 else { return Err(libc::EINVAL) };
        let want = want.min(pipe.filled);
        let sent = splice(pipe.read.as_raw_fd(), None, socket, want, want < left)?;
        pipe.filled -= sent;
        Ok(sent)
    }

    /// Is nothing in it?
    pub(crate) fn is_empty(&self) -> bool {
        !matches!(&*self.0, Slot::Made(pipe) if pipe.filled > 0)
    }
}

impl Pipe {
    fn new() -> Option<Pipe> {
        let mut fds = [-1; 2];
        // SAFETY: pipe2(2) writes two descriptors, which are ours then.
        let (read, write) = unsafe {
            if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
                return None;
            }
            (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
        };
        // SAFETY: fcntl(2) of a number.
        let capacity = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, CAPACITY as c_int) };
        let capacity = usize::try_from(capacity).ok().filter(|capacity| *capacity >= LEAST)?;
        Some(Pipe { read, write, capacity, filled: 0 })
    }
}

/// What the last call of this thread failed with.
pub(crate) fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// splice(2), without an offset of the pipe's or socket's.
fn splice(from: c_int, offset: Option<u64>, to: c_int, len: usize, more: bool) -> Result<usize, c_int> {
    let mut offset = offset.map(|offset| offset as libc::off_t);
    let flags = libc::SPLICE_F_MOVE | if more { libc::SPLICE_F_MORE } else { 0 };
    let at = offset.as_mut().map_or(null_mut(), |offset| &raw mut *offset);
    // SAFETY: splice(2) reads no memory of ours but the offset.
    let moved = unsafe { libc::splice(from, at, to, null_mut(), len, flags) };
    usize::try_from(moved).map_err(|_| errno())
}
