//! What a body is published as, so that others find it.

pub use objmapper_proto::ext::Fence;

/// A record to be.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Under which URI.
    pub uri: &'a [u8],
    /// What follows the body in its file.
    pub tail: &'a [u8],
    /// When the store may drop it, milliseconds since 1970; 0 is never.
    pub expires: i64,
    /// The URI's fence before the fetch.
    pub fence: Fence,
}
