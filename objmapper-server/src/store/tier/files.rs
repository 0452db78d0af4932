//! The files of a tier's bodies.
//!
//! A body's file is `xx/xxxxxxxxxxxxxxxx` below the tier's directory: two hex digits of
//! `object & 0xff`, then `object` as 16 hex digits. It is written as an unnamed temporary file and
//! gets its name by `linkat`, so that nothing half-written ever has a name.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::statvfs::{Statvfs, fstatvfs};
use nix::unistd::{UnlinkatFlags, Whence, ftruncate, linkat, lseek, syncfs, unlinkat, write};

use super::account::page_round;
use super::directory::bodies_directory;
use crate::store::error::is_no_space;
use crate::store::object::ObjectId;
use crate::store::{StoreError, TierKind};
use crate::sys;

/// Mode of bodies: read-only for all users, their owner included.
const BODY_MODE: u32 = 0o444;
/// Mode of the directories: readers of other users search them.
const DIR_MODE: u32 = 0o755;
const FAN_OUT: u32 = 256;

/// Returns the path of the body's file below the tier's directory.
pub fn body_path(object: ObjectId) -> String {
    format!("{}/{object:016x}", fan_out(object))
}

/// The kind of file system that a tier's files are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A tmpfs of the store's own. It allocates a hole when it is read through a mapping: where it has no room, the reader gets
    /// SIGBUS. So bodies have no holes here.
    Tmpfs,
    /// A file system of the operator's, which other programs use, too.
    Shared,
}

/// The files of a tier's bodies.
#[derive(Debug)]
pub(crate) struct BodyFiles {
    pub(crate) dir: OwnedFd,
    pub(crate) medium: Medium,
}

/// The size and the charge of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measure {
    pub(crate) length: u64,
    /// Bytes that the account is charged: whole pages of the length, or of the allocated bytes if
    /// these are more.
    pub(crate) charge: u64,
    /// Bytes that are allocated now, without holes.
    pub(crate) allocated: u64,
}

impl BodyFiles {
    /// Makes the fan-out directories and tries every operation that the store needs, so that an unsuitable
    /// file system is refused here. After [`StoreError::NoSpace`] the tier is usable: missing directories are made
    /// when they are needed. `kind` is for the text of an error.
    pub(crate) fn prepare(&self, kind: TierKind) -> Result<(), StoreError> {
        for i in 0..FAN_OUT {
            let name = fan_out(i.into());
            bodies_directory(self.dir.as_fd(), &name, DIR_MODE).map_err(|source| {
                match StoreError::io("making a tier's directory")(source) {
                    StoreError::Io { source, .. } => StoreError::Setup(format!(
                        "the {kind} tier's directory {name}: {source}; remedy: remove it, or give another directory"
                    )),
                    full => full,
                }
            })?;
        }
        self.probe().map_err(|e| {
            if is_no_space(&e) {
                return StoreError::io("trying the tier's file system")(e);
            }
            StoreError::Setup(format!(
                "the {kind} tier's file system cannot do what the store needs (O_TMPFILE, linkat, \
                 file leases): {e}; remedy: use a local ext4, xfs, btrfs or tmpfs"
            ))
        })
    }

    fn probe(&self) -> io::Result<()> {
        const PROBE: ObjectId = 0; // never the id of an object
        match self.unlink(PROBE) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let (writer, reader) = self.create()?;
        write(&writer, b"x")?;
        if sys::has_no_writers(reader.as_fd())? {
            return Err(io::Error::other("a lease was granted although the file is open for writing"));
        }
        drop(writer);
        if !sys::has_no_writers(reader.as_fd())? {
            return Err(io::Error::other("no lease although the file is not open for writing"));
        }
        self.publish(reader.as_fd(), PROBE)?;
        self.open_body(PROBE)?;
        self.unlink(PROBE)
    }

    /// Makes an unnamed file. Returns its writable descriptor, and a read-only one by which the store
    /// links it later (it does not count as a writer).
    pub(crate) fn create(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let writer = openat(&self.dir, ".", flags, Mode::from_bits_truncate(BODY_MODE))?;
        // Independent of the umask: readers of another user need the mode.
        fchmod(&writer, Mode::from_bits_truncate(BODY_MODE))?;
        let reader = openat(AT_FDCWD, &*proc_path(writer.as_fd()), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok((writer, reader))
    }

    /// Gives the file its name. Fails if the name exists. A fan-out directory that another process has removed
    /// is made again.
    pub(crate) fn publish(&self, file: BorrowedFd<'_>, object: ObjectId) -> io::Result<()> {
        match self.link(file, object) {
            Err(Errno::ENOENT) => {
                bodies_directory(self.dir.as_fd(), &fan_out(object), DIR_MODE)?;
                Ok(self.link(file, object)?)
            }
            other => Ok(other?),
        }
    }

    fn link(&self, file: BorrowedFd<'_>, object: ObjectId) -> Result<(), Errno> {
        let to = body_path(object);
        match linkat(AT_FDCWD, &*proc_path(file), &self.dir, to.as_str(), AtFlags::AT_SYMLINK_FOLLOW) {
            // Without /proc: kernels from 6.10 allow it to the process that opened the file.
            Err(Errno::ENOENT | Errno::EACCES) => linkat(file, "", &self.dir, to.as_str(), AtFlags::AT_EMPTY_PATH),
            other => other,
        }
    }

    /// Opens the body read-only.
    pub(crate) fn open_body(&self, object: ObjectId) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(openat(&self.dir, &*body_path(object), flags, Mode::empty())?)
    }

    /// Opens the body read-write, for v0.1 clients that overwrite.
    pub(crate) fn open_writable(&self, object: ObjectId) -> io::Result<OwnedFd> {
        Self::reopen_writable(self.open_body(object)?.as_fd())
    }

    fn reopen_writable(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let open = || openat(AT_FDCWD, &*proc_path(file), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
        match open() {
            // Mode 0444 applies to the owner too, unless it is root: it is changed for the time of the call.
            Err(Errno::EACCES) => {
                fchmod(file, Mode::from_bits_truncate(0o644))?;
                let writer = open();
                fchmod(file, Mode::from_bits_truncate(BODY_MODE))?;
                Ok(writer?)
            }
            other => Ok(other?),
        }
    }

    /// Truncates a file that takes more than `bytes`, and returns the bytes that it took. Returns `None` if the surplus was only
    /// allocated beyond the end, which is freed: some file systems allocate ahead of a writer.
    pub(crate) fn cut(&self, file: BorrowedFd<'_>, bytes: u64) -> io::Result<Option<u64>> {
        let writer = Self::reopen_writable(file)?;
        let before = self.measure(file)?;
        Self::trim(writer.as_fd(), before.length)?;
        let takes = self.measure(file)?.allocated;
        if takes <= bytes {
            return Ok(None);
        }
        ftruncate(&writer, offset(before.length.min(bytes)))?;
        Self::trim(writer.as_fd(), bytes)?;
        Ok(Some(takes))
    }

    /// Returns the offset of the first byte of a file of `length` bytes that was never written, if there is one.
    pub(crate) fn hole(file: BorrowedFd<'_>, length: u64) -> io::Result<Option<u64>> {
        if length == 0 {
            return Ok(None);
        }
        let hole = lseek(file, 0, Whence::SeekHole)?;
        // A client's duplicate shares the offset, and the client reads from it.
        lseek(file, 0, Whence::SeekSet)?;
        let hole = u64::try_from(hole).unwrap_or(0);
        Ok((hole < length).then_some(hole))
    }

    pub(crate) fn unlink(&self, object: ObjectId) -> io::Result<()> {
        Ok(unlinkat(&self.dir, &*body_path(object), UnlinkatFlags::NoRemoveDir)?)
    }

    /// Returns the figures of the file system.
    pub(crate) fn statvfs(&self) -> io::Result<Statvfs> {
        Ok(fstatvfs(&self.dir)?)
    }

    /// Brings all files to stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(syncfs(&self.dir)?)
    }

    /// Removes every file: a memory tier starts empty, even in a mount that a former process used.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.sweep(|_| true).map(drop)
    }

    /// Removes every file of whose id `is_unwanted` returns true, and returns their number.
    pub(crate) fn sweep(&self, mut is_unwanted: impl FnMut(ObjectId) -> bool) -> io::Result<u64> {
        let mut removed = 0;
        body_files(self.dir.as_fd(), |dir, name, id| {
            if is_unwanted(id) {
                match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
                    Ok(()) => removed += 1,
                    Err(Errno::ENOENT) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(())
        })?;
        Ok(removed)
    }

    /// Returns true if this user can make one more file now and write `bytes` to it.
    pub(crate) fn has_space(&self, bytes: u64) -> bool {
        !make_file(self.dir.as_fd(), bytes).is_err_and(|e| is_no_space(&e))
    }

    /// Measures the length and the charge of a file.
    pub(crate) fn measure(&self, file: BorrowedFd<'_>) -> io::Result<Measure> {
        let stat = fstat(file)?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        // An empty file is charged a page: its inode and its index entry take memory, and a limit
        // in bytes must bound their number.
        let pages = page_round(length.max(1));
        let blocks = page_round(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        // A disk file system counts its own metadata among the blocks, which is not charged. Space
        // that a client allocates beyond the end is more than this tolerance.
        let tolerance = match self.medium {
            Medium::Tmpfs => 0,
            Medium::Shared => 64 * 1024 + pages / 64,
        };
        let (charge, allocated) =
            if blocks > pages.saturating_add(tolerance) { (blocks, blocks) } else { (pages, blocks.min(pages)) };
        Ok(Measure { length, charge, allocated })
    }

    /// Frees the space that is allocated beyond the file's end.
    pub(crate) fn trim(file: BorrowedFd<'_>, length: u64) -> io::Result<()> {
        const REST: i64 = 1 << 40;
        let from = page_round(length);
        fallocate(
            file,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            offset(from),
            REST,
        )?;
        Ok(())
    }
}

/// Calls `f` with directory, name and object id of every file below the tier's directory `tier` whose name is a body's.
pub(super) fn body_files(
    tier: BorrowedFd<'_>,
    mut f: impl FnMut(BorrowedFd<'_>, &std::ffi::CStr, ObjectId) -> io::Result<()>,
) -> io::Result<()> {
    for i in 0..FAN_OUT {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut dir = match Dir::openat(tier, &*fan_out(i.into()), flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        // Read first: a file that is removed meanwhile does not change the walk.
        let names = dir.iter().map(|entry| Ok(entry?.file_name().to_owned())).collect::<nix::Result<Vec<_>>>()?;
        for name in names {
            let id = name.to_str().ok().filter(|n| n.len() == 16);
            if let Some(id) = id.and_then(|n| ObjectId::from_str_radix(n, 16).ok()) {
                f(dir.as_fd(), &name, id)?;
            }
        }
    }
    Ok(())
}

/// Makes an unnamed file of `bytes` bytes and drops it. An error means that there is no room for it. On a file system
/// without fallocate only the inode is tested.
pub(super) fn make_file(dir: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = openat(dir, ".", flags, Mode::from_bits_truncate(0o600))?;
    match fallocate(&file, FallocateFlags::empty(), 0, offset(bytes)) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Converts a number of bytes for a system call. A file system takes no offset above the maximum, and says so.
fn offset(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn fan_out(object: ObjectId) -> String {
    format!("{:02x}", object & 0xff)
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryMount, MountAccess};

    fn memory(limit: u64) -> BodyFiles {
        let mount = MemoryMount::new(limit, MountAccess::Owner).unwrap();
        let dir = mount.root().try_clone_to_owned().unwrap();
        let files = BodyFiles { dir, medium: Medium::Tmpfs };
        files.prepare(TierKind::Memory).unwrap();
        files
    }

    #[test]
    fn body_paths() {
        assert_eq!(body_path(0x1234), "34/0000000000001234");
    }

    #[test]
    fn a_body_cannot_be_opened_twice_under_one_name_and_is_read_only() {
        let tier = memory(1 << 20);
        let (writer, reader) = tier.create().unwrap();
        assert_eq!(write(&writer, b"hello").unwrap(), 5);
        drop(writer);
        tier.publish(reader.as_fd(), 7).unwrap();
        assert!(tier.publish(reader.as_fd(), 7).is_err());
        let body = tier.open_body(7).unwrap();
        assert_eq!(write(&body, b"x").unwrap_err(), Errno::EBADF);
        assert_eq!(tier.measure(body.as_fd()).unwrap().charge, 4096);
        tier.clear().unwrap();
        assert!(tier.open_body(7).is_err());
    }

    #[test]
    fn a_surplus_allocation_weighs_until_it_is_trimmed() {
        let tier = memory(1 << 20);
        let (writer, reader) = tier.create().unwrap();
        fallocate(&writer, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 64 << 10).unwrap();
        write(&writer, b"hello").unwrap();
        assert_eq!(tier.measure(reader.as_fd()).unwrap().charge, 64 << 10);
        BodyFiles::trim(writer.as_fd(), 5).unwrap();
        assert_eq!(tier.measure(reader.as_fd()).unwrap().charge, 4096);
    }
}
