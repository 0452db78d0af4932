//! How much is asked of a limit at a time.

/// varnishd's parameters for storage: `fetch_chunksize` and `fetch_maxchunksize`, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLimits {
    /// The default and the smallest unit.
    pub chunk: usize,
    /// The largest piece.
    pub max: usize,
}

/// As much of `want` as there is, by halves down to a chunk; evicts only when there is not even that.
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
