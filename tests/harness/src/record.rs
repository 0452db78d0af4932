//! A record as bytes, by `objmapper-records/RECORD.md`, for tests that publish what the director never would.
//!
//! Every field is kept as the bytes that it has in the file, so that a test can put anything there; lengths and checksums
//! are right again when the record is [encoded](Record::encode), so that only the field itself is wrong.

use anyhow::{Context, Result, ensure};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a trailer.
const TRAILER: usize = 48;
/// Bytes of the trailer that its checksum covers.
const COVERED: usize = 32;

/// A record that is no index, renewal or invalidation log.
#[derive(Debug, Clone)]
pub struct Record {
    /// The body.
    pub body: Vec<u8>,
    /// The key's text.
    pub text: Vec<u8>,
    /// The Vary spec and values, if there are.
    pub vary: Option<(Vec<u8>, Vec<u8>)>,
    /// The invalidation log's nonce (16 bytes) and sequence (u64).
    pub mark: [u8; 24],
    /// When the origin made it.
    pub t_origin: f64,
    /// ttl, grace and keep.
    pub durations: [f32; 3],
    /// varnishd's object flags.
    pub flags: u8,
    /// varnishd's gzip attribute.
    pub gzip_bits: Option<[u8; 32]>,
    /// The status.
    pub status: u16,
    /// The reason.
    pub reason: Vec<u8>,
    /// The header lines.
    pub lines: Vec<Vec<u8>>,
    /// What stands behind the header lines: fields of a later version.
    pub rest: Vec<u8>,
    /// The trailer's first twelve bytes: magic, version, kind, flags. The checksum of the body is left out if the flag for
    /// it is not set.
    pub trailer: [u8; 12],
}

/// Takes fields from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n).context("the head is shorter than its fields say")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        let len = u32::from_be_bytes(self.array()?);
        Ok(self.take(len as usize)?.to_vec())
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

impl Record {
    /// Reads a whole file.
    pub fn decode(file: &[u8]) -> Result<Self> {
        let (rest, trailer) = file.split_last_chunk::<TRAILER>().context("shorter than a trailer")?;
        ensure!(trailer.starts_with(b"OBJMRECD") && trailer[10] == 1, "no record");
        let head_len = u32::from_be_bytes(trailer[12..16].try_into()?) as usize;
        let body_len = rest.len().checked_sub(head_len).context("shorter than its head")?;
        let (body, head) = rest.split_at(body_len);
        let mut r = Reader(head);
        let text = r.bytes()?;
        let vary = if r.array()? == [1] { Some((r.bytes()?, r.bytes()?)) } else { None };
        let mark = r.array()?;
        let t_origin = f64::from_be_bytes(r.array()?);
        let durations =
            [f32::from_be_bytes(r.array()?), f32::from_be_bytes(r.array()?), f32::from_be_bytes(r.array()?)];
        let [flags] = r.array()?;
        let gzip_bits = if r.array()? == [1] { Some(r.array()?) } else { None };
        let status = u16::from_be_bytes(r.array()?);
        let reason = r.bytes()?;
        let count = u32::from_be_bytes(r.array()?);
        let lines = (0..count).map(|_| r.bytes()).collect::<Result<_>>()?;
        let trailer = trailer[..12].try_into()?;
        let (body, rest) = (body.to_vec(), r.0.to_vec());
        Ok(Self { body, text, vary, mark, t_origin, durations, flags, gzip_bits, status, reason, lines, rest, trailer })
    }

    /// The whole file, without a checksum of the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut head = Vec::new();
        put(&mut head, &self.text);
        head.push(self.vary.is_some().into());
        if let Some((spec, values)) = &self.vary {
            put(&mut head, spec);
            put(&mut head, values);
        }
        head.extend_from_slice(&self.mark);
        head.extend_from_slice(&self.t_origin.to_be_bytes());
        self.durations.iter().for_each(|d| head.extend_from_slice(&d.to_be_bytes()));
        head.push(self.flags);
        head.push(self.gzip_bits.is_some().into());
        head.extend(self.gzip_bits.iter().flatten());
        head.extend_from_slice(&self.status.to_be_bytes());
        put(&mut head, &self.reason);
        head.extend_from_slice(&(self.lines.len() as u32).to_be_bytes());
        self.lines.iter().for_each(|line| put(&mut head, line));
        head.extend_from_slice(&self.rest);

        let mut covered = self.trailer.to_vec();
        covered[11] &= !1;
        covered.extend_from_slice(&(head.len() as u32).to_be_bytes());
        covered.extend_from_slice(&(self.body.len() as u64).to_be_bytes());
        covered.extend_from_slice(&[0; 8]);
        debug_assert_eq!(covered.len(), COVERED);
        let sum = xxh3_128(&[&head[..], &covered].concat()).to_be_bytes();
        [&self.body[..], &head, &covered, &sum].concat()
    }
}
