//! Two caches and one store: what one publishes the other finds, as long as it may.

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::*;
use objmapper_l2::{Adopts, BodySum, Finding, Lookup, MissReason, Outcome, RecordFile, SealedOutcome};

#[test]
fn one_publishes_and_the_other_finds() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/video?x=1");
    assert_eq!(b.get(&r).why(), MissReason::Absent);
    for (len, url) in
        [(0, "/0"), (1, "/1"), (16_000, "/16k"), (1 << 20, "/1m"), ((1 << 20) + 1, "/more"), (5 << 20, "/5m")]
    {
        let r = req(url);
        let content: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        let mut sent = head(60.0, &["Content-Type: video/mp4", "ETag: \"x\"", "X-Empty:"]);
        sent.gzip_bits = Some([7; 32]);
        sent.flags = 3;
        a.put(&r, sent.clone(), &content);
        for cache in [&a, &b] {
            let Got::Hit(body, hit) = cache.get_at(&r, NOW + 12.5, Duration::ZERO) else { panic!("{url}") };
            assert!(body == content, "{url}");
            assert_eq!(hit.head, sent);
            assert_eq!((hit.age(NOW + 12.5), hit.age(NOW - 3.0), hit.has_validator()), (12.5, 0.0, true));
            assert_eq!(hit.record.bytes().is_some(), len <= RecordFile::READ_LIMIT as usize, "{url}");
            assert!(hit.still_valid(&cache.l2, &r));
        }
    }
    assert_eq!(b.counters.c_hits.load(Relaxed), 6);
    assert_eq!(a.counters.c_published.load(Relaxed), 6);
    assert_eq!(a.counters.c_damaged.load(Relaxed) + b.counters.c_damaged.load(Relaxed), 0);
}
