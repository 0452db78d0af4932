//! What the programs' `--version` says: the package's version, and the commit where there is one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells cargo the version as the environment variable `OBJMAPPER_VERSION`: `0.1.0 (commit 0123456789ab)`, or `0.1.0` if the
/// sources are not those of a git repository, such as an unpacked archive. A debug build names no commit, because it would be
/// compiled anew after each.
///
/// The package lies directly below the repository's root.
pub fn emit_version() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let version = match commit() {
        Some(commit) => format!("{version} (commit {commit})"),
        None => version,
    };
    println!("cargo::rustc-env=OBJMAPPER_VERSION={version}");
}

fn commit() -> Option<String> {
    if env::var("PROFILE").ok()? != "release" {
        return None;
    }
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let root = package.parent()?.canonicalize().ok()?;
    // An archive that was unpacked inside of another repository must not be given that one's commit.
    let top = git(&root, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root {
        return None;
    }
    let commit = git(&root, &["rev-parse", "--short=12", "HEAD"])?;
    // The log of HEAD changes with each commit and each checkout; where there is none, HEAD changes with a checkout.
    let watched = ["logs/HEAD", "HEAD"].into_iter().find_map(|name| {
        let path = root.join(git(&root, &["rev-parse", "--git-path", name])?);
        path.exists().then_some(path)
    });
    if let Some(path) = watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Some(commit)
}

/// Returns what a git command prints, without the line's end. `None` if it fails.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
