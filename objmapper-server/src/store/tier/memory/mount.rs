//! The memory tier's file system, and the ways to get it, in this order: a detached tmpfs mounted by this process, one mounted
//! by a helper in a user namespace, a directory on `/dev/shm`. Each failure is logged and kept for the operator.
//!
//! The lock on that directory goes with its last descriptor, also of a forked child (rustix); nix's `Flock` would end it for both
//! when one of them drops it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::tmpfs::{MountAccess, Options, detached_tmpfs};
use super::userns;
use crate::store::StoreError;

const SHM: &str = "/dev/shm";
const SHM_PREFIX: &str = "objmapper-";

/// The way in which the memory tier's file system was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// A detached tmpfs, mounted by this process.
    Direct,
    /// A detached tmpfs, mounted by a helper child in a user namespace of its own.
    UserNamespace,
    /// A private directory on `/dev/shm`, whose size limits the tier as well.
    SharedMemoryDirectory,
}

/// A file system for one memory tier. A process that drops privileges makes it before (as root) and
/// passes it to [`Store::open`](crate::store::Store::open); otherwise the store makes it.
#[derive(Debug)]
pub struct MemoryMount {
    root: OwnedFd,
    kind: MountKind,
    failures: Vec<String>,
    shm: Option<ShmDirectory>,
}

impl MemoryMount {
    /// Makes a file system that takes at least `limit` bytes of bodies. Tries a mount by this process,
    /// then one by a helper in a user namespace, then a directory on `/dev/shm`. Each failure
    /// is logged and kept in [`MemoryMount::failures`].
    pub fn new(limit: u64, access: MountAccess) -> Result<Self, StoreError> {
        Self::detached(limit, access).or_else(|failures| Self::directory(limit, access, failures))
    }

    /// Tries the first two ways of [`MemoryMount::new`], which may need privileges that the process is about to drop. The error
    /// lists the failures.
    pub fn detached(limit: u64, access: MountAccess) -> Result<Self, Vec<String>> {
        let options = Options::new(limit, access);
        let mut failures = Vec::new();
        match detached_tmpfs(&options) {
            Ok(root) => return Ok(Self { root, kind: MountKind::Direct, failures, shm: None }),
            Err(error) => failures.push(format!("mounting a tmpfs: {error}")),
        }
        match userns::tmpfs_from_helper(&options) {
            Ok(root) => {
                return Ok(Self { root, kind: MountKind::UserNamespace, failures, shm: None });
            }
            Err(error) => failures.push(format!("mounting a tmpfs in a user namespace: {error}")),
        }
        Err(failures)
    }

    /// Tries the last way of [`MemoryMount::new`], after the `failures` of [`MemoryMount::detached`]. Only the user that makes
    /// the directory, or root, can remove it.
    pub fn directory(limit: u64, access: MountAccess, mut failures: Vec<String>) -> Result<Self, StoreError> {
        match ShmDirectory::new(access) {
            Ok((shm, root)) => {
                for failure in &failures {
                    log::warn!("memory tier: {failure}");
                }
                log::warn!(
                    "memory tier: using the directory {} on {SHM}; the size of that mount limits it too",
                    shm.path.display()
                );
                let kind = MountKind::SharedMemoryDirectory;
                Ok(Self { root, kind, failures, shm: Some(shm) })
            }
            Err(error) => {
                failures.push(format!("a directory on {SHM}: {error}"));
                Err(StoreError::Setup(format!(
                    "no place for a memory tier of {limit} bytes: {}; remedy: run as root, allow \
                     unprivileged user namespaces, or make {SHM} writable",
                    failures.join("; ")
                )))
            }
        }
    }

    /// Returns the way in which the file system was obtained.
    pub fn kind(&self) -> MountKind {
        self.kind
    }

    /// Returns the failures of the ways that were tried before, in their order; empty for [`MountKind::Direct`].
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Takes the directory on `/dev/shm`, if it is one, for a process that ends without dropping its store.
    pub fn take_directory(&mut self) -> Option<ShmDirectory> {
        self.shm.take()
    }

    /// Returns the root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// `/dev/shm/objmapper-XXXXXXXX` (mode 0700, locked while this value lives) and `objects` in it. Dropping it removes both;
/// open files stay readable.
#[derive(Debug)]
pub struct ShmDirectory {
    path: PathBuf,
    _lock: OwnedFd,
}

impl ShmDirectory {
    fn new(access: MountAccess) -> io::Result<(Self, OwnedFd)> {
        remove_abandoned();
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|e| io::Error::other(e.to_string()))?;
        let path = Path::new(SHM).join(format!("{SHM_PREFIX}{:016x}", u64::from_ne_bytes(random)));
        // The parent is searchable only for its owner, unless another user needs it later. A
        // descriptor of `objects` works for every process that receives it.
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let lock = open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let objects = path.join("objects");
        fs::DirBuilder::new().mode(0o755).create(&objects)?;
        let root = open(&objects, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mode = match access {
            MountAccess::Owner => 0o755,
            MountAccess::AnyUser => 0o777,
        };
        rustix::fs::fchmod(&root, Mode::from_raw_mode(mode))?;
        Ok((ShmDirectory { path, _lock: lock }, root))
    }
}

impl Drop for ShmDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}

/// Removes the directories of killed processes, which are not locked any more.
fn remove_abandoned() {
    let Ok(entries) = fs::read_dir(SHM) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(SHM_PREFIX) {
            continue;
        }
        let path = entry.path();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(directory) = open(&path, flags, Mode::empty()) else { continue };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            log::warn!("removing the abandoned {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fallback_directory_is_made_locked_and_removed() {
        let (shm, root) = ShmDirectory::new(MountAccess::Owner).unwrap();
        let path = shm.path.clone();
        remove_abandoned();
        assert!(path.is_dir(), "a locked directory must stay");
        drop((shm, root));
        assert!(!path.exists());

        let abandoned = Path::new(SHM).join(format!("{SHM_PREFIX}test-{}", std::process::id()));
        fs::create_dir(&abandoned).unwrap();
        remove_abandoned();
        assert!(!abandoned.exists());
    }

    #[test]
    fn a_mount_takes_files_and_is_not_writable_for_others() {
        let mount = MemoryMount::new(1 << 20, MountAccess::Owner).unwrap();
        let stat = rustix::fs::fstat(mount.root()).unwrap();
        assert_eq!(stat.st_mode & 0o777, 0o755);
        let open = MemoryMount::new(1 << 20, MountAccess::AnyUser).unwrap();
        assert_eq!(rustix::fs::fstat(open.root()).unwrap().st_mode & 0o777, 0o777);
    }
}
