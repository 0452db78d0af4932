//! The index of tags, and the list of recent invalidations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use objmapper_tags::{Effect, Index, Names, Recent};

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), SeqCst);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), SeqCst);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A number that looks like an objcore's address.
fn address(n: usize) -> usize {
    0x7f00_0000_0000 + n * 160
}

// One test, because all threads of a program share the allocator.
#[test]
fn what_is_inserted_is_found_until_it_is_removed_and_takes_less_than_100_bytes() {
    let names = Names::default();
    let index = Index::default();
    let tag = |n: usize| names.tag(format!("tag-{n}").as_bytes());

    let shared = names.tag(b"shared");

    // Objects without tags take nothing.
    let before = ALLOCATED.load(SeqCst);
    for n in 0..1000 {
        index.insert(address(n), []);
        index.remove(address(n));
    }
    assert_eq!(ALLOCATED.load(SeqCst), before);

    // One tag per object and one object per tag, ten tags per object, a tag of all objects: in any order of addresses.
    const OBJECTS: usize = 20_000;
    for tags_per_object in [1, 10] {
        let before = ALLOCATED.load(SeqCst);
        for n in 0..OBJECTS {
            let object = n * 7919 % OBJECTS;
            index.insert(
                address(object),
                (0..tags_per_object).map(|t| if t == 1 { shared } else { tag(object * 100 + t) }),
            );
        }
        let (pairs, bytes) = (index.pairs(), ALLOCATED.load(SeqCst) - before);
        assert_eq!(pairs, (OBJECTS * tags_per_object) as u64);
        let each = bytes as f64 / pairs as f64;
        println!(
            "{tags_per_object} tags per object: {each:.1} bytes per object and tag, counted as {}",
            index.bytes() / pairs
        );
        assert!(each <= 100.0, "{each} bytes per object and tag");
        assert!(bytes as u64 <= index.bytes() * 5 / 4, "{bytes} bytes are counted as {}", index.bytes());
        if tags_per_object > 1 {
            let found: BTreeSet<usize> = index.hold(shared, |object| object).into_iter().collect();
            assert_eq!(found.len(), OBJECTS);
        }
        assert_eq!(index.hold(tag(4200), |object| object), [address(42)]);
        for n in 0..OBJECTS {
            assert!(index.contains(address(n)));
            index.remove(address(n));
            assert!(!index.contains(address(n)));
        }
        assert_eq!((index.pairs(), index.hold(shared, |object| object).len()), (0, 0));
    }
    index.insert(address(1), [tag(1), tag(1)]);
    assert_eq!(index.pairs(), 1);
    index.clear();
    assert_eq!((index.pairs(), index.contains(address(1))), (0, false));

    held_objects_are_not_removed(&index, &names);
    recent(&names);
}

/// While a look-up holds an object, its removal waits.
fn held_objects_are_not_removed(index: &Index, names: &Names) {
    const OBJECTS: usize = 64;
    let alive: Vec<AtomicBool> = std::iter::repeat_with(|| AtomicBool::new(false)).take(OBJECTS).collect();
    let over = AtomicBool::new(false);
    let found = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for part in 0..2 {
            let (alive, over) = (&alive, &over);
            threads.spawn(move || {
                for round in 0..5_000 {
                    let object = (round * 31 + part) % (OBJECTS / 2) * 2 + part;
                    alive[object].store(true, SeqCst);
                    index.insert(object, [names.tag(b"all"), names.tag(&[object as u8])]);
                    index.remove(object);
                    alive[object].store(false, SeqCst);
                }
                over.store(true, SeqCst);
            });
        }
        while !over.load(SeqCst) {
            for alive in index.hold(names.tag(b"all"), |object| alive[object].load(SeqCst)) {
                assert!(alive, "an object was found after its removal");
                found.fetch_add(1, SeqCst);
            }
        }
    });
    assert_eq!(index.pairs(), 0);
}

fn recent(names: &Names) {
    let recent = Recent::default();
    let (a, b, c) = (names.tag(b"a"), names.tag(b"b"), names.digest(&[0; 32]));
    let first = recent.mark();
    assert_eq!(recent.since(first, &[a, b]), None);
    recent.add(a, Effect::Soft);
    let second = recent.mark();
    recent.add(c, Effect::Hard);
    assert_eq!(recent.since(first, &[a]), Some(Effect::Soft));
    assert_eq!(recent.since(first, &[b]), None);
    assert_eq!(recent.since(first, &[c, a]), Some(Effect::Hard));
    assert_eq!(recent.since(second, &[a]), None);
    assert_eq!(recent.since(second, &[a, c]), Some(Effect::Hard));
    // A mark that is older than all that is kept.
    for _ in 0..70_000 {
        recent.add(b, Effect::Soft);
    }
    assert_eq!(recent.since(second, &[a]), Some(Effect::Hard));
    assert_eq!(recent.since(recent.mark(), &[a, b]), None);
}
