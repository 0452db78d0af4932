//! The disk tier's directory: `DIR/objmapper-store` with the lock, the index and `objects`, the tier of bodies.
//!
//! Of the names in `objmapper-store`, `lock`, `index.sqlite3` (with SQLite's two beside it) and `objects` are here, `loading` and
//! `set-aside-N` in `damage`.
//!
//! Everything below `DIR` is opened relative to its parent's descriptor, without following symbolic links, must
//! belong to this process's user, and gets its mode explicitly: neither the umask nor what another user has prepared
//! there decides which file is opened or who can read it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::files::{body_files, make_file};
use super::journal::MAX_ID;
use crate::store::StoreError;
use crate::store::error::is_no_space;
use crate::store::object::ObjectId;

const STORE_DIR: &str = "objmapper-store";
const OBJECTS: &str = "objects";
const INDEX: &str = "index.sqlite3";
/// The index and the files that SQLite keeps beside it.
pub(super) const INDEX_FILES: [&str; 3] = [INDEX, "index.sqlite3-wal", "index.sqlite3-shm"];
/// A file that keeps `objects` from being empty: a cleaner of empty directories would detach the tier from its readers.
const PLACEHOLDER: &str = ".keep";
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// The open and locked directory.
#[derive(Debug)]
pub(super) struct DiskDir {
    pub(super) private: OwnedFd,
    objects: OwnedFd,
    lock: Flock<OwnedFd>,
    path: PathBuf,
}

/// The files that [`DiskDir::free_oldest`] removed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Freed {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl DiskDir {
    /// Makes the missing parts of the directory, and takes its lock.
    pub(super) fn open(top: &Path) -> Result<Self, StoreError> {
        if !top.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(top).map_err(|e| setup("making", top, e))?;
        }
        // `top` may be a symbolic link, which is the operator's choice. O_PATH needs no permission to read it.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(top, flags, Mode::empty()).map_err(|e| setup("opening", top, e.into()))?;
        let owner = fstat(&dir).map_err(|e| setup("looking at", top, e.into()))?.st_uid;
        if owner != 0 && owner != geteuid().as_raw() {
            return Err(setup("using", top, foreign(owner)));
        }
        let path = top.join(STORE_DIR);
        let private = directory(dir.as_fd(), STORE_DIR, 0o700).map_err(|e| setup("making", &path, e))?;
        let lock = lock(&private, &path, top)?;
        let objects_path = path.join(OBJECTS);
        let objects =
            bodies_directory(private.as_fd(), OBJECTS, 0o755).map_err(|e| setup("making", &objects_path, e))?;
        let dir = DiskDir { private, objects, lock, path };
        dir.keep_objects();
        Ok(dir)
    }

    fn keep_objects(&self) {
        let flags = OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if let Err(e) = openat(&self.objects, PLACEHOLDER, flags, Mode::from_bits_truncate(0o444)) {
            log::debug!("the disk tier's placeholder: {e}");
        }
    }

    /// Returns a descriptor of the tier's directory.
    pub(super) fn objects(&self) -> io::Result<OwnedFd> {
        self.objects.try_clone()
    }

    /// Returns the lock, which holds for as long as its descriptor is open.
    pub(super) fn into_lock(self) -> Flock<OwnedFd> {
        self.lock
    }

    /// Makes the index's file with its mode if it is missing. Returns its path, because SQLite opens by path only, and a
    /// descriptor of its directory; or why what has one of the index's names cannot be the index.
    pub(super) fn index_file(&self) -> Result<Result<(PathBuf, OwnedFd), String>, StoreError> {
        let path = self.path.join(INDEX);
        for name in INDEX_FILES {
            let Ok(found) = fstatat(&self.private, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            if found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
                return Ok(Err(format!("{name} is not a regular file")));
            }
            // As a tool that another user has run in the directory leaves it.
            if found.st_uid != geteuid().as_raw() {
                return Ok(Err(format!("{name}: {}", foreign(found.st_uid))));
            }
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(&self.private, INDEX, flags, Mode::from_bits_truncate(0o600)) {
            Ok(file) => file,
            Err(e @ (Errno::EISDIR | Errno::ELOOP | Errno::ENXIO | Errno::EIO | Errno::EACCES)) => {
                return Ok(Err(format!("{INDEX}: {e}")));
            }
            Err(e) => return Err(setup("opening", &path, e.into())),
        };
        let stat = fstat(&file).map_err(|e| setup("looking at", &path, e.into()))?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(setup("opening", &path, foreign(stat.st_uid)));
        }
        // SQLite gives its other files the same mode.
        fchmod(&file, Mode::from_bits_truncate(0o600)).map_err(|e| setup("setting the mode of", &path, e.into()))?;
        let directory = self.private.try_clone().map_err(|e| setup("opening", &path, e))?;
        Ok(Ok((self.real_path().unwrap_or_else(|| self.path.clone()).join(INDEX), directory)))
    }

    /// Returns the path without symbolic links: SQLite opens with an option that refuses them.
    fn real_path(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", self.private.as_raw_fd())).ok()
    }

    /// Removes bodies, the oldest first, until `goal` bytes are free or none is left.
    pub(super) fn free_oldest(&self, goal: u64) -> io::Result<Freed> {
        /// The minimum number of files, for a file system that is out of inodes.
        const MIN_FILES: u64 = 64;
        let mut ids = Vec::new();
        body_files(self.objects.as_fd(), |_, _, id| {
            ids.push(id);
            Ok(())
        })?;
        ids.sort_unstable();
        let mut freed = Freed::default();
        for id in ids {
            if freed.bytes >= goal && freed.files >= MIN_FILES {
                break;
            }
            let path = super::body_path(id);
            // A body that cannot be removed does not keep the rest from being removed.
            let stat = fstatat(&self.objects, path.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            let (Ok(stat), Ok(())) = (stat, unlinkat(&self.objects, path.as_str(), UnlinkatFlags::NoRemoveDir)) else {
                continue;
            };
            freed.files += 1;
            freed.bytes += u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        }
        Ok(freed)
    }

    /// Returns true if the file system has no room for `MIN_FREE` bytes.
    pub(super) fn is_full(&self) -> bool {
        const MIN_FREE: u64 = 256 << 10;
        make_file(self.objects.as_fd(), MIN_FREE).is_err_and(|e| is_no_space(&e))
    }

    /// Returns the highest id that a body's file has; 0 if there is none.
    pub(super) fn highest(&self) -> io::Result<ObjectId> {
        let mut highest = 0;
        body_files(self.objects.as_fd(), |_, _, id| {
            if id <= MAX_ID {
                highest = highest.max(id);
            }
            Ok(())
        })?;
        Ok(highest)
    }

    /// Removes the file of this name from the directory itself, if it is there.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.private, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the path of the directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the bytes of the index's files in `directory`.
pub(super) fn index_bytes(directory: BorrowedFd<'_>) -> u64 {
    INDEX_FILES.iter().map(|name| size(directory, name)).sum()
}

/// Returns the bytes of the index's write-ahead log in `directory`.
pub(super) fn wal_bytes(directory: BorrowedFd<'_>) -> u64 {
    size(directory, INDEX_FILES[1])
}

fn size(directory: BorrowedFd<'_>, name: &str) -> u64 {
    // By name: closing a descriptor of these files would drop SQLite's locks on them.
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

/// Makes or opens a directory of this user with exactly this mode.
pub(super) fn directory(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let dir = openat(parent, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()).map_err(|e| match e {
        Errno::ELOOP | Errno::ENOTDIR => io::Error::other("it is a symbolic link, or no directory"),
        e => e.into(),
    })?;
    let stat = fstat(&dir)?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(foreign(stat.st_uid));
    }
    if stat.st_mode & 0o7777 != mode {
        fchmod(&dir, Mode::from_bits_truncate(mode))?;
    }
    Ok(dir)
}

/// Makes or opens a directory of bodies as [`directory`] does. A file of this user in its place is damage, and is removed.
pub(super) fn bodies_directory(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    directory(parent, name, mode).or_else(|error| {
        match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found)
                if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
                    && found.st_uid == geteuid().as_raw() => {}
            _ => return Err(error),
        }
        log::warn!("disk tier: a file that has the name of the directory {name} is removed");
        unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
        directory(parent, name, mode)
    })
}

fn foreign(owner: u32) -> io::Error {
    io::Error::other(format!("it belongs to user {owner}, this process is user {}", geteuid().as_raw()))
}

fn lock(private: &OwnedFd, path: &Path, top: &Path) -> Result<Flock<OwnedFd>, StoreError> {
    let path = path.join("lock");
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let lock = openat(private, "lock", flags, Mode::from_bits_truncate(0o600))
        .map_err(|e| setup("opening", &path, e.into()))?;
    let owner = fstat(&lock).map_err(|e| setup("looking at", &path, e.into()))?.st_uid;
    if owner != geteuid().as_raw() {
        return Err(setup("opening", &path, foreign(owner)));
    }
    fchmod(&lock, Mode::from_bits_truncate(0o600)).map_err(|e| setup("setting the mode of", &path, e.into()))?;
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
        StoreError::Setup(format!(
            "the disk tier's directory {} is in use by another store ({e}); remedy: stop it, or give \
             each a directory of its own",
            top.display()
        ))
    })
}

fn setup(what: &str, path: &Path, error: io::Error) -> StoreError {
    if is_no_space(&error) {
        return StoreError::NoSpace { what: "making the disk tier's directory", source: error };
    }
    StoreError::Setup(format!(
        "the disk tier's directory: {what} {}: {error}; remedy: give a directory that belongs to this user, or to root, \
         and that this user may write",
        path.display()
    ))
}
