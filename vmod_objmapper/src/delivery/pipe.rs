//! Pipes through which pages of a file go to a socket.
//!
//! sendfile(2) has a pipe of its own with 16 pages, so that the socket is given 64 KiB at a time; one of [`CAPACITY`] gives
//! it 16 times as much. They are few, because the kernel allows a user without privileges 64 MiB of pipes
//! (`pipe-user-pages-soft` in pipe(7)), and shared by all threads: a delivery that finds none free uses sendfile.
//!
//! A slot is locked for as long as a delivery has its pipe; it is never waited for. A pipe goes back empty, or is closed: what one
//! client was not sent must not reach another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::libc::off_t;
use nix::unistd::pipe2;
use parking_lot::{Mutex, MutexGuard};

/// Bodies that are shorter than this are sent by sendfile(2).
pub(super) const WORTHWHILE: usize = 512 << 10;

/// Bytes of pages that a pipe holds.
const CAPACITY: usize = 1 << 20;
/// Pipes that are smaller (the kernel did not allow more) are not worth it.
const MIN_CAPACITY: usize = 256 << 10;
/// Pipes in this process.
const PIPES: usize = 32;

/// A pipe.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    /// Bytes in it.
    filled: usize,
}

/// A place for a pipe.
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
    /// The slot at which this thread looks first.
    static FIRST: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed)
    };
}

/// A pipe that is this thread's alone while it has this.
pub(super) struct Taken(MutexGuard<'static, Slot>);

/// Returns a free pipe; does not wait for one.
pub(super) fn take() -> Option<Taken> {
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
        if matches!(&*self.0, Slot::Made(pipe) if pipe.filled > 0) {
            *self.0 = Slot::New;
        }
    }
}

impl Taken {
    /// Takes as many of the `left` bytes of `file` from `offset` on into the pipe as it holds, unless it has some that were not
    /// sent.
    ///
    /// # Errors
    /// The file cannot be read; EIO if it ends there.
    pub(super) fn fill(&mut self, file: BorrowedFd<'_>, offset: u64, left: usize) -> Result<(), Errno> {
        let Slot::Made(pipe) = &mut *self.0 else { return Err(Errno::EINVAL) };
        if pipe.filled == 0 {
            pipe.filled = loop {
                let mut offset = offset as off_t;
                let len = left.min(pipe.capacity);
                match splice(file, Some(&mut offset), &pipe.write, None, len, SpliceFFlags::SPLICE_F_MOVE) {
                    Ok(0) => return Err(Errno::EIO),
                    Err(Errno::EINTR) => {}
                    filled => break filled?,
                }
            };
        }
        Ok(())
    }

    /// Sends at most `want` of the bytes in the pipe, which are the first of `left`. Returns how many the socket took.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, want: usize, left: usize) -> Result<usize, Errno> {
        let Slot::Made(pipe) = &mut *self.0 else { return Err(Errno::EINVAL) };
        let want = want.min(pipe.filled);
        let mut flags = SpliceFFlags::SPLICE_F_MOVE;
        flags.set(SpliceFFlags::SPLICE_F_MORE, want < left);
        let sent = splice(&pipe.read, None, socket, None, want, flags)?;
        pipe.filled -= sent;
        Ok(sent)
    }

    /// Returns true if the pipe is empty.
    pub(super) fn is_empty(&self) -> bool {
        !matches!(&*self.0, Slot::Made(pipe) if pipe.filled > 0)
    }
}

impl Pipe {
    fn new() -> Option<Pipe> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).ok()?;
        let capacity = fcntl(write.as_fd(), FcntlArg::F_SETPIPE_SZ(CAPACITY as i32)).ok()?;
        let capacity = usize::try_from(capacity).ok().filter(|capacity| *capacity >= MIN_CAPACITY)?;
        Some(Pipe { read, write, capacity, filled: 0 })
    }
}
