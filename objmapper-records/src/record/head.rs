//! The head of a response as it is stored in its record, and the checksum of its body.

use xxhash_rust::xxh3::Xxh3;

use crate::record::bytes::{Malformed, Reader, put_bytes};
use crate::record::origin::OriginHead;

/// Header lines, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers {
    lines: Vec<u8>,
    /// The offset behind each line.
    ends: Vec<u32>,
}

impl Headers {
    /// The most lines.
    pub const MAX_LINES: usize = 1024;
    /// The most bytes of all lines together.
    pub const MAX_BYTES: usize = 512 << 10;

    /// Adds a line, `Name: value`, without its line end. Returns false if a limit above is reached.
    #[must_use]
    pub fn push(&mut self, line: &[u8]) -> bool {
        let end = self.lines.len() + line.len();
        if self.ends.len() >= Self::MAX_LINES || end > Self::MAX_BYTES {
            return false;
        }
        self.lines.extend_from_slice(line);
        self.ends.push(end as u32);
        true
    }

    /// Returns the number of lines.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns true if there are no lines.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the lines, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let line = &self.lines[start..end as usize];
            start = end as usize;
            line
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        // At most MAX_LINES.
        out.extend_from_slice(&(self.len() as u32).to_be_bytes());
        for line in self.iter() {
            put_bytes(out, line);
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut headers = Self::default();
        for _ in 0..r.u32()? {
            if !headers.push(r.bytes()?) {
                return Err(Malformed("header lines"));
            }
        }
        Ok(headers)
    }

    /// Returns the values of all headers of this name (case-insensitive), without white space around them.
    pub fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.iter().filter_map(move |line| {
            let (found, value) = line.split_at_checked(name.len())?;
            let value = value.strip_prefix(b":")?;
            found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
        })
    }

    /// Returns the value of the first header of this name (case-insensitive).
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let mut start = 0;
        for &end in &self.ends {
            let line = &self.lines[start..end as usize];
            start = end as usize;
            if let Some((found, value)) = line.split_at_checked(name.len())
                && let Some(value) = value.strip_prefix(b":")
                && found.eq_ignore_ascii_case(name)
            {
                return Some(value.trim_ascii());
            }
        }
        None
    }
}

/// The head of a response, with the times that its cache decided on.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The reason phrase.
    pub reason: Vec<u8>,
    /// The header lines as they were stored.
    pub headers: Headers,
    /// When the origin made the response, seconds since 1970: its age is counted from here.
    pub t_origin: f64,
    /// Seconds from [`Self::t_origin`] on for which it is fresh.
    pub ttl: f32,
    /// Seconds after that for which it may be served while it is revalidated, or while the origin is down.
    pub grace: f32,
    /// Seconds after that for which it is kept for revalidation.
    pub keep: f32,
    /// varnishd's gzip attribute, if the body is a gzip file.
    pub gzip_bits: Option<[u8; 32]>,
    /// The flags of varnishd's object that describe the body; the highest bit is not one of them.
    pub flags: u8,
    /// The head as the origin sent it; `None` if it was stored so.
    pub origin: Option<OriginHead>,
}

impl Head {
    /// Returns status, reason and header lines as the origin sent them.
    #[must_use]
    pub fn as_sent(&self) -> (u16, &[u8], &Headers) {
        match &self.origin {
            Some(origin) => (origin.status, &origin.reason, &origin.headers),
            None => (self.status, &self.reason, &self.headers),
        }
    }
}

/// The checksum of a body: XXH3, 64 bits. It detects damage, not tampering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodySum(pub u64);

/// Computes a [`BodySum`] piece by piece.
#[derive(Clone, Default)]
pub struct Summer(Box<Xxh3>);

impl std::fmt::Debug for Summer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Summer")
    }
}

impl Summer {
    /// Makes the state of no bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the checksum of all bytes so far.
    #[must_use]
    pub fn sum(&self) -> BodySum {
        BodySum(self.0.digest())
    }
}
