//! Where the release build left what the tests load and start.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The workspace's root directory.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` in the workspace.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// A directory for files of `purpose`, beside the release build that the tests use.
pub fn work_dir(purpose: &str) -> PathBuf {
    match std::env::var_os("OBJM_BUILD_DIR") {
        Some(dir) => workspace().join(dir).join("..").join(purpose),
        None => target_dir().join(purpose),
    }
}

/// Puts a file into `dir`, which every user can read, and returns its path there. varnishd's child and its VCL compiler run
/// as other users, who may not see the workspace (a home directory has mode 0700).
pub fn stage(file: &Path, dir: &Path) -> Result<PathBuf> {
    let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
    let staged = dir.join(name);
    if staged.exists() {
        return Ok(staged);
    }
    // A link costs nothing; it takes one file system, and a file that every user can read (not so after umask 077).
    let linked = std::fs::metadata(file)?.mode() & 0o004 != 0 && std::fs::hard_link(file, &staged).is_ok();
    if !linked {
        std::fs::copy(file, &staged).with_context(|| format!("cannot copy {} to {}", file.display(), dir.display()))?;
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(staged)
}

/// The storage engine as it was built. varnishd is given it [staged](stage).
pub fn engine() -> Result<PathBuf> {
    built("libstevedore_objmapper.so")
}

/// The VMOD, for `import objmapper from`.
pub fn vmod() -> Result<PathBuf> {
    built("libvmod_objmapper.so")
}

/// The daemon's program file.
pub fn objmapperd() -> Result<PathBuf> {
    built("objmapperd")
}

/// The operator's program.
pub fn objmapperctl() -> Result<PathBuf> {
    built("objmapperctl")
}

fn built(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("OBJM_BUILD_DIR") {
        Some(dir) => workspace().join(dir),
        None => target_dir().join("release"),
    };
    let path = dir.join(name);
    if !path.is_file() {
        bail!("{} is missing: run 'make build' first", path.display());
    }
    Ok(path.canonicalize()?)
}
