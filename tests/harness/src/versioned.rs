//! A site whose files are replaced by newer versions while it is served, and the judge of what clients get of it.
//!
//! A body says which file and which version it is, and every other byte of it follows from that; so it alone tells how
//! old a response is and whether it is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::http::Response;
use crate::site;

/// A file of the site.
#[derive(Debug)]
struct Versioned {
    /// The version that the origin has.
    current: AtomicU64,
    /// The oldest version that a request may get that begins now.
    floor: AtomicU64,
}

type Bodies = BTreeMap<(usize, u64), Arc<Vec<u8>>>;

/// The site.
#[derive(Debug)]
pub struct VersionedSite {
    root: PathBuf,
    sizes: Vec<usize>,
    files: Vec<Versioned>,
    /// Bodies of late, by file and version: they are compared far more often than they change.
    bodies: RwLock<Bodies>,
}

/// Why a response is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// It is older than it may be.
    Stale {
        /// The version that came.
        got: u64,
        /// The oldest allowed one.
        floor: u64,
    },
    /// It is no version of that file, or not every byte of it.
    Torn(String),
}

impl VersionedSite {
    /// Version 1 of `files` files below `root`, whose sizes are `sizes` in turn.
    pub fn create(root: &Path, files: usize, sizes: &[usize]) -> Result<Self> {
        std::fs::create_dir(root)?;
        let site = Self {
            root: root.to_owned(),
            sizes: sizes.to_vec(),
            files: (0..files).map(|_| Versioned { current: 0.into(), floor: 1.into() }).collect(),
            bodies: RwLock::default(),
        };
        for file in 0..files {
            site.change(file)?;
        }
        Ok(site)
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file's name, which is its path without the slash.
    pub fn name(file: usize) -> String {
        format!("v{file}")
    }

    /// Replaces the file by its next version, at once and for everybody, and says which that is. Only one thread may
    /// change a file.
    pub fn change(&self, file: usize) -> Result<u64> {
        let version = self.files[file].current.load(Ordering::SeqCst) + 1;
        let new = self.root.join(format!(".new-{file}"));
        std::fs::write(&new, &*self.body(file, version))?;
        // H2O makes the ETag of the time in seconds and the size: no two versions may have both in common.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + version);
        File::options().write(true).open(&new)?.set_modified(time)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&new, self.root.join(Self::name(file)))?;
        self.files[file].current.store(version, Ordering::SeqCst);
        Ok(version)
    }

    /// From now on no request may get an older version than the current one: what was older has been purged or banned.
    pub fn invalidate_older(&self, file: usize) {
        let version = self.files[file].current.load(Ordering::SeqCst);
        self.files[file].floor.store(version, Ordering::SeqCst);
    }

    /// The oldest version that a request may get that begins now.
    pub fn floor(&self, file: usize) -> u64 {
        self.files[file].floor.load(Ordering::SeqCst)
    }

    /// Judges the response to a request for `file` that began when [`VersionedSite::floor`] was `floor`; its version.
    pub fn judge(&self, file: usize, floor: u64, response: &Response) -> std::result::Result<u64, Wrong> {
        let torn = |what: String| Wrong::Torn(format!("{}: {what}", Self::name(file)));
        if response.status != 200 {
            return Err(torn(format!("status {}", response.status)));
        }
        let version = version(file, &response.body).map_err(|e| torn(format!("{e:#}")))?;
        let want = self.body(file, version);
        if response.body != *want {
            let at = response.body.iter().zip(want.iter()).position(|(a, b)| a != b);
            let lengths = (response.body.len(), want.len());
            return Err(torn(format!("version {version}, {lengths:?} bytes, first difference at {at:?}")));
        }
        if version < floor {
            return Err(Wrong::Stale { got: version, floor });
        }
        Ok(version)
    }

    /// The whole body: a line that names it, then bytes that follow from its name. Neighbouring versions differ in size.
    fn body(&self, file: usize, version: u64) -> Arc<Vec<u8>> {
        let known = self.bodies.read().unwrap_or_else(PoisonError::into_inner).get(&(file, version)).cloned();
        known.unwrap_or_else(|| {
            let size = self.sizes[file % self.sizes.len()] + (version % 61) as usize;
            let mut body = format!("file {file} version {version}\n").into_bytes();
            body.extend(site::bytes((file as u64) << 32 | version, size));
            let body = Arc::new(body);
            let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
            bodies.retain(|(of, old), _| *of != file || *old + 2 >= version);
            bodies.insert((file, version), Arc::clone(&body));
            body
        })
    }
}

/// What the first line of a body says.
fn version(file: usize, body: &[u8]) -> Result<u64> {
    let end = body.iter().take(64).position(|b| *b == b'\n').context("no first line")?;
    let words: Vec<&str> = std::str::from_utf8(&body[..end])?.split(' ').collect();
    let ["file", name, "version", version] = words[..] else { bail!("first line {words:?}") };
    ensure!(name.parse() == Ok(file), "another file: {name}");
    Ok(version.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(body: Vec<u8>) -> Response {
        Response { status: 200, headers: Vec::new(), body }
    }

    #[test]
    fn the_judge_tells_right_stale_and_torn_apart() -> Result<()> {
        let dir = crate::process::open_directory()?;
        let site = VersionedSite::create(&dir.path().join("site"), 2, &[100, 5000])?;
        let old = std::fs::read(dir.path().join("site/v1"))?;
        assert_eq!(site.judge(1, site.floor(1), &response(old.clone())), Ok(1));

        assert_eq!(site.change(1)?, 2);
        // Nothing was purged: the old one may come for a while.
        assert_eq!(site.judge(1, site.floor(1), &response(old.clone())), Ok(1));
        site.invalidate_older(1);
        assert_eq!(site.judge(1, site.floor(1), &response(old.clone())), Err(Wrong::Stale { got: 1, floor: 2 }));

        let new = std::fs::read(dir.path().join("site/v1"))?;
        assert_eq!(site.judge(1, site.floor(1), &response(new.clone())), Ok(2));
        let mut mixed = new.clone();
        let half = old.len() / 2;
        mixed[half..old.len()].copy_from_slice(&old[half..]);
        let torn = [mixed, new[..new.len() - 1].to_vec(), Vec::new(), std::fs::read(dir.path().join("site/v0"))?];
        for body in torn {
            assert!(matches!(site.judge(1, 1, &response(body)), Err(Wrong::Torn(_))));
        }
        assert!(matches!(site.judge(1, 1, &Response { status: 503, ..response(new) }), Err(Wrong::Torn(_))));
        Ok(())
    }
}
