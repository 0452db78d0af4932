//! How many descriptors of cached bodies a storage may keep open. The process's limit (RLIMIT_NOFILE) serves clients
//! and backends first; all storages of the process share the rest.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::resource::{Resource, getrlimit};

use crate::log;

/// Without the option `fds`, one part in so many of the process's limit on open files, less what other storages keep,
/// is kept open.
const DEFAULT_PART: u64 = 4;
/// The most that is kept open without the option `fds`.
const MAX_BY_DEFAULT: u64 = 16 << 10;
/// With the option `fds`, at most one part in so many of that limit is kept open.
const MAX_PART: u64 = 2;

/// Descriptors that all storages of this process keep together.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// One storage's descriptors of cached bodies.
pub(crate) struct Share(u64);

impl Share {
    /// Takes a share for the storage `ident`, of `asked` descriptors or by default. A smaller share than `asked` is
    /// logged.
    pub(crate) fn take(ident: &str, asked: Option<usize>) -> Share {
        // If getrlimit(2) fails, no limit is assumed.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let asked = asked.map(|asked| asked as u64);
        let kept = within(asked, limit.saturating_sub(KEPT.load(Relaxed)));
        KEPT.fetch_add(kept, Relaxed);
        if let Some(asked) = asked.filter(|asked| *asked > kept) {
            log::line(
                ident,
                &format!(
                    "fds={asked}: varnishd may have {limit} files open, which clients, backends and other storages need \
                     too, so that {kept} are kept; raise the limit (ulimit -n, LimitNOFILE= in the unit) or lower fds"
                ),
            );
        }
        Share(kept)
    }

    /// Returns the number of descriptors in this share; at least 1.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.0, Relaxed);
    }
}

/// Returns the number of descriptors that a storage may keep of the `left` ones.
fn within(asked: Option<u64>, left: u64) -> u64 {
    let kept = match asked {
        Some(asked) => asked.min(left / MAX_PART),
        None => (left / DEFAULT_PART).min(MAX_BY_DEFAULT),
    };
    kept.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_what_the_process_may_have() {
        // A shell, varnishd's unit, no limit.
        assert_eq!([1024, 131_072, u64::MAX].map(|limit| within(None, limit)), [256, 16_384, 16_384]);
        assert_eq!([1024, 131_072, u64::MAX].map(|limit| within(Some(1000), limit)), [512, 1000, 1000]);
        assert_eq!([within(None, 0), within(Some(5), 1)], [1, 1]);
    }

    #[test]
    fn storages_share_the_limit() {
        let (first, second) = (Share::take("a", Some(usize::MAX)), Share::take("b", Some(usize::MAX)));
        assert!(second.count() <= first.count() / 2 + 1, "{} and {}", first.count(), second.count());
        let kept = KEPT.load(Relaxed);
        assert!(kept >= first.0 + second.0);
        drop((first, second));
        assert!(KEPT.load(Relaxed) < kept);
    }
}
