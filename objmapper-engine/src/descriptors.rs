//! How many descriptors of cached bodies may stay open: what a process may have is for its clients and origins first.

use nix::sys::resource::{Resource, getrlimit};

use crate::log;

/// Kept without being asked: this part of what the process may have open.
const DEFAULT_PART: u64 = 4;
/// But not more than this.
const MOST_BY_DEFAULT: u64 = 16 << 10;
/// Kept at most, whatever is asked: this part.
const LARGEST_PART: u64 = 2;

/// What a storage named `ident` keeps, of the `fds` that it was asked to. Less than that is logged.
pub(crate) fn kept(ident: &str, asked: Option<usize>) -> usize {
    // Without an answer there is no limit to keep.
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let kept = within(asked, limit);
    if let Some(asked) = asked.filter(|asked| *asked > kept) {
        log::line(
            ident,
            &format!(
                "fds={asked}: varnishd may have {limit} files open, of which clients and backends need some, so that {kept} \
                 are kept; raise the limit (ulimit -n, LimitNOFILE= in the unit) or lower fds"
            ),
        );
    }
    kept
}

fn within(asked: Option<usize>, limit: u64) -> usize {
    let kept = match asked {
        Some(asked) => (asked as u64).min(limit / LARGEST_PART),
        None => (limit / DEFAULT_PART).min(MOST_BY_DEFAULT),
    };
    usize::try_from(kept).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_what_the_process_may_have() {
        // A shell, this varnishd's unit, no limit.
        assert_eq!([1024, 131_072, u64::MAX].map(|limit| within(None, limit)), [256, 16_384, 16_384]);
        assert_eq!([1024, 131_072, u64::MAX].map(|limit| within(Some(1000), limit)), [512, 1000, 1000]);
        assert_eq!([within(None, 0), within(Some(5), 1)], [1, 1]);
    }
}
