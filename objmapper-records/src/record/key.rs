//! The key of a request: its digest, its text, and the canonical URI of its record.
//!
//! A key is one of three:
//!
//! | key | digest | text | URI |
//! |---|---|---|---|
//! | of a plain request | SHA-256 of URL, 0, host, 0 | `<prefix>/<host><url>` | `<space>/r/<host>/<url>` |
//! | of a digest | the digest | `<prefix>/@<64 hex digits>` | `<space>/d/<64 hex digits>` |
//! | of a text of the user's own | SHA-256 of the text | the text | `<space>/u/<text>` |
//!
//! A request whose cache has made a digest of its own, and not that of the plain request, has the key of its digest:
//! whatever the URL is when the request is looked up or purged, its digest finds the same record. Purges name the
//! digest, and so reach both keys of a digest.

use objmapper_client::{ObjUri, UriSpace};
use sha2::{Digest, Sha256};

use crate::record::vary::hex;

/// The key of a request. Different requests have different keys.
///
/// Its text begins with the prefix of its space. The record contains the text, so that two keys whose URIs are the same
/// hash are told apart. Keys with the same text have the same digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    text: Vec<u8>,
    digest: [u8; 32],
    uri: ObjUri<'static>,
}

/// The first component of the URI of a plain request's key.
const REQUEST: &[u8] = b"r";
/// The first component of the URI of a digest.
const DIGEST: &[u8] = b"d";
/// The first component of the URI of a text that does not begin with the prefix.
const OTHER: &[u8] = b"u";

impl Key {
    /// Makes the key of a request. `prefix` is the space's, without a slash at its end. `digest` is what the cache knows
    /// the request by; `None` if it is not known yet. A request without a host has no digest of its own.
    pub(crate) fn of_request(
        space: &UriSpace,
        prefix: &[u8],
        host: Option<&[u8]>,
        url: &[u8],
        digest: Option<&[u8; 32]>,
    ) -> Self {
        let plain = digest_of(host.unwrap_or_default(), url);
        if let Some(digest) = digest.filter(|digest| host.is_none() || **digest != plain) {
            return Self::of_digest(space, prefix, digest);
        }
        let host = host.unwrap_or_default();
        let mut text = Vec::with_capacity(prefix.len() + host.len() + url.len() + 2);
        text.extend_from_slice(prefix);
        text.push(b'/');
        encode(host, &mut text);
        if !url.starts_with(b"/") {
            text.push(b'?');
        }
        text.extend_from_slice(url);
        let uri = uri_of(space, &text[prefix.len() + 1..]);
        Self { text, digest: plain, uri }
    }

    /// Makes the key of a digest.
    pub(crate) fn of_digest(space: &UriSpace, prefix: &[u8], digest: &[u8; 32]) -> Self {
        let name = hex(digest);
        Self { text: [prefix, b"/@", &name].concat(), digest: *digest, uri: space.uri(&[DIGEST, &name]) }
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
                if let Some(digest) = rest.strip_prefix(b"@").and_then(unhex) {
                    return Self::of_digest(space, prefix, &digest);
                }
                let (host, url) = divide(rest);
                // A question mark may stand before a URL that does not begin with a slash.
                let url = if url.starts_with(b"?") { &url[1..] } else { url };
                if let Some(host) = decode(host) {
                    let key = Self::of_request(space, prefix, Some(&host), url, None);
                    if key.text == text {
                        return key;
                    }
                }
                uri_of(space, rest)
            }
            None => space.uri(&[OTHER, text]),
        };
        Self { text: text.to_vec(), digest: Sha256::digest(text).into(), uri }
    }

    /// Returns the text: the prefix, a slash, and the host, percent-encoded as far as necessary, and the URL; or a digest.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Returns the digest, which a purge of the key has in the invalidation log. That of a request is what its cache
    /// knows the request by.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Returns the URI in the store.
    #[must_use]
    pub fn uri(&self) -> &ObjUri<'static> {
        &self.uri
    }
}

/// Returns the digest of a plain request: what a cache makes of it that is not told otherwise.
fn digest_of(host: &[u8], url: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [url, host] {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().into()
}

/// Divides the part of a text behind the prefix into host and URL. The host contains neither `/` nor `?`, so that every
/// text is divided in one way only.
fn divide(rest: &[u8]) -> (&[u8], &[u8]) {
    let at = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    rest.split_at(at)
}

fn uri_of(space: &UriSpace, rest: &[u8]) -> ObjUri<'static> {
    let (host, url) = divide(rest);
    space.uri(&[REQUEST, host, url])
}

/// Decodes 64 lower-case hex digits.
fn unhex(digits: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// Decodes what [`encode`] has made. `None`: it is nothing of the kind.
fn decode(part: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    Some(out)
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
    use std::collections::{HashMap, HashSet};

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
        let (mut seen, mut digests) = (HashMap::new(), HashSet::new());
        for host in &parts {
            for url in &parts {
                let key = Key::of_request(&space, PREFIX, Some(host), url, None);
                let request = (*host, *url);
                let former = seen.insert(key.uri().as_bytes().to_vec(), request);
                assert_eq!(former, None, "{request:?}");
                // No HTTP request contains a NUL, by which the digest divides.
                let has_nul = host.contains(&0) || url.contains(&0);
                assert!(has_nul || digests.insert(key.digest()), "{request:?}");
                assert!(key.uri().check_v01().is_ok());
                assert_eq!(Key::of_text(&space, PREFIX, key.text()), key);
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
            assert_eq!(seen.insert(key.uri().as_bytes().to_vec(), (text, b"")), None, "{text:?}");
        }
    }

    #[test]
    fn as_an_operator_sees_them() {
        let key = Key::of_request(&space(), PREFIX, Some(b"www.example.org:80"), b"/video.mp4?q=1", None);
        assert_eq!(key.text(), b"example.com/www.example.org:80/video.mp4?q=1");
        assert_eq!(key.uri().as_bytes(), b"/example.com/r/www.example.org%3A80/%2Fvideo.mp4%3Fq%3D1");
        let key = Key::of_request(&space(), PREFIX, Some(b"h/.."), b"*", None);
        assert_eq!(key.text(), b"example.com/h%2F..?*");
        // With a digest of its own the URL is nothing to it.
        for url in [&b"/a"[..], b"/b"] {
            let key = Key::of_request(&space(), PREFIX, Some(b"www"), url, Some(&[0xab; 32]));
            assert_eq!(key.text(), format!("example.com/@{}", "ab".repeat(32)).as_bytes());
            assert_eq!(key.uri().as_bytes(), format!("/example.com/d/{}", "ab".repeat(32)).as_bytes());
            assert_eq!((key.digest(), Key::of_text(&space(), PREFIX, key.text())), ([0xab; 32], key.clone()));
        }
        // Its own digest is that of the plain request.
        let plain = Key::of_request(&space(), PREFIX, Some(b"www"), b"/a", None);
        assert_eq!(Key::of_request(&space(), PREFIX, Some(b"www"), b"/a", Some(&plain.digest())), plain);
        // Without a host a digest says more than the URL.
        let digest = Key::of_request(&space(), PREFIX, None, b"/a", None).digest;
        assert!(Key::of_request(&space(), PREFIX, None, b"/a", Some(&digest)).text().contains(&b'@'));
        let shared = |text: &[u8]| Key::of_text(&space(), PREFIX, text);
        assert_eq!(shared(b"cdn://example.com/shared/a"), shared(b"example.com/shared/a"));
    }
}
