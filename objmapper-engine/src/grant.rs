//! How much is requested of a limit at a time: the order of attempts of Varnish's own engines
//! (`storage/storage_simple.c`).

/// varnishd's parameters for storage: `fetch_chunksize` and `fetch_maxchunksize`, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLimits {
    /// The default size of a piece, and the smallest that is asked for.
    pub chunk: usize,
    /// The largest piece.
    pub max: usize,
}

/// Allocates `want` bytes, or the largest half, quarter and so on down to a chunk that the limit allows; calls `nuke`
/// to evict only if it does not allow a chunk. Returns the bytes allocated; `None` if nothing can be evicted any more.
pub(crate) fn take(
    want: usize,
    limits: ChunkLimits,
    mut alloc: impl FnMut(usize) -> bool,
    nuke: &mut dyn FnMut() -> bool,
) -> Option<usize> {
    let want = want.min(limits.max).max(1);
    loop {
        let mut size = want;
        loop {
            if alloc(size) {
                return Some(size);
            }
            if size <= limits.chunk {
                break;
            }
            size /= 2;
        }
        if !nuke() {
            return None;
        }
    }
}
