//! The disk tier's directory: `DIR/objmapper-store` with the lock, the index and `objects`, the tier of bodies.
//!
//! Everything below `DIR` is opened relative to its parent's descriptor, without following symbolic links, must
//! belong to this process's user, and gets its mode explicitly: neither the umask nor what another user has prepared
//! there decides which file is opened or who can read it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, fchmod, flock, fstat, mkdirat, open, openat, readlinkat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::StoreError;
use super::error::is_no_space;
use super::object::ObjectId;
use super::tier::{body_files, make_file};

const STORE_DIR: &str = "objmapper-store";
const OBJECTS: &str = "objects";
const INDEX: &str = "index.sqlite3";
/// The index and the files that SQLite keeps beside it.
const INDEX_FILES: [&str; 3] = [INDEX, "index.sqlite3-wal", "index.sqlite3-shm"];
/// Damaged files that are kept for the operator.
const DAMAGED: &str = "damaged";
/// A file that keeps `objects` from being empty: a cleaner of empty directories would detach the tier from its readers.
const PLACEHOLDER: &str = ".keep";
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The open and locked directory.
#[derive(Debug)]
pub(super) struct DiskDir {
    private: OwnedFd,
    objects: OwnedFd,
    lock: OwnedFd,
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
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(top, flags, Mode::empty()).map_err(|e| setup("opening", top, e.into()))?;
        let owner = fstat(&dir).map_err(|e| setup("looking at", top, e.into()))?.st_uid;
        if owner != 0 && owner != geteuid().as_raw() {
            return Err(setup("using", top, foreign(owner)));
        }
        let path = top.join(STORE_DIR);
        let private = directory(dir.as_fd(), STORE_DIR, 0o700).map_err(|e| setup("making", &path, e))?;
        let lock = lock(&private, &path, top)?;
        let objects_path = path.join(OBJECTS);
        let objects = directory(private.as_fd(), OBJECTS, 0o755).map_err(|e| setup("making", &objects_path, e))?;
        let dir = DiskDir { private, objects, lock, path };
        dir.keep_objects();
        Ok(dir)
    }

    fn keep_objects(&self) {
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Err(e) = openat(&self.objects, PLACEHOLDER, flags, Mode::from_raw_mode(0o444)) {
            log::debug!("the disk tier's placeholder: {e}");
        }
    }

    /// Returns a descriptor of the tier's directory.
    pub(super) fn objects(&self) -> io::Result<OwnedFd> {
        self.objects.try_clone()
    }

    /// Returns the lock, which holds for as long as its descriptor is open.
    pub(super) fn into_lock(self) -> OwnedFd {
        self.lock
    }

    /// Makes the index's file with its mode if it is missing. Returns its path, because SQLite opens by path only, and a
    /// descriptor of its directory; `None` if the path is not a regular file, or one that cannot be read.
    pub(super) fn index_file(&self) -> Result<Option<(PathBuf, OwnedFd)>, StoreError> {
        let path = self.path.join(INDEX);
        for name in INDEX_FILES {
            let found = rustix::fs::statat(&self.private, name, AtFlags::SYMLINK_NOFOLLOW);
            if found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile) {
                return Ok(None);
            }
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&self.private, INDEX, flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => file,
            Err(Errno::ISDIR | Errno::LOOP | Errno::NXIO | Errno::IO) => return Ok(None),
            Err(e) => return Err(setup("opening", &path, e.into())),
        };
        let stat = fstat(&file).map_err(|e| setup("looking at", &path, e.into()))?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(setup("opening", &path, foreign(stat.st_uid)));
        }
        // SQLite gives its other files the same mode.
        fchmod(&file, Mode::from_raw_mode(0o600)).map_err(|e| setup("setting the mode of", &path, e.into()))?;
        let directory = self.private.try_clone().map_err(|e| setup("opening", &path, e))?;
        Ok(Some((self.real_path().unwrap_or_else(|| self.path.clone()).join(INDEX), directory)))
    }

    /// Returns the path without symbolic links: SQLite opens with an option that refuses them.
    fn real_path(&self) -> Option<PathBuf> {
        let link = format!("/proc/self/fd/{}", self.private.as_raw_fd());
        let path = readlinkat(rustix::fs::CWD, link, Vec::new()).ok()?;
        Some(OsString::from_vec(path.into_bytes()).into())
    }

    /// Removes the index. The sweep for orphans then removes the bodies, which have no rows.
    pub(super) fn discard_index(&self) -> io::Result<()> {
        for name in INDEX_FILES {
            match unlinkat(&self.private, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    let away = format!("{name}.{}", std::process::id());
                    renameat(&self.private, name, &self.private, away.as_str())?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Moves index and bodies to a directory beside them and returns its path. Returns `None`, and moves nothing, if that
    /// directory exists.
    pub(super) fn set_aside(&mut self) -> io::Result<Option<PathBuf>> {
        match mkdirat(&self.private, DAMAGED, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let aside = openat(&self.private, DAMAGED, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        for name in INDEX_FILES.into_iter().chain([OBJECTS]) {
            match renameat(&self.private, name, &aside, name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.objects = directory(self.private.as_fd(), OBJECTS, 0o755)?;
        self.keep_objects();
        Ok(Some(self.path.join(DAMAGED)))
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
            let stat = rustix::fs::statat(&self.objects, path.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            let (Ok(stat), Ok(())) = (stat, unlinkat(&self.objects, path.as_str(), AtFlags::empty())) else { continue };
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
            highest = highest.max(id);
            Ok(())
        })?;
        Ok(highest)
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
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

/// Makes or opens a directory of this user with exactly this mode.
pub(super) fn directory(parent: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let dir = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| match e {
        Errno::LOOP | Errno::NOTDIR => io::Error::other("it is a symbolic link, or no directory"),
        e => e.into(),
    })?;
    let stat = fstat(&dir)?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(foreign(stat.st_uid));
    }
    if stat.st_mode & 0o7777 != mode {
        fchmod(&dir, Mode::from_raw_mode(mode))?;
    }
    Ok(dir)
}

fn foreign(owner: u32) -> io::Error {
    io::Error::other(format!("it belongs to user {owner}, this process is user {}", geteuid().as_raw()))
}

fn lock(private: &OwnedFd, path: &Path, top: &Path) -> Result<OwnedFd, StoreError> {
    let path = path.join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock =
        openat(private, "lock", flags, Mode::from_raw_mode(0o600)).map_err(|e| setup("opening", &path, e.into()))?;
    let owner = fstat(&lock).map_err(|e| setup("looking at", &path, e.into()))?.st_uid;
    if owner != geteuid().as_raw() {
        return Err(setup("opening", &path, foreign(owner)));
    }
    fchmod(&lock, Mode::from_raw_mode(0o600)).map_err(|e| setup("setting the mode of", &path, e.into()))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
        StoreError::Setup(format!(
            "the disk tier's directory {} is in use by another store ({e}); remedy: stop it, or give \
             each a directory of its own",
            top.display()
        ))
    })?;
    Ok(lock)
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
