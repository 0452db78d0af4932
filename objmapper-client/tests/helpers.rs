//! The helpers: URIs, the cache.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use objmapper_client::{Cache, UriError, UriSpace};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    /// Whatever the parts: a URI that every peer takes, below its prefix.
    #[test]
    fn uris_are_canonical_and_bounded(parts in vec(vec(any::<u8>(), 0..400), 0..6), prefix in "[a-z./%]{1,40}") {
        let space = UriSpace::new(&[prefix.as_bytes()]).unwrap();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let uri = space.uri(&parts);
        prop_assert_eq!(uri.check_v01(), Ok(()));
        if !parts.is_empty() {
            prop_assert!(uri.as_bytes().starts_with(&space.prefix()));
        }
    }

    /// Different parts, different URIs; the same parts, the same URI. Few letters, so that there are
    /// collisions if there can be any.
    #[test]
    fn uris_are_injective(all in vec(vec("[%h/.2E]{0,3}", 0..4), 2..60)) {
        let space = UriSpace::new(&[b"s"]).unwrap();
        let mut seen: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
        for parts in all {
            let bytes: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
            let uri = space.uri(&bytes).as_bytes().to_vec();
            if let Some(others) = seen.insert(uri, parts.clone()) {
                prop_assert_eq!(others, parts);
            }
        }
    }
}

#[test]
fn long_uris_are_hashed_without_ambiguity() {
    let space = UriSpace::new(&[b"s"]).unwrap();
    let long = vec![b'x'; 300];
    let uris = [
        space.uri(&[&long]),
        space.uri(&[&long, b""]),
        space.uri(&[b"", &long]),
        space.uri(&[&long[..299]]),
        space.uri(&[&long[..150], &long[..150], &long[..150], &long[..150]]),
        // Where plain parts are cut must matter too.
        space.uri(&[&long[..149], &long[..151], &long[..150], &long[..150]]),
        space.uri(&[b"%h", b"x"]),
    ];
    for (i, uri) in uris.iter().enumerate() {
        assert!(!uris[..i].contains(uri), "{uri}");
        assert_eq!(uri.check_v01(), Ok(()));
    }
    assert_eq!(
        uris[0].to_string(),
        // sha256 of 300 as eight bytes and 300 times x.
        format!("/s/%h/{}", sha256_of(&[&300_u64.to_be_bytes()[..], &long].concat()))
    );
}

fn sha256_of(bytes: &[u8]) -> String {
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    String::from_utf8(out.stdout[..64].to_vec()).unwrap()
}

#[test]
fn prefixes() {
    assert_eq!(UriSpace::new(&[]), Err(UriError::Empty));
    assert!(matches!(UriSpace::new(&[&[b'a'; 256]]), Err(UriError::LongSegment { len: 256, .. })));
    assert!(matches!(UriSpace::new(&[&[b'a'; 250], &[b'a'; 250]]), Err(UriError::TooLong { .. })));
    assert_eq!(UriSpace::new(&[b"list", b"list"]).unwrap().prefix(), b"/%6Cist/list/");
    assert_eq!(UriSpace::new(&[b"lists"]).unwrap().prefix(), b"/lists/");
}

/// Counts how many of it are alive.
struct Counted(Arc<AtomicUsize>, u64);

impl Counted {
    fn new(alive: &Arc<AtomicUsize>, key: u64) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(alive), key)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn the_bound_of_a_cache_is_exact() {
    for capacity in [0, 1, 2, 3, 63, 64, 65, 129, 1000, 4096] {
        let alive = Arc::new(AtomicUsize::new(0));
        let cache: Cache<u64, Counted> = Cache::new(capacity);
        for key in 0..3 * capacity as u64 + 10 {
            cache.get_or_open(key, || Ok::<_, ()>(Counted::new(&alive, key))).unwrap();
            assert!(cache.len() <= capacity && alive.load(Ordering::SeqCst) == cache.len());
        }
        let opened = 3 * capacity as u64 + 10;
        if capacity > 0 {
            assert_eq!(cache.evictions(), opened - cache.len() as u64);
        }
        // Shards fill unevenly, but they do fill.
        assert!(cache.len() >= capacity * 3 / 4, "{} of {capacity}", cache.len());
        cache.clear();
        assert!(cache.is_empty() && alive.load(Ordering::SeqCst) == 0);
    }
}

#[test]
fn a_value_in_use_survives_and_the_least_recently_used_goes() {
    let alive = Arc::new(AtomicUsize::new(0));
    let cache: Cache<u64, Counted> = Cache::new(2);
    let open = |key| cache.get_or_open(key, || Ok::<_, ()>(Counted::new(&alive, key))).unwrap();
    let one = open(1);
    open(2);
    open(1);
    open(3);
    assert!(cache.get(&2).is_none() && cache.get(&1).is_some() && cache.get(&3).is_some());
    assert!(cache.invalidate(&1).is_some() && cache.invalidate(&1).is_none());
    assert_eq!((one.1, cache.len(), alive.load(Ordering::SeqCst)), (1, 1, 2));
    drop(one);
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    assert_eq!(cache.get_or_open(9, || Err("no")).err(), Some("no"));
    assert_eq!(cache.len(), 1);
    cache.insert(3, Arc::new(Counted::new(&alive, 33)));
    assert_eq!((cache.get(&3).unwrap().1, cache.len()), (33, 1));
    assert_eq!((cache.evictions(), cache.hits() > 0, cache.misses() > 0), (1, true, true));
}

#[test]
fn a_cache_is_exact_under_many_threads() {
    const CAPACITY: usize = 200;
    let alive = Arc::new(AtomicUsize::new(0));
    let cache: Cache<u64, Counted> = Cache::new(CAPACITY);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (cache, alive) = (&cache, &alive);
            scope.spawn(move || {
                for i in 0..20_000 {
                    let key = (i * 7 + thread * 13) % 500;
                    let value = cache.get_or_open(key, || Ok::<_, ()>(Counted::new(alive, key))).unwrap();
                    assert_eq!(value.1, key);
                    if i % 50 == 0 {
                        cache.invalidate(&key);
                    }
                    assert!(cache.len() <= CAPACITY);
                }
            });
        }
    });
    assert_eq!(alive.load(Ordering::SeqCst), cache.len());
}
