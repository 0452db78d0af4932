//! Makes URIs from arbitrary parts. The URIs are canonical and bounded, and different lists of parts have different URIs.

use objmapper_proto::limits::{MAX_V01_SEGMENT, MAX_V01_URI};
use objmapper_proto::{ObjUri, UriError};
use sha2::{Digest, Sha256};

/// The encoding of an empty part. No percent-encoded text is a lone `%`.
const EMPTY: &[u8] = b"%";

/// The segment before the hash of parts that are too long. `h` is not a hex digit, so that no part has this
/// encoding.
const HASHED: &[u8] = b"/%h/";

/// Maximum number of bytes that [`UriSpace::uri`] adds to the prefix.
const HASHED_LEN: usize = HASHED.len() + 64;

/// A part of the name space, from which URIs are made.
///
/// ```
/// use objmapper_client::UriSpace;
///
/// let space = UriSpace::new(&[b"cdn", b"example.com"])?;
/// assert_eq!(space.uri(&[b"GET", b"/video.mp4?q=1"]).as_bytes(), b"/cdn/example.com/GET/%2Fvideo.mp4%3Fq%3D1");
/// assert_eq!(space.uri(&[b"..", b""]).as_bytes(), b"/cdn/example.com/%2E%2E/%");
///
/// let long = vec![b'x'; 100_000];
/// assert!(space.uri(&[&long]).as_bytes().len() < 100);
/// # Ok::<(), objmapper_client::UriError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UriSpace {
    prefix: Vec<u8>,
}

impl UriSpace {
    /// Makes the part of the name space whose URIs begin with `parts`.
    ///
    /// # Errors
    /// If `parts` is empty, or too long to leave room for the rest: a prefix is never hashed, so that
    /// it can be listed.
    pub fn new(parts: &[&[u8]]) -> Result<Self, UriError> {
        let mut prefix = Vec::new();
        for part in parts {
            let encoded = encode(part);
            if encoded.len() > MAX_V01_SEGMENT {
                return Err(UriError::LongSegment { len: encoded.len(), limit: MAX_V01_SEGMENT });
            }
            prefix.push(b'/');
            prefix.extend(encoded);
        }
        if prefix.is_empty() {
            return Err(UriError::Empty);
        }
        let limit = MAX_V01_URI - HASHED_LEN;
        if prefix.len() > limit {
            return Err(UriError::TooLong { len: prefix.len(), limit });
        }
        // A v0.1 store takes these names for commands. No other part has this encoding.
        if matches!(prefix.split(|&b| b == b'/').nth(1), Some(b"list" | b"backend" | b"delete")) {
            let first = format!("%{:02X}", prefix[1]);
            prefix.splice(1..2, first.into_bytes());
        }
        Ok(Self { prefix })
    }

    /// Returns the prefix of all its URIs, for [`Client::list`](crate::Client::list). It ends with `/`.
    #[must_use]
    pub fn prefix(&self) -> Vec<u8> {
        [&self.prefix[..], b"/"].concat()
    }

    /// Returns the URI of `parts`, of at most [`MAX_V01_URI`] bytes: each part is percent-encoded, or all of them are hashed
    /// (SHA-256) if that is too long for a v0.1 store.
    #[must_use]
    pub fn uri(&self, parts: &[&[u8]]) -> ObjUri<'static> {
        let mut uri = self.prefix.clone();
        let mut hash = Sha256::new();
        let mut fits = true;
        for part in parts {
            // The lengths make the hashed bytes unambiguous.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
            if fits && part.len() <= MAX_V01_SEGMENT {
                let encoded = encode(part);
                fits = encoded.len() <= MAX_V01_SEGMENT && uri.len() + 1 + encoded.len() <= MAX_V01_URI;
                uri.push(b'/');
                uri.extend(encoded);
            } else {
                fits = false;
            }
        }
        if !fits {
            uri.truncate(self.prefix.len());
            uri.extend_from_slice(HASHED);
            for byte in hash.finalize() {
                uri.extend_from_slice(format!("{byte:02x}").as_bytes());
            }
        }
        canonical(uri)
    }
}

/// Percent-encodes all bytes except the unreserved characters of RFC 3986, section 2.3.
fn encode(part: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(part.len());
    match part {
        b"" => return EMPTY.to_vec(),
        // Dot segments have another meaning in a path.
        b"." | b".." => return b"%2E".repeat(part.len()),
        _ => {}
    }
    for &byte in part {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    out
}

/// Makes a URI of encoded segments, which are neither empty nor dot segments: it is always canonical.
fn canonical(uri: Vec<u8>) -> ObjUri<'static> {
    match ObjUri::parse(uri) {
        Ok(uri) => uri,
        Err(why) => unreachable!("encoded parts are canonical: {why}"),
    }
}
