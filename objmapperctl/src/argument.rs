//! Arguments that name an object: URIs, URLs, keys.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use objmapper_client::ObjUri;
use objmapper_records::{Inspector, Key, RequestView};

use crate::failure::Failure;
use crate::options::Target;
use crate::text::printable;

/// Checks a URI.
pub(crate) fn uri(text: &OsStr) -> Result<ObjUri<'static>, Failure> {
    let bytes = text.as_bytes();
    ObjUri::parse(bytes.to_vec()).map_err(|why| {
        Failure::Usage(format!(
            "{}: no URI: {why}; a URI begins with a slash, as 'objmapperctl list' prints it",
            printable(bytes)
        ))
    })
}

/// Returns what the URIs of a listing begin with.
pub(crate) fn uri_prefix(text: Option<&OsStr>) -> Result<Vec<u8>, Failure> {
    match text.map(OsStrExt::as_bytes).unwrap_or_default() {
        bytes if bytes.is_empty() || bytes.starts_with(b"/") => Ok(bytes.to_vec()),
        bytes => {
            Err(Failure::Usage(format!("{0}: no URI begins with it; give a slash first, as in /{0}", printable(bytes))))
        }
    }
}

/// Returns the key of a URL, or of a key's text.
pub(crate) fn key(inspector: &Inspector, text: &OsStr, is_key: bool) -> Result<Key, Failure> {
    let bytes = text.as_bytes();
    if is_key {
        return Ok(inspector.key_from_text(bytes));
    }
    let url = ["http://", "https://"].iter().find_map(|scheme| {
        let (first, rest) = bytes.split_at_checked(scheme.len())?;
        first.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    });
    let url = url.unwrap_or(bytes);
    let host = url.split(|b| matches!(b, b'/' | b'?')).next().unwrap_or_default();
    if host.is_empty() || host.contains(&b'@') {
        return Err(Failure::Usage(format!(
            "{}: no URL: it has no host, or a user; give one such as www.example.org/a, with the Host that the caches see",
            printable(bytes)
        )));
    }
    // A client asks for / where a URL has no path.
    let url = if url.len() == host.len() { [url, b"/"].concat() } else { url.to_vec() };
    Ok(inspector.key(&url))
}

impl Target {
    /// Returns the URI that is meant.
    pub(crate) fn uri(&self, inspector: &Inspector) -> Result<ObjUri<'static>, Failure> {
        if !self.key && self.name.as_bytes().starts_with(b"/") {
            return uri(&self.name);
        }
        Ok(key(inspector, &self.name, self.key)?.uri().clone())
    }
}

/// The request that a record would answer: its URL from the record's key, its headers from the command line.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    url: Vec<u8>,
    headers: &'a [(String, String)],
}

impl<'a> Request<'a> {
    /// Makes the request for the key with this text.
    pub(crate) fn new(text: &[u8], prefix: &[u8], headers: &'a [(String, String)]) -> Self {
        let rest = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(b"/")).unwrap_or(text);
        let url = rest.iter().position(|b| matches!(b, b'/' | b'?')).map_or(rest, |at| &rest[at..]);
        Self { url: url.to_vec(), headers }
    }
}

impl RequestView for Request<'_> {
    fn url(&self) -> &[u8] {
        &self.url
    }

    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        let found = self.headers.iter().find(|(header, _)| header.as_bytes().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_bytes())
    }
}
