//! The limits of every length that a peer may announce, each with its reason.

/// Longest URI, in bytes: what v0.1 accepts; longer ones end the connection there.
pub const MAX_URI: usize = 4096;

/// Longest URI that is safe to send to a v0.1 server, in bytes. It silently cuts *store path + URI* beyond
/// 1023 bytes, so half of that is left to the store's path, which a client cannot know.
pub const MAX_V01_URI: usize = 512;

/// Longest URI segment that is safe to send to a v0.1 server, in bytes: NAME_MAX of Linux file systems.
pub const MAX_V01_SEGMENT: usize = 255;

/// Longest metadata block of a V1 or V2 response, in bytes: v0.1's own limit.
pub const MAX_METADATA: usize = 1024;

/// Most segments of a V2 segmented response: v0.1's own limit.
pub const MAX_SEGMENTS: usize = 64;

/// Most inline bytes of a V2 segmented response. `copy_len` could announce 64 × 4 GiB, which no client can
/// buffer; an inline segment is meant for heads and short bodies.
pub const MAX_INLINE: usize = 1 << 20;

/// Deepest pipeline that HELLO may ask for or grant: v0.1's own limit.
pub const MAX_PIPELINE: u16 = 1000;

/// Longest payload of an extension frame, in bytes: room for the largest batch of usual URIs and for the
/// largest listing page, small enough to be buffered per connection.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Most descriptors in one reply: the kernel's SCM_MAX_FD.
pub const MAX_FDS: usize = 253;

/// Most operations of one BATCH: about as many as one reply has descriptors for.
pub const MAX_BATCH: usize = 256;

/// Most objects of one RELEASE: its `count` is a u16.
pub const MAX_RELEASE: usize = u16::MAX as usize;

/// Longest LIST cursor, in bytes: a cursor may hold a URI and two integers.
pub const MAX_CURSOR: usize = MAX_URI + 16;

/// Longest message of a failed extension reply, in bytes: a line of a log.
pub const MAX_MESSAGE: usize = 256;

/// Most tiers that a store may have: two exist; the rest is room for later.
pub const MAX_TIERS: usize = 8;
