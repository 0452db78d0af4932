//! One object's entry in the table: 128 bytes, little-endian, with a checksum at the end. A slot whose sequence number is 0 is
//! free, whatever else it holds: one write of 8 bytes removes an object.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes of an entry.
pub const ENTRY_LEN: usize = 128;

/// Where the key is.
pub(crate) const DIGEST_AT: usize = 8;
/// Where the checksum is.
const CHECK_AT: usize = ENTRY_LEN - 8;

/// When an object was made, and for how long it may be used; seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Times {
    /// Since 1970.
    pub origin: f64,
    /// From `origin` on.
    pub ttl: f32,
    /// From the end of `ttl` on.
    pub grace: f32,
    /// From the end of `grace` on.
    pub keep: f32,
}

impl Times {
    /// Returns when the object is of no more use, seconds since 1970. Not a number if a time is none.
    pub fn end(&self) -> f64 {
        self.origin + f64::from(self.ttl) + f64::from(self.grace) + f64::from(self.keep)
    }
}

/// Where an object's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordPlace {
    /// The segment's number.
    pub segment: u32,
    /// The offset in it.
    pub offset: u32,
    /// The length in bytes.
    pub len: u32,
}

/// A body in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBody {
    /// The object number in the store; never 0.
    pub object: u64,
    /// Bytes of body, from the file's first byte on.
    pub body_len: u64,
    /// Bytes of the file.
    pub file_len: u64,
}

/// One object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Grows with every object; the order in which they came.
    pub sequence: u64,
    /// The key in the cache.
    pub digest: [u8; 32],
    /// Its times.
    pub times: Times,
    /// The time of the newest ban that it was tested by.
    pub ban: f64,
    /// Where its record is.
    pub record: RecordPlace,
    /// Its body in the store, if it is there.
    pub body: Option<StoredBody>,
    /// Bytes that it takes beside the body in the store.
    pub heap: u32,
    /// The caller's.
    pub tag: u32,
}

impl Entry {
    /// Encodes the entry.
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        let mut put = Cursor { bytes: &mut bytes, at: 0 };
        put.put(&self.sequence.to_le_bytes());
        put.put(&self.digest);
        put.put(&self.times.origin.to_le_bytes());
        put.put(&self.times.ttl.to_le_bytes());
        put.put(&self.times.grace.to_le_bytes());
        put.put(&self.times.keep.to_le_bytes());
        put.put(&self.record.segment.to_le_bytes());
        put.put(&self.record.offset.to_le_bytes());
        put.put(&self.record.len.to_le_bytes());
        put.put(&self.ban.to_le_bytes());
        let body = self.body.unwrap_or(StoredBody { object: 0, body_len: 0, file_len: 0 });
        put.put(&body.object.to_le_bytes());
        put.put(&body.body_len.to_le_bytes());
        put.put(&body.file_len.to_le_bytes());
        put.put(&self.heap.to_le_bytes());
        put.put(&self.tag.to_le_bytes());
        let check = xxh3_64(&bytes[..CHECK_AT]);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Decodes a slot: `Ok(None)` if it is free, `Err` if it is damaged.
    pub fn decode(bytes: &[u8; ENTRY_LEN]) -> Result<Option<Entry>, DamagedEntry> {
        let mut get = Reader { bytes, at: 0 };
        let sequence = u64::from_le_bytes(get.take());
        if sequence == 0 {
            return Ok(None);
        }
        let mut check = [0; 8];
        check.copy_from_slice(&bytes[CHECK_AT..]);
        if u64::from_le_bytes(check) != xxh3_64(&bytes[..CHECK_AT]) {
            return Err(DamagedEntry);
        }
        let digest = get.take();
        let times = Times {
            origin: f64::from_le_bytes(get.take()),
            ttl: f32::from_le_bytes(get.take()),
            grace: f32::from_le_bytes(get.take()),
            keep: f32::from_le_bytes(get.take()),
        };
        let record = RecordPlace {
            segment: u32::from_le_bytes(get.take()),
            offset: u32::from_le_bytes(get.take()),
            len: u32::from_le_bytes(get.take()),
        };
        let ban = f64::from_le_bytes(get.take());
        let body = StoredBody {
            object: u64::from_le_bytes(get.take()),
            body_len: u64::from_le_bytes(get.take()),
            file_len: u64::from_le_bytes(get.take()),
        };
        let heap = u32::from_le_bytes(get.take());
        let tag = u32::from_le_bytes(get.take());
        let body = (body.object != 0).then_some(body);
        Ok(Some(Entry { sequence, digest, times, ban, record, body, heap, tag }))
    }
}

/// A slot whose checksum is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a damaged entry")]
pub struct DamagedEntry;

struct Cursor<'a> {
    bytes: &'a mut [u8; ENTRY_LEN],
    at: usize,
}

impl Cursor<'_> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        // A compile-time fact of the list of fields above; a test encodes one.
        debug_assert!(self.at <= CHECK_AT);
    }
}

struct Reader<'a> {
    bytes: &'a [u8; ENTRY_LEN],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn entry() -> Entry {
        Entry {
            sequence: 7,
            digest: [3; 32],
            times: Times { origin: 1e9, ttl: 120.0, grace: 10.0, keep: -0.0 },
            ban: 2.5,
            record: RecordPlace { segment: 1, offset: 2, len: 3 },
            body: Some(StoredBody { object: 9, body_len: 10, file_len: 11 }),
            heap: 77,
            tag: 5,
        }
    }

    #[test]
    fn an_entry_is_what_it_was() {
        assert_eq!(Entry::decode(&entry().encode()), Ok(Some(entry())));
        let without = Entry { body: None, ..entry() };
        assert_eq!(Entry::decode(&without.encode()), Ok(Some(without)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for bit in 0..ENTRY_LEN * 8 {
            let mut bytes = entry().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let freed = bytes[..8] == [0; 8];
            assert_eq!(Entry::decode(&bytes), if freed { Ok(None) } else { Err(DamagedEntry) }, "bit {bit}");
        }
    }

    #[test]
    fn a_sequence_of_zero_is_free() {
        let mut bytes = entry().encode();
        bytes[..8].fill(0);
        assert_eq!(Entry::decode(&bytes), Ok(None));
    }
}
