//! The key of a request: its text, and the canonical URI of its record.

use objmapper_client::{ObjUri, UriSpace};

/// The key of a request. Different requests have different keys.
///
/// Its text begins with the prefix of its space. The record contains the text, so that two keys whose URIs are the same
/// hash are told apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    text: Vec<u8>,
    uri: ObjUri<'static>,
}

/// The first component of the URI of a request's key.
const REQUEST: &[u8] = b"r";
/// The first component of the URI of a text that does not begin with the prefix.
const OTHER: &[u8] = b"u";

impl Key {
    /// Makes the key of a request. `prefix` is the space's, without a slash at its end.
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

    /// Makes the key with this text; for one from [`Self::text`], the same key. A scheme before the prefix is left out.
    pub(crate) fn of_text(space: &UriSpace, prefix: &[u8], text: &[u8]) -> Self {
        let below = |text: &[u8]| text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(b"/"));
        let text = match without_scheme(text) {
            bare if !below(text) && below(bare) => bare,
            _ => text,
        };
        let rest = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(b"/"));
        let uri = match rest {
            Some(rest) => {
                // The host contains neither, so that every text is divided in one way only.
                let at = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
                let (host, url) = rest.split_at(at);
                space.uri(&[REQUEST, host, url])
            }
            None => space.uri(&[OTHER, text]),
        };
        Self { text: text.to_vec(), uri }
    }

    /// Returns the text: the prefix, a slash, the host and the URL. The host, and the part added before it, are
    /// percent-encoded as far as necessary.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Returns the URI in the store.
    #[must_use]
    pub fn uri(&self) -> &ObjUri<'static> {
        &self.uri
    }
}

/// Returns the part of a text after a scheme (RFC 3986, section 3.1) and `://`; all of it if it has no scheme.
pub(crate) fn without_scheme(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')));
    match end.map(|end| text.split_at(end)) {
        Some(([first, ..], rest)) if first.is_ascii_alphabetic() => rest.strip_prefix(b"://").unwrap_or(text),
        _ => text,
    }
}

/// Appends `part`, with the bytes that are not part of a host's name percent-encoded.
fn encode(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']') {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const PREFIX: &[u8] = b"example.com";

    fn space() -> UriSpace {
        UriSpace::new(&[b"example.com"]).unwrap()
    }

    #[test]
    fn different_requests_have_different_uris() {
        let space = space();
        let long = vec![b'x'; 5000];
        let parts: Vec<&[u8]> = vec![
            b"", b"a", b"/", b"/a", b"//a", b"/a/", b"/a?b", b"?a", b"a/b", b"a@b", b"@", b"%", b"%2F", b"..", b"\0",
            &long,
        ];
        let mut seen = HashMap::new();
        for host in &parts {
            for url in &parts {
                for extra in std::iter::once(None).chain(parts.iter().map(|extra| Some(*extra))) {
                    let key = Key::of_request(&space, PREFIX, host, url, extra);
                    let request = (*host, *url, extra);
                    let former = seen.insert(key.uri().as_bytes().to_vec(), request);
                    assert_eq!(former, None, "{request:?}");
                    assert!(key.uri().check_v01().is_ok());
                    assert_eq!(Key::of_text(&space, PREFIX, key.text()), key);
                }
            }
        }
        // Nor a text that is none of these.
        for text in [
            &b"example.com"[..],
            b"example.comx/a",
            b"cdn://example.com",
            b"cdn:/example.com/a",
            b"/a",
            b"",
            b"r",
            b"u/a",
        ] {
            let key = Key::of_text(&space, PREFIX, text);
            assert_eq!(key.text(), text);
            assert_eq!(seen.insert(key.uri().as_bytes().to_vec(), (text, b"", None)), None, "{text:?}");
        }
    }

    #[test]
    fn as_an_operator_sees_them() {
        let key = Key::of_request(&space(), PREFIX, b"www.example.org:80", b"/video.mp4?q=1", None);
        assert_eq!(key.text(), b"example.com/www.example.org:80/video.mp4?q=1");
        assert_eq!(key.uri().as_bytes(), b"/example.com/r/www.example.org%3A80/%2Fvideo.mp4%3Fq%3D1");
        let key = Key::of_request(&space(), PREFIX, b"h/..", b"*", Some(b"de"));
        assert_eq!(key.text(), b"example.com/de@h%2F..?*");
        let shared = |text: &[u8]| Key::of_text(&space(), PREFIX, text);
        assert_eq!(shared(b"cdn://example.com/shared/a"), shared(b"example.com/shared/a"));
    }
}
