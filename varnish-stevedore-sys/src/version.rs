//! Is the varnishd that loads us the one we were compiled for?

use core::ffi::{CStr, c_char};
use std::fmt;

use crate::bindings::{VCS_String, VMOD_ABI_Version};

/// The branch (`7.7`) whose structures this crate declares.
#[cfg(varnish_branch = "7.7")]
pub const BRANCH: &str = "7.7";

/// What we were compiled for, for example `Varnish 7.7.0 71fc9d2…`.
pub fn compiled_for() -> &'static str {
    VMOD_ABI_Version.to_str().unwrap_or("?")
}

/// varnishd is of another branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The version that runs, for example `7.6.1`.
    pub running: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this storage engine was built for {} and works with Varnish {BRANCH} only, but varnishd is {}: \
             install the build for {}, or rebuild against its headers",
            compiled_for(),
            self.running,
            self.running
        )
    }
}

impl std::error::Error for Mismatch {}

/// Compares the branch of the varnishd that runs with the one that was compiled for.
///
/// Patch releases keep the private ABI; a branch does not promise to.
pub fn check() -> Result<(), Mismatch> {
    let string = |which: &CStr| {
        // SAFETY: VCS_String (lib/libvarnish/version.c) takes a one-letter string it knows and returns a static one.
        let p: *const c_char = unsafe { VCS_String(which.as_ptr()) };
        // SAFETY: see above: static and NUL-terminated.
        unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned()
    };
    if string(c"B") == BRANCH { Ok(()) } else { Err(Mismatch { running: string(c"P") }) }
}
