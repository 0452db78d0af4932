//! The journal's directory. Everything in it is opened relative to its descriptor, without following symbolic links, and must
//! belong to this process's user.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

const NAME: &str = "objmapper-persist";
/// Where files go that could not be used, if they are kept.
const DAMAGED: &str = "damaged";

pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory below `top`, which exists; makes it if it is missing.
    pub(crate) fn open(top: &Path) -> io::Result<Directory> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = open(top, flags, Mode::empty())?;
        Ok(Directory { fd: child(&parent, NAME)?, path: top.join(NAME) })
    }

    /// Opens the directory below `top`. `None` if there is none.
    pub(crate) fn open_existing(top: &Path) -> io::Result<Option<Directory>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match open(&top.join(NAME), flags, Mode::empty()) {
            Ok(fd) => {
                owned(fstat(&fd)?.st_uid)?;
                Ok(Some(Directory { fd, path: top.join(NAME) }))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file for reading and writing. `None` if it does not exist, or is no file.
    pub(crate) fn file(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT | Errno::EISDIR | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Ok(None);
        }
        owned(stat.st_uid)?;
        Ok(Some(file))
    }

    /// Makes a new, empty file in place of what has the name.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        self.remove(name)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.fd, name, flags, Mode::from_bits_truncate(0o600))?))
    }

    /// Removes what has the name. It may be missing.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR) => {
                let away = format!("{name}.directory-{}", std::process::id());
                Ok(renameat(&self.fd, name, &self.fd, away.as_str())?)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Returns the names of all files in it.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::from_fd(openat(&self.fd, ".", flags, Mode::empty())?)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            if let Ok(name) = entry?.file_name().to_str()
                && !matches!(name, "." | ".." | DAMAGED)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Removes all files.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.names()?.iter().try_for_each(|name| self.remove(name))
    }

    /// Moves these files to a directory beside them, and returns its path. Returns `None`, and moves nothing, if that exists, or the
    /// files have more than `limit` bytes.
    pub(crate) fn set_aside(&self, names: &[&str], limit: u64) -> io::Result<Option<PathBuf>> {
        let mut bytes = 0u64;
        for name in names {
            if let Some(file) = self.file(name)? {
                bytes = bytes.saturating_add(file.metadata()?.len());
            }
        }
        if bytes > limit {
            return Ok(None);
        }
        match mkdirat(&self.fd, DAMAGED, Mode::from_bits_truncate(0o700)) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let aside = child(&self.fd, DAMAGED)?;
        for name in names {
            match renameat(&self.fd, *name, &aside, *name) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(self.path.join(DAMAGED)))
    }

    /// Writes the whole file system that the directory is on to its disk.
    pub(crate) fn sync_file_system(&self) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, ".", flags, Mode::empty())?;
        Ok(nix::unistd::syncfs(fd)?)
    }
}

/// Makes or opens a directory of this user.
fn child(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    owned(fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_uid)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(&parent, name, flags, Mode::empty())?)
}

fn owned(owner: u32) -> io::Result<()> {
    let me = geteuid().as_raw();
    if owner == me {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("it belongs to user {owner}, and this process is user {me}"),
    ))
}
