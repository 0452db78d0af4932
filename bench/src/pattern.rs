//! The bytes of every body of the benchmark: known by object and place, so that any of them can be checked.

use std::sync::LazyLock;

/// Of no round length, so that a body shifted by a page or a megabyte is another one.
const PERIOD: usize = (1 << 20) + 4099;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| objmapper_harness::site::bytes(0x0b_1ec7, PERIOD));

/// The bytes of object `id` from `offset` on, as many as lie in one piece (at least one).
pub fn piece(id: u64, offset: u64) -> &'static [u8] {
    let start = (id.wrapping_mul(7919) % PERIOD as u64 + offset % PERIOD as u64) % PERIOD as u64;
    &BLOCK[start as usize..]
}

/// Whether `bytes` are those of object `id` from `offset` on.
pub fn is_right(id: u64, mut offset: u64, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let right = piece(id, offset);
        let length = right.len().min(bytes.len());
        if bytes[..length] != right[..length] {
            return false;
        }
        bytes = &bytes[length..];
        offset += length as u64;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(id: u64, offset: u64, length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < length {
            let piece = piece(id, offset + out.len() as u64);
            out.extend_from_slice(&piece[..piece.len().min(length - out.len())]);
        }
        out
    }

    #[test]
    fn right_over_the_end_of_the_block() {
        let body = bytes(5, 0, 3 * PERIOD);
        assert!(is_right(5, 0, &body));
        assert!(is_right(5, 1000, &body[1000..]));
    }

    #[test]
    fn wrong_object_place_or_byte_is_seen() {
        let mut body = bytes(5, 0, 2 * PERIOD);
        assert!(!is_right(6, 0, &body));
        assert!(!is_right(5, 4096, &body));
        body[PERIOD + 7] ^= 1;
        assert!(!is_right(5, 0, &body));
    }
}
