//! URIs: an [`ObjUri`] is checked once, when it is made, and is canonical from then on.

use std::borrow::{Borrow, Cow};
use std::fmt;

use crate::limits::{MAX_URI, MAX_V01_SEGMENT, MAX_V01_URI};

/// A canonical objmapper URI: 1 to [`MAX_URI`] bytes, begins with `/`, has no NUL and no segment that is
/// empty, `.` or `..`.
///
/// So two different URIs never name one file and none escapes a store's directory, also in servers that
/// use URIs as paths without looking at them.
///
/// ```
/// use objmapper_proto::{ObjUri, UriError};
/// assert_eq!(ObjUri::parse(b"/cdn/a")?.as_bytes(), b"/cdn/a");
/// assert_eq!(ObjUri::parse(b"/../etc"), Err(UriError::DotSegment));
/// # Ok::<(), UriError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjUri<'a>(Cow<'a, [u8]>);

/// The rule of [`ObjUri`] that bytes break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// No byte at all.
    #[error("empty")]
    Empty,
    /// Longer than the limit.
    #[error("{len} bytes long, the limit is {limit}")]
    TooLong {
        /// Length of the bytes.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// It does not begin with `/`.
    #[error("does not begin with /")]
    NoSlash,
    /// A NUL byte.
    #[error("holds a NUL byte")]
    Nul,
    /// Two slashes in a row, or one at the end.
    #[error("has an empty segment")]
    EmptySegment,
    /// A segment `.` or `..`.
    #[error("has a segment . or ..")]
    DotSegment,
    /// A segment that is no file name for a v0.1 server.
    #[error("has a segment of {len} bytes, the limit is {limit}")]
    LongSegment {
        /// The segment's length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// `/list`, `/backend/…` or `/delete/…`, which v0.1 takes for commands.
    #[error("is reserved by protocol v0.1")]
    ReservedName,
}

impl<'a> ObjUri<'a> {
    /// Takes bytes that are a canonical URI.
    ///
    /// # Errors
    /// The first rule that they break.
    pub fn parse(bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self, UriError> {
        let bytes = bytes.into();
        check(&bytes)?;
        Ok(Self(bytes))
    }

    /// Returns the URI's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns a URI that owns its bytes.
    #[must_use]
    pub fn into_owned(self) -> ObjUri<'static> {
        ObjUri(Cow::Owned(self.0.into_owned()))
    }

    /// Returns the same URI, borrowed.
    #[must_use]
    pub fn borrowed(&self) -> ObjUri<'_> {
        ObjUri(Cow::Borrowed(&self.0))
    }

    /// Checks that a v0.1 server interprets the URI correctly: it is short enough for the server's paths, and no reserved name.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check_v01(&self) -> Result<(), UriError> {
        if self.0.len() > MAX_V01_URI {
            return Err(UriError::TooLong { len: self.0.len(), limit: MAX_V01_URI });
        }
        let mut segments = self.0[1..].split(|&b| b == b'/');
        if let Some(long) = segments.clone().find(|s| s.len() > MAX_V01_SEGMENT) {
            return Err(UriError::LongSegment { len: long.len(), limit: MAX_V01_SEGMENT });
        }
        match segments.next() {
            Some(b"list" | b"backend" | b"delete") => Err(UriError::ReservedName),
            _ => Ok(()),
        }
    }
}

fn check(bytes: &[u8]) -> Result<(), UriError> {
    let Some((first, rest)) = bytes.split_first() else {
        return Err(UriError::Empty);
    };
    if bytes.len() > MAX_URI {
        return Err(UriError::TooLong { len: bytes.len(), limit: MAX_URI });
    }
    if *first != b'/' {
        return Err(UriError::NoSlash);
    }
    if bytes.contains(&0) {
        return Err(UriError::Nul);
    }
    for segment in rest.split(|&b| b == b'/') {
        match segment {
            b"" => return Err(UriError::EmptySegment),
            b"." | b".." => return Err(UriError::DotSegment),
            _ => {}
        }
    }
    Ok(())
}

impl Borrow<[u8]> for ObjUri<'_> {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for ObjUri<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ObjUri<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for ObjUri<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl TryFrom<String> for ObjUri<'static> {
    type Error = UriError;

    fn try_from(text: String) -> Result<Self, UriError> {
        Self::parse(text.into_bytes())
    }
}

impl<'a> TryFrom<&'a str> for ObjUri<'a> {
    type Error = UriError;

    fn try_from(text: &'a str) -> Result<Self, UriError> {
        Self::parse(text.as_bytes())
    }
}
