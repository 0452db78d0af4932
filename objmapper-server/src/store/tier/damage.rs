//! Data of a former run that cannot be used, and a start that it ends.
//!
//! A cache never keeps its process from starting. An index that cannot be read, that another version or another program wrote, or
//! that is no file, is *put away*, and the tier starts empty. Its bodies, which nothing names any more, are removed by the sweep for
//! orphans; so are those of an index that is kept.
//!
//! | [`Damaged`] | what becomes of the index |
//! |---|---|
//! | `Keep` | it is moved to `objmapper-store/set-aside-N`, N growing from 1. The newest [`MAX_KEPT`] are kept, of all together at most a [`MAX_SHARE`]th of the tier's limit (at least [`MIN_KEPT_BYTES`]), outside the limit; what is larger is removed |
//! | `Delete` | it is removed |
//!
//! An index may also end the process that loads it, by a defect of the store or of SQLite. So a start marks that it loads
//! (`objmapper-store/loading`, a byte for each start in a row that did not come to the mark's removal). One interrupted
//! start says nothing: the power failed, or an operator was impatient. After [`MAX_INTERRUPTED`] the index is put away.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::{DiskDir, INDEX_FILES};
use crate::store::Damaged;

/// The maximum number of indexes that are kept aside.
const MAX_KEPT: usize = 2;
/// Those that are kept take at most this part of the limit together.
const MAX_SHARE: u64 = 64;
/// They may take as many bytes together, whatever the limit.
const MIN_KEPT_BYTES: u64 = 4 << 20;
/// The number of starts in a row that are interrupted while they load before the index is put away.
pub(super) const MAX_INTERRUPTED: u64 = 2;

const SET_ASIDE: &str = "set-aside-";
const MARK: &str = "loading";

/// Puts the index away because of `why`, and says so in one line.
pub(super) fn put_index_away(dir: &DiskDir, damaged: Damaged, limit: u64, why: &str) {
    let path = dir.path().display();
    let kept = match damaged {
        Damaged::Keep => keep(dir, (limit / MAX_SHARE).max(MIN_KEPT_BYTES), why),
        Damaged::Delete => Ok(None),
    };
    let removed = if matches!(kept, Ok(Some(_))) { Ok(()) } else { remove(dir) };
    let what = match (kept, removed) {
        (Ok(Some(aside)), _) => format!("the index is kept in {}, outside the limit", aside.display()),
        (_, Err(e)) => format!("the index cannot be removed either: {e}; remedy: remove {path}"),
        (Ok(None), Ok(())) if damaged == Damaged::Keep => "the index is removed: it is too large to be kept".to_owned(),
        (Ok(None), Ok(())) => "the index is removed".to_owned(),
        (Err(e), Ok(())) => format!("the index is removed: keeping it: {e}"),
    };
    log::warn!("disk tier: the index in {path} cannot be used: {why}; the tier starts empty; {what}");
}

/// Moves the index aside, with `why` in a file beside it, and returns where it is. Returns `None`, and moves nothing, if it has more
/// than `max_bytes`.
fn keep(dir: &DiskDir, max_bytes: u64, why: &str) -> io::Result<Option<PathBuf>> {
    let root = reach(dir);
    let mut bytes = INDEX_FILES.iter().map(|name| size(&root.join(name))).sum::<u64>();
    if bytes > max_bytes {
        return Ok(None);
    }
    // The newest first: an older one is kept if it fits in beside the newer ones.
    let mut aside = set_aside(&root)?;
    aside.sort_unstable_by(|a, b| b.cmp(a));
    let next = aside.first().map_or(1, |newest| newest.saturating_add(1));
    for (at, number) in aside.into_iter().enumerate() {
        let old = root.join(format!("{SET_ASIDE}{number}"));
        bytes = bytes.saturating_add(size(&old));
        if at + 1 >= MAX_KEPT || bytes > max_bytes {
            fs::remove_dir_all(old)?;
        }
    }
    let name = format!("{SET_ASIDE}{next}");
    let new = root.join(&name);
    DirBuilder::new().mode(0o700).create(&new)?;
    for file in INDEX_FILES {
        match fs::rename(root.join(file), new.join(file)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    // For the reader of the directory; a full disk may refuse it, and the log has it too.
    let note = File::create(new.join("why")).and_then(|mut file| writeln!(file, "{why}"));
    if let Err(e) = note {
        log::debug!("a note in {name}: {e}");
    }
    Ok(Some(dir.path().join(name)))
}

/// Removes the index, or what is in its place.
pub(super) fn remove(dir: &DiskDir) -> io::Result<()> {
    let root = reach(dir);
    for name in INDEX_FILES {
        let path = root.join(name);
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the numbers of what was set aside.
fn set_aside(root: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|n| n.strip_prefix(SET_ASIDE)).and_then(|n| n.parse::<u64>().ok()));
    }
    Ok(numbers)
}

/// Returns the bytes of a file, or of the files in a directory.
fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| size(&entry.path())).fold(0, u64::saturating_add)
        }
        Ok(found) => found.len(),
        Err(_) => 0,
    }
}

/// Returns a path of the directory by its descriptor, so that no link of its parents decides what is removed.
fn reach(dir: &DiskDir) -> PathBuf {
    format!("/proc/self/fd/{}", dir.private.as_raw_fd()).into()
}

/// Marks that the index is being loaded. Dropping it removes the mark, in whatever way the start ends but for the end of the
/// process and a panic.
#[derive(Debug)]
pub(crate) struct LoadingMark {
    private: OwnedFd,
}

impl LoadingMark {
    /// Returns the number of starts in a row, before this one, that were interrupted while they loaded.
    pub(super) fn interrupted(dir: &DiskDir) -> u64 {
        let mark = fstatat(&dir.private, MARK, AtFlags::AT_SYMLINK_NOFOLLOW);
        mark.map_or(0, |mark| u64::try_from(mark.st_size).unwrap_or(0))
    }

    /// Marks the beginning.
    pub(super) fn set(dir: &DiskDir) -> io::Result<Self> {
        let private = dir.private.try_clone()?;
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mark = openat(&private, MARK, flags, Mode::from_bits_truncate(0o600))?;
        File::from(mark).write_all(b".")?;
        Ok(LoadingMark { private })
    }

    /// Begins to count anew, because the index was put away.
    pub(super) fn clear(dir: &DiskDir) -> io::Result<()> {
        dir.remove(MARK)
    }
}

impl Drop for LoadingMark {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Err(e) = unlinkat(&self.private, MARK, UnlinkatFlags::NoRemoveDir) {
            log::warn!("disk tier: the mark of a start that loads cannot be removed: {e}");
        }
    }
}
