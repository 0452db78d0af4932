//! The parameters under which a body is published as a record, so that other caches find it.

pub use objmapper_proto::ext::Fence;

/// A record to publish.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// The URI to publish it under.
    pub uri: &'a [u8],
    /// The bytes that follow the body in its file.
    pub tail: &'a [u8],
    /// When the store may drop it, milliseconds since 1970; 0 is never.
    pub expires: i64,
    /// The URI's fence as it was read before the fetch; the commit is refused if it has moved.
    pub fence: Fence,
}
