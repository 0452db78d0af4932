//! A generated site whose every byte is known.

use std::path::Path;

use anyhow::Result;

use crate::random::Random;

/// Body sizes in bytes of every class: empty, small, around the threshold of 64 KiB, around a page,
/// large.
pub const SIZES: [usize; 10] = [0, 1, 1024, 4096, 4097, 65_535, 65_536, 65_537, 1_000_000, 3 * 1024 * 1024 + 17];

/// `length` bytes that depend on `seed`, that no run of zeros, shift or truncation leaves equal.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    // Every eight bytes are another number.
    let mut numbers = Random::new(seed);
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        out.extend_from_slice(&numbers.next_u64().to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Writes `name` with `bytes(seed, length)` below `root`, readable for everybody.
pub fn write(root: &Path, name: &str, seed: u64, length: usize) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let path = root.join(name);
    std::fs::write(&path, bytes(seed, length))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    Ok(())
}
