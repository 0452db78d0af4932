//! An object's record: its attributes, the URI of its body in the store, and its body if that is in heap.

use smallvec::SmallVec;

/// The parts of a record. All but the body have a length at the record's beginning.
const LENGTHS: usize = 5;
/// Bytes of the lengths.
const HEAD_LEN: usize = LENGTHS * 4;

/// What a record is made of.
#[derive(Debug, Clone)]
pub struct RecordParts<'a> {
    /// The attributes of fixed size.
    pub fixed: &'a [u8],
    /// What the response varies by, as varnishd has it; empty if there is none.
    pub vary: &'a [u8],
    /// The head, as varnishd has it.
    pub headers: &'a [u8],
    /// ESI data; empty if there is none.
    pub esidata: &'a [u8],
    /// The URI of the body in the store; empty if the body is in heap.
    pub uri: &'a [u8],
    /// The pieces of the body in heap.
    pub body: SmallVec<[&'a [u8]; 4]>,
}

impl<'a> RecordParts<'a> {
    fn lengths(&self) -> [u8; HEAD_LEN] {
        let mut head = [0; HEAD_LEN];
        let parts = [self.fixed, self.vary, self.headers, self.esidata, self.uri];
        for (field, part) in head.chunks_exact_mut(4).zip(parts) {
            // A part of 4 GiB makes a record that no journal takes.
            field.copy_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        head
    }

    /// Calls `write` with the pieces that the record is the concatenation of.
    pub(crate) fn with_pieces<T>(&self, write: impl FnOnce(&[&[u8]]) -> T) -> T {
        let lengths = self.lengths();
        let mut pieces: SmallVec<[&[u8]; 12]> = SmallVec::new();
        pieces.extend([&lengths[..], self.fixed, self.vary, self.headers, self.esidata, self.uri]);
        pieces.extend(self.body.iter().copied());
        write(&pieces)
    }
}

/// A record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The attributes of fixed size.
    pub fixed: &'a [u8],
    /// What the response varies by, as varnishd has it; empty if there is none.
    pub vary: &'a [u8],
    /// The head, as varnishd has it.
    pub headers: &'a [u8],
    /// ESI data; empty if there is none.
    pub esidata: &'a [u8],
    /// The URI of the body in the store; empty if the body is here.
    pub uri: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes a record apart; `None` if it is none.
    pub fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (head, mut rest) = bytes.split_first_chunk::<HEAD_LEN>()?;
        let mut parts = [&[][..]; LENGTHS];
        for (part, len) in parts.iter_mut().zip(head.as_chunks::<4>().0) {
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            (*part, rest) = rest.split_at_checked(len)?;
        }
        let [fixed, vary, headers, esidata, uri] = parts;
        Some(Record { fixed, vary, headers, esidata, uri, body: rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_it_was_and_a_cut_one_is_none() {
        let parts = RecordParts {
            fixed: b"fixed",
            vary: b"",
            headers: b"headers",
            esidata: b"esi",
            uri: b"/uri",
            body: SmallVec::from_slice(&[&b"bo"[..], b"dy"]),
        };
        let bytes = parts.with_pieces(|pieces| pieces.concat());
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(
            record,
            Record { fixed: b"fixed", vary: b"", headers: b"headers", esidata: b"esi", uri: b"/uri", body: b"body" }
        );
        for cut in 0..bytes.len() - 4 {
            assert_eq!(Record::parse(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
