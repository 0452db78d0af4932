//! Whether the varnishd that loads this library is the one it was compiled for.
//!
//! What decides is what decides for a VMOD with `$ABI strict`: product, version and revision, all equal. Nothing less is
//! safe. Neither VRT's version nor the branch speaks for the structures that are declared here or read from
//! `cache_varnishd.h`, and patch releases have changed such: 7.3.1, 7.3.2, 7.4.2 and 7.4.3 added parameters (`struct params`),
//! flags of requests and counters. A distribution's fix keeps version and revision, and with them, by its policy, the ABI.

use core::ffi::CStr;
use std::fmt;

use crate::bindings::{VCS_String, VMOD_ABI_Version};

/// What `VCS_String("T")` returns in the product that this was compiled for.
const TARNAME: &str = env!("VARNISH_TARNAME");

/// A release of a product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its name in its own programs: `varnish`, `vinyl-cache`.
    pub product: String,
    /// For example `7.7.0`.
    pub version: String,
    /// The commit that it was made from.
    pub revision: String,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (revision {})", self.product, self.version, self.revision)
    }
}

/// The release whose headers this was compiled with.
pub fn compiled_for() -> Release {
    // "Vinyl Cache 9.0.1 423648c…": the product's name may have spaces (Varnish: include/generate.py).
    let mut words = VMOD_ABI_Version.to_str().unwrap_or_default().rsplitn(3, ' ');
    let revision = words.next().unwrap_or_default().to_owned();
    Release { product: TARNAME.to_owned(), version: words.next().unwrap_or_default().to_owned(), revision }
}

/// The release of the varnishd around us.
pub fn running() -> Release {
    let string = |which: &CStr| {
        // SAFETY: VCS_String (lib/libvarnish/version.c) takes a one-letter string it knows and returns a static one.
        unsafe { CStr::from_ptr(VCS_String(which.as_ptr())) }.to_string_lossy().into_owned()
    };
    Release { product: string(c"T"), version: string(c"P"), revision: string(c"R") }
}

/// varnishd is of another release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What this library was compiled for.
    pub compiled_for: Release,
    /// What loads it.
    pub running: Release,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this storage engine was built for {}, but {} loads it. It uses private structures, which can differ between any \
             two releases: rebuild it with the headers of {} {} (make build, make install), or install the build for that",
            self.compiled_for, self.running, self.running.product, self.running.version
        )
    }
}

impl std::error::Error for Mismatch {}

/// Compares the release that runs with the one that this was compiled for.
pub fn check() -> Result<(), Box<Mismatch>> {
    let (compiled_for, running) = (compiled_for(), running());
    if compiled_for == running { Ok(()) } else { Err(Box::new(Mismatch { compiled_for, running })) }
}
