//! What an invalidation names, as a number.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// A tag, or the digest of a key, as a keyed hash. Two that are the same by chance, one of 2^64, invalidate an object too many
/// and never one too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub(crate) u64);

/// Makes names, with a key that differs from process to process: a client cannot choose tags that collide.
#[derive(Debug, Clone, Default)]
pub struct Names(RandomState);

impl Names {
    /// The name of a tag.
    #[must_use]
    pub fn tag(&self, tag: &[u8]) -> Name {
        self.name(0, tag)
    }

    /// The name of a key's digest.
    #[must_use]
    pub fn digest(&self, digest: &[u8; 32]) -> Name {
        self.name(1, digest)
    }

    fn name(&self, kind: u8, bytes: &[u8]) -> Name {
        let mut hasher = self.0.build_hasher();
        kind.hash(&mut hasher);
        hasher.write(bytes);
        Name(hasher.finish())
    }
}
