//! From a request to the canonical URI of its record.

use objmapper_client::{ObjUri, UriSpace};

/// The name of what a request asks for: two different requests never have the same.
///
/// Its text begins with the prefix of its space, and is what the record itself holds, so that also two texts whose URI
/// is a hash are told apart for certain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    text: Vec<u8>,
    uri: ObjUri<'static>,
}

/// What stands before the parts of a request's key.
const REQUEST: &[u8] = b"r";
/// What stands before a text that does not begin with the prefix.
const OTHER: &[u8] = b"u";

impl Key {
    /// Of a request. `prefix` is the space's, without a slash at its end.
    pub(crate) fn of_request(space: &UriSpace, prefix: &[u8], host: &[u8], url: &[u8], extra: Option<&[u8]>) -> Self {
        let mut text = Vec::with_capacity(prefix.len() + host.len() + url.len() + 2);
        text.extend_from_slice(prefix);
        text.push(b'/');
        if let Some(extra) = extra {
            encode(extra, &mut text);
            text.push(b'@');
        }
        encode(host, &mut text);
        if !url.starts_with(b"/") {
            text.push(b'?');
        }
        text.extend_from_slice(url);
        Self::of_text(space, prefix, &text)
    }

    /// Of a text: of one that [`Self::text`] gave, the same key.
    pub(crate) fn of_text(space: &UriSpace, prefix: &[u8], text: &[u8]) -> Self {
        let rest = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(b"/"));
        let uri = match rest {
            Some(rest) => {
                // What is before it holds neither, so that every text is divided in one way only.
                let at = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
                let (host, url) = rest.split_at(at);
                space.uri(&[REQUEST, host, url])
            }
            None => space.uri(&[OTHER, text]),
        };
        Self { text: text.to_vec(), uri }
    }

    /// The text: the prefix, a slash, the host and the URL, where the host (and what was added before it) is
    /// percent-encoded as far as it must be.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The URI in the store.
    #[must_use]
    pub fn uri(&self) -> &ObjUri<'static> {
        &self.uri
    }
}

/// Percent-encodes what does not stand in a host's name.
fn encode(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']') {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}
