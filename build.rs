//! The one build script of everything that varnishd loads: finds Varnish by pkg-config, refuses a version that
//! is not supported, and tells cargo what depends on it.
//!
//! It is compiled as the library `objmapper-build`, which the `build.rs` of each crate calls.

use std::fmt;
use std::path::PathBuf;

/// The Varnish branches whose private ABI `varnish-stevedore-sys` declares. A new one is added there first.
pub const SUPPORTED_BRANCHES: &[(u32, u32)] = &[(7, 7)];

/// A Varnish that was found and is supported.
#[derive(Debug, Clone)]
pub struct Varnish {
    /// As pkg-config says it, for example `7.7.0`.
    pub version: String,
    /// Where its headers are.
    pub include_paths: Vec<PathBuf>,
    branch: (u32, u32),
}

impl Varnish {
    /// The arguments that let a C compiler (or libclang) find the headers.
    pub fn include_args(&self) -> Vec<String> {
        self.include_paths.iter().map(|p| format!("-I{}", p.display())).collect()
    }

    /// Tells cargo the cfg `varnish_branch="7.7"`, the version as the environment variable `VARNISH_VERSION`, and
    /// when to run again.
    pub fn emit(&self) {
        let known: Vec<String> = SUPPORTED_BRANCHES.iter().map(|(a, b)| format!("\"{a}.{b}\"")).collect();
        println!("cargo::rustc-check-cfg=cfg(varnish_branch, values({}))", known.join(", "));
        println!("cargo::rustc-cfg=varnish_branch=\"{}.{}\"", self.branch.0, self.branch.1);
        println!("cargo::rustc-env=VARNISH_VERSION={}", self.version);
        println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    }
}

/// Why there is no Varnish to build for.
#[derive(Debug)]
pub enum Error {
    /// pkg-config does not know `varnishapi`.
    NotFound(String),
    /// There is one, but not of a supported branch.
    Unsupported(String),
}

impl Error {
    /// Shows the error as cargo shows errors of build scripts, and ends the build.
    pub fn exit(&self) -> ! {
        println!("cargo::error={self}");
        std::process::exit(1)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let branches: Vec<String> = SUPPORTED_BRANCHES.iter().map(|(a, b)| format!("{a}.{b}")).collect();
        let branches = branches.join(", ");
        match self {
            Error::NotFound(why) => write!(
                f,
                "pkg-config finds no Varnish (module 'varnishapi'): {why}. Install Varnish {branches} with its headers \
                 (Debian: libvarnishapi-dev, see scripts/setup.sh) or set PKG_CONFIG_PATH"
            ),
            Error::Unsupported(found) => write!(
                f,
                "Varnish {found} is not supported: a storage engine depends on varnishd's private structures, which are \
                 declared here for {branches} only. Install one of those, or add the version to varnish-stevedore-sys"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Finds the installed Varnish.
pub fn find_varnish() -> Result<Varnish, Error> {
    let found = pkg_config::Config::new()
        .cargo_metadata(false)
        .probe("varnishapi")
        .map_err(|e| Error::NotFound(e.to_string().lines().next().unwrap_or_default().to_owned()))?;
    let mut parts = found.version.split('.').map_while(|p| p.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) if SUPPORTED_BRANCHES.contains(&(major, minor)) => {
            Ok(Varnish { version: found.version, include_paths: found.include_paths, branch: (major, minor) })
        }
        _ => Err(Error::Unsupported(found.version)),
    }
}
