//! The encoding of the head of a record, and of a renewal (`RECORD.md`, "Heads"). A decoded head is validated: it can
//! be passed to varnishd.

use objmapper_client::{ObjUri, UriSpace};
use sha2::{Digest, Sha256};

use crate::record::bytes::{Malformed, Reader, put_bytes};
use crate::record::head::{Head, Headers};
use crate::record::origin::OriginHead;
use crate::record::vary::{VaryKey, hex};

/// A bit in the byte of a head's flags: the publisher has recorded every flag of the body. Older publishers, which did
/// not record whether the body was parsed for ESI, do not set it.
const FLAGS_KNOWN: u8 = 0x80;

/// The optional field with the tags.
const FIELD_TAGS: u8 = 1;
/// The optional field with the head as the origin sent it.
const FIELD_ORIGIN: u8 = 2;

/// A position in an invalidation log: the record is newer than the entries up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The log's nonce.
    pub(crate) nonce: [u8; 16],
    /// The sequence number of the newest entry when the fetch began.
    pub(crate) seq: u64,
}

/// The record that a renewal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) object: u64,
    pub(crate) version: u64,
}

impl Target {
    /// Returns the URI of the renewal of this record, which is at `uri`.
    pub(crate) fn renewal_uri(&self, space: &UriSpace, uri: &ObjUri<'_>) -> ObjUri<'static> {
        let mut hash = Sha256::new();
        for part in [uri.as_bytes(), &self.object.to_be_bytes(), &self.version.to_be_bytes()] {
            // Lengths make it unambiguous.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        space.uri(&[b"n", &hex(&hash.finalize().into())])
    }
}

/// The decoded head of a record or of a renewal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// The record that is renewed; `None` in a record.
    pub(crate) target: Option<Target>,
    /// The key's text.
    pub(crate) text: Vec<u8>,
    /// The values of the headers that the response varies by; `None` if it does not vary.
    pub(crate) vary: Option<VaryKey>,
    pub(crate) mark: Mark,
    pub(crate) head: Head,
    /// True if the publisher has recorded all flags of the body. A record without this is not served.
    pub(crate) flags_known: bool,
    /// The tags, sorted, none twice.
    pub(crate) tags: Vec<Box<[u8]>>,
}

impl Stored {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        if let Some(target) = self.target {
            out.extend_from_slice(&target.object.to_be_bytes());
            out.extend_from_slice(&target.version.to_be_bytes());
        }
        put_bytes(&mut out, &self.text);
        out.push(self.vary.is_some().into());
        if let Some(vary) = &self.vary {
            put_bytes(&mut out, vary.spec());
            put_bytes(&mut out, vary.values());
        }
        out.extend_from_slice(&self.mark.nonce);
        out.extend_from_slice(&self.mark.seq.to_be_bytes());
        let head = &self.head;
        out.extend_from_slice(&head.t_origin.to_be_bytes());
        for duration in [head.ttl, head.grace, head.keep] {
            out.extend_from_slice(&duration.to_be_bytes());
        }
        out.push(head.flags & !FLAGS_KNOWN | if self.flags_known { FLAGS_KNOWN } else { 0 });
        out.push(head.gzip_bits.is_some().into());
        if let Some(bits) = &head.gzip_bits {
            out.extend_from_slice(bits);
        }
        out.extend_from_slice(&head.status.to_be_bytes());
        put_bytes(&mut out, &head.reason);
        head.headers.encode(&mut out);
        if let Some(origin) = &head.origin {
            out.push(FIELD_ORIGIN);
            put_bytes(&mut out, &origin.encode());
        }
        if !self.tags.is_empty() {
            let mut tags = Vec::new();
            for tag in &self.tags {
                put_bytes(&mut tags, tag);
            }
            out.push(FIELD_TAGS);
            put_bytes(&mut out, &tags);
        }
        out
    }

    /// Decodes a head, and [validates](Head::validate) it. `renewal`: it is that of a renewal.
    pub(crate) fn decode(bytes: &[u8], renewal: bool) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let target = if renewal { Some(Target { object: r.u64()?, version: r.u64()? }) } else { None };
        let text = r.bytes()?.to_vec();
        let vary = if r.bool()? { Some(VaryKey::decode(r.bytes()?, r.bytes()?)?) } else { None };
        let mark = Mark { nonce: r.array()?, seq: r.u64()? };
        let (t_origin, ttl, grace, keep) = (r.f64()?, r.f32()?, r.f32()?, r.f32()?);
        let flags = r.u8()?;
        let gzip_bits = if r.bool()? { Some(r.array()?) } else { None };
        let status = r.u16()?;
        let reason = r.bytes()?.to_vec();
        let headers = Headers::decode(&mut r)?;
        let mut origin = None;
        let mut tags = Vec::new();
        while !r.is_empty() {
            let (number, field) = (r.u8()?, r.bytes()?);
            match number {
                FIELD_TAGS => tags = decode_tags(field)?,
                FIELD_ORIGIN => origin = Some(OriginHead::decode(field)?),
                // A newer version's.
                _ => {}
            }
        }
        let (flags, flags_known) = (flags & !FLAGS_KNOWN, flags & FLAGS_KNOWN != 0);
        let head = Head { status, reason, headers, t_origin, ttl, grace, keep, gzip_bits, flags, origin }.clamped();
        head.validate(vary.as_ref())?;
        Ok(Self { target, text, vary, mark, head, flags_known, tags })
    }
}

/// Decodes tags, which are sorted, none twice.
fn decode_tags(field: &[u8]) -> Result<Vec<Box<[u8]>>, Malformed> {
    let mut r = Reader::new(field);
    let mut tags: Vec<Box<[u8]>> = Vec::new();
    while !r.is_empty() {
        let tag = r.bytes()?;
        if tags.last().is_some_and(|former| **former >= *tag) {
            return Err(Malformed("tags"));
        }
        tags.push(tag.into());
    }
    Ok(tags)
}
