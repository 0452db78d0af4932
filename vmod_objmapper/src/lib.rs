//! objmapper in VCL: `import objmapper;`.

// The macro makes C entry points and a vmod descriptor, without comments of ours in them.
#![allow(missing_docs, unreachable_pub, clippy::undocumented_unsafe_blocks)]

/// objmapper in VCL
#[varnish::vmod(docs = "README.md")]
mod objmapper {
    /// What this VMOD is and what it was built for, for example `0.1.0 (Varnish 7.7.0)`.
    ///
    /// A VMOD and a storage engine of different versions do not work together on shared objects; compare this with the
    /// package that the storage engine came from.
    pub fn version() -> &'static str {
        concat!(env!("CARGO_PKG_VERSION"), " (Varnish ", env!("VARNISH_VERSION"), ")")
    }
}
