//! Where the release build left what the tests load and start.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

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

/// The storage engine as varnishd's `-E` wants it: an absolute path.
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
