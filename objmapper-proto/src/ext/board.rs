//! The board: a page of counters that a store shares with its clients, and the fences on it.
//!
//! This module defines the layout; `objmapper-client` and `objmapper-server` map the board. All integers on the
//! board are in the machine's own byte order, because no other machine reads it.

use crate::uri::ObjUri;

/// The first bytes of a board.
pub const MAGIC: [u8; 8] = *b"OBJMBORD";

/// Version of the layout.
pub const VERSION: u32 = 1;

/// Number of fences on a board.
pub const SHARDS: u32 = 4096;

/// Number of slots on a board: pairs of counters for bans.
pub const SLOTS: u32 = 64;

/// Bytes of the header: a page, so that counters share no cache line with it.
pub const HEADER_LEN: usize = 4096;

/// Offset of the layout's version in the header.
pub const AT_VERSION: usize = 8;
/// Offset of the number of fences.
pub const AT_SHARDS: usize = 12;
/// Offset of the number of slots.
pub const AT_SLOTS: usize = 16;
/// Offset of the board's random id (16 bytes).
pub const AT_ID: usize = 32;

/// Bytes from a slot to the next: a cache line for each of its two counters.
const SLOT_LEN: usize = 128;

/// Size of a board in bytes: 11 pages.
pub const SIZE: usize = FENCES + SHARDS as usize * 8;

const FENCES: usize = HEADER_LEN + SLOTS as usize * SLOT_LEN;

/// FNV-1a, 64 bits.
const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

/// A counter of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Word {
    /// Bans announced in a slot.
    Announced(u32),
    /// Bans recorded in a slot.
    Recorded(u32),
    /// The value of a fence.
    Fence(u32),
}

impl Word {
    /// Returns the counter's offset in bytes: a multiple of 8, and at most [`SIZE`] - 8. Numbers are taken modulo the count of
    /// their kind.
    #[must_use]
    pub const fn offset(self) -> usize {
        match self {
            Self::Announced(slot) => HEADER_LEN + (slot % SLOTS) as usize * SLOT_LEN,
            Self::Recorded(slot) => HEADER_LEN + (slot % SLOTS) as usize * SLOT_LEN + SLOT_LEN / 2,
            Self::Fence(shard) => FENCES + (shard % SHARDS) as usize * 8,
        }
    }
}

/// Returns the slot of a part of the name space with an invalidation log of its own: FNV-1a-64 of its prefix modulo [`SLOTS`].
#[must_use]
pub fn slot_of(prefix: &[u8]) -> u32 {
    (fnv1a(prefix) % u64::from(SLOTS)) as u32 // below SLOTS
}

/// A fence and a value that it had. A DELETE of one of its URIs moves the fence, so that a COMMIT with the former value
/// fails: what was fetched before the DELETE is not published after it.
///
/// ```
/// use objmapper_proto::{ObjUri, ext::Fence};
/// assert_eq!(Fence::shard_of(&ObjUri::parse(b"/a")?), 2349);
/// # Ok::<(), objmapper_proto::UriError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The fence's number, below [`SHARDS`].
    pub shard: u32,
    /// The value that the fence had.
    pub value: u64,
}

impl Fence {
    /// Returns the number of a URI's fence: FNV-1a-64 of its bytes modulo [`SHARDS`].
    #[must_use]
    pub fn shard_of(uri: &ObjUri<'_>) -> u32 {
        Self::shard_of_bytes(uri.as_bytes())
    }

    /// Returns the number of the fence of a URI that is given as bytes.
    #[must_use]
    pub fn shard_of_bytes(uri: &[u8]) -> u32 {
        (fnv1a(uri) % u64::from(SHARDS)) as u32 // below SHARDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn fnv1a_as_published() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn words_do_not_overlap_and_fill_the_board() {
        assert_eq!((SIZE, SIZE % 4096), (45056, 0));
        let words =
            (0..SLOTS).flat_map(|s| [Word::Announced(s), Word::Recorded(s)]).chain((0..SHARDS).map(Word::Fence));
        let offsets: Vec<_> = words.map(Word::offset).collect();
        assert!(offsets.iter().all(|o| o % 8 == 0 && (HEADER_LEN..=SIZE - 8).contains(o)));
        assert_eq!(offsets.iter().collect::<HashSet<_>>().len(), offsets.len());
        // A slot's counters have a cache line each.
        let lines: HashSet<_> = offsets[..2 * SLOTS as usize].iter().map(|o| o / 64).collect();
        assert_eq!(lines.len(), 2 * SLOTS as usize);
    }

    #[test]
    fn numbers_beyond_the_last_wrap() {
        assert_eq!(Word::Fence(SHARDS).offset(), Word::Fence(0).offset());
        assert_eq!(Word::Announced(u32::MAX).offset(), Word::Announced(SLOTS - 1).offset());
    }
}
