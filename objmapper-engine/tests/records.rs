//! Bodies that are published as records for other caches, and records that are adopted as bodies.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use common::{CHUNK, Fixture, LIMITS, PATIENCE, THRESHOLD, engine, fixture, pattern, serve, unlimited, until};
use objmapper_client::{Outage, Published};
use objmapper_engine::adopt::{Announced, NotAdopted, Wanted};
use objmapper_engine::backing::{Backing, Remote};
use objmapper_engine::body::Body;
use objmapper_engine::engine::Engine;
use objmapper_engine::maintenance::{Maintenance, Task};
use objmapper_engine::options::Options;
use objmapper_engine::record::{Fence, NewRecord};
use objmapper_server::store::{ANY_VERSION, Store};

const URI: &[u8] = b"/l2/a";
const TAIL: &[u8] = b"the record's head, and its trailer";
const LEN: u64 = 300_001;
const FILE: u64 = LEN + TAIL.len() as u64;

fn fence(store: &Store) -> Fence {
    common::fence(store, URI)
}

fn record(fence: Fence) -> NewRecord<'static> {
    NewRecord { uri: URI, tail: TAIL, expires: 0, fence }
}

fn fetched(f: &Fixture, len: u64, known: bool) -> Body {
    let body = Body::default();
    assert!(f.write(&body, len, known, 10_000));
    body.trim(&f.engine);
    body
}

/// Publishes a record of `LEN` bytes of body and forgets the body.
fn published(f: &Fixture) {
    let body = fetched(f, LEN, true);
    assert_eq!(body.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Done);
    assert!(body.settle(&f.engine, true, 0));
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.pinned()), (0, 0));
}

fn adopt(engine: &Engine, store: &Store) -> Result<Announced, NotAdopted> {
    let object = store.lookup(URI).unwrap().map_or(1 << 40, |entry| entry.object);
    engine.adopt(&Wanted { instance: store.instance().0, uri: URI, object, body_len: LEN, file_len: FILE })
}

fn adopting(f: &Fixture) -> Body {
    let body = Body::default();
    assert!(body.adopt(adopt(&f.engine, &f.store).unwrap()).is_ok());
    body
}

/// "Fetches" an adopted body in steps of `want`: what is there is only counted.
fn take_in(engine: &Engine, body: &Body, want: usize) {
    let mut done = 0;
    while done < LEN {
        let (ptr, room) = body.space(engine, want, true, LIMITS, &mut || false).unwrap();
        assert!(room <= want);
        let there = body.adopted(ptr.as_ptr(), room);
        assert_eq!(there, room.min((LEN - done) as usize));
        assert_eq!(body.adopted(ptr.as_ptr().wrapping_add(1), room), 0, "another address is room to write to");
        body.extend(there as u64);
        done += there as u64;
    }
    body.trim(engine);
}

impl Fixture {
    fn pinned(&self) -> u64 {
        self.store.stats().tiers[0].pinned
    }

    fn records(&self) -> u64 {
        self.counter(|c| &c.c_records)
    }
}

#[test]
fn a_record_is_body_and_tail_and_outlives_its_publisher() {
    for known in [true, false] {
        let f = unlimited();
        let body = fetched(&f, LEN, known);
        assert_eq!(body.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Done);
        let (entry, file) = f.store.open_uri(URI).unwrap().unwrap();
        assert_eq!((entry.length, entry.is_ephemeral()), (FILE, false));
        let mut bytes = vec![0; FILE as usize];
        std::fs::File::from(file).read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..LEN as usize].iter().zip(0..).all(|(byte, offset)| *byte == pattern(offset)));
        assert_eq!(&bytes[LEN as usize..], TAIL);
        f.check(&body, LEN);
        assert!(body.settle(&f.engine, true, 0));
        // The body is the record, without its tail, and costs what the file has.
        assert_eq!((f.check(&body, LEN), f.engine.account.used()), (1, FILE));
        assert_eq!(f.counter(|c| &c.g_body_bytes), FILE);
        assert_eq!((f.records(), f.counter(|c| &c.c_published), f.counter(|c| &c.g_writing)), (1, 1, 0));
        assert_eq!(body.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Elsewhere);
        assert!(f.pinned() > 0);
        body.slim(&f.engine);
        assert_eq!((f.engine.account.used(), f.counter(|c| &c.g_body_bytes), f.pinned()), (0, 0, 0));
        assert!(f.store.lookup(URI).unwrap().is_some());
    }
}

#[test]
fn what_was_deleted_since_is_not_published_and_stays_the_objects_own() {
    let f = unlimited();
    let before = fence(&f.store);
    let body = fetched(&f, LEN, true);
    let _ = f.store.delete(URI, ANY_VERSION);
    assert_eq!(body.publish(&f.engine, &record(before), &mut || false), Published::Conflict);
    assert!(f.store.lookup(URI).unwrap().is_none());
    assert_eq!((f.records(), f.counter(|c| &c.c_record_conflict)), (0, 1));
    f.check(&body, LEN);
    assert!(body.settle(&f.engine, true, 0));
    assert!(body.describe().object.is_some());
    f.check(&body, LEN);
    // Its file has the tail, and that counts.
    assert_eq!((f.engine.account.used(), f.counter(|c| &c.c_published)), (FILE, 1));
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_body_bytes)), (0, 0, 0));
}

#[test]
fn a_conflict_of_a_body_that_is_not_kept_leaves_nothing() {
    let f = unlimited();
    let before = fence(&f.store);
    let body = fetched(&f, LEN, true);
    let _ = f.store.delete(URI, ANY_VERSION);
    assert_eq!(body.publish(&f.engine, &record(before), &mut || false), Published::Conflict);
    assert!(body.settle(&f.engine, false, 0));
    f.check(&body, LEN);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_writing)), (0, 0, 0));
}

#[test]
fn only_what_is_in_the_store_as_a_whole_becomes_a_record() {
    let f = unlimited();
    let small = fetched(&f, THRESHOLD, true);
    assert_eq!(small.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Elsewhere);
    small.slim(&f.engine);
    // Half-way the store runs out: the rest is in heap.
    let f = fixture(Options::default(), 1 << 20);
    let mixed = fetched(&f, 3 << 20, false);
    assert_eq!(f.counter(|c| &c.c_mixed), 1);
    assert_eq!(mixed.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Elsewhere);
    assert!(mixed.settle(&f.engine, true, 0));
    f.check(&mixed, 3 << 20);
    mixed.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_writing)), (0, 0, 0));
}

#[test]
fn without_room_for_the_tail_the_body_is_what_it_was() {
    // Below our limit.
    let f = fixture(Options { size: LEN, ..Options::default() }, 64 << 20);
    let body = fetched(&f, LEN, true);
    let mut asked = 0;
    let outcome = body.publish(&f.engine, &record(fence(&f.store)), &mut || {
        asked += 1;
        false
    });
    assert_eq!((outcome, asked, f.engine.account.used()), (Published::Outage(Outage::Full), 1, LEN));
    assert!(body.settle(&f.engine, true, 0));
    assert_eq!((f.records(), f.counter(|c| &c.c_record_failed), f.counter(|c| &c.c_published)), (0, 1, 1));
    f.check(&body, LEN);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));

    // In the store, which has exactly the pages of the body.
    let pages = 1 << 20;
    let f = fixture(Options::default(), pages);
    let body = fetched(&f, pages, true);
    assert_eq!(f.stored(), pages);
    let outcome = body.publish(&f.engine, &record(fence(&f.store)), &mut || false);
    assert_eq!((outcome, f.engine.account.used()), (Published::Outage(Outage::Full), pages));
    assert!(body.settle(&f.engine, true, 0));
    f.check(&body, pages);
    assert_eq!(f.counter(|c| &c.c_published), 1);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn a_slow_follower_reads_on_while_the_record_is_published() {
    let f = unlimited();
    for round in 1..=50 {
        let body = fetched(&f, LEN, false);
        let early = f.in_file(&body, 0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut offset = 0;
                    while offset < LEN {
                        offset += f.check_next(&body, offset).min(7000);
                    }
                });
            }
            assert_eq!(body.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Done);
            assert!(body.settle(&f.engine, true, 0));
        });
        assert_eq!((f.records(), early.len), (round, LEN));
        let mut last = [0];
        early.file.read_exact_at(&mut last, LEN - 1).unwrap();
        assert_eq!(last, [pattern(LEN - 1)]);
        body.slim(&f.engine);
    }
    assert_eq!((f.engine.account.used(), f.pinned(), f.counter(|c| &c.g_writing)), (0, 0, 0));
}

#[test]
fn a_record_becomes_a_body_without_a_copy() {
    for want in [usize::MAX >> 1, LEN as usize, CHUNK, 1000] {
        let f = unlimited();
        published(&f);
        let used = f.stored();
        let body = adopting(&f);
        assert_eq!(f.engine.account.used(), 0);
        let (_, room) = body.space(&f.engine, 10, true, LIMITS, &mut || false).unwrap();
        assert_eq!((room, f.engine.account.used(), f.counter(|c| &c.g_bodies)), (10, FILE, 1));
        body.extend(10);
        // A follower sees as much as was counted.
        assert_eq!((f.check(&body, 10), body.len()), (1, 10));
        let rest = body.space(&f.engine, want, true, LIMITS, &mut || false).unwrap();
        assert_eq!(rest.1, want.min(LEN as usize - 10));
        let mut done = 10;
        while done < LEN {
            let (ptr, room) = body.space(&f.engine, want, true, LIMITS, &mut || false).unwrap();
            let there = body.adopted(ptr.as_ptr(), room) as u64;
            body.extend(there);
            done += there;
        }
        body.trim(&f.engine);
        f.check(&body, LEN);
        assert!(body.settle(&f.engine, true, 0));
        assert_eq!((f.check(&body, LEN), f.stored()), (1, used));
        assert_eq!((f.counter(|c| &c.c_adopted), f.counter(|c| &c.c_adopt_fallback)), (1, 0));
        assert!(f.pinned() > 0);
        body.slim(&f.engine);
        assert_eq!((f.engine.account.used(), f.pinned(), f.stored()), (0, 0, used));
        for gauge in [
            f.counter(|c| &c.g_bodies),
            f.counter(|c| &c.g_body_bytes),
            f.counter(|c| &c.g_fds),
            f.counter(|c| &c.g_maps),
        ] {
            assert_eq!(gauge, 0);
        }
    }
}

#[test]
fn filters_that_look_at_an_adopted_record_are_given_its_bytes() {
    for want in [usize::MAX >> 1, CHUNK, 1000] {
        let f = unlimited();
        published(&f);
        let body = adopting(&f);
        body.adopt_with_bytes();
        let mut done = 0;
        while done < LEN {
            let (ptr, room) = body.space(&f.engine, want, true, LIMITS, &mut || false).unwrap();
            let there = body.adopted(ptr.as_ptr(), room);
            assert!(there > 0 && there <= want);
            for i in 0..there {
                // SAFETY: the room has its bytes, which are not written.
                assert_eq!(unsafe { ptr.as_ptr().add(i).read() }, pattern(done + i as u64));
            }
            body.extend(there as u64);
            done += there as u64;
        }
        body.trim(&f.engine);
        assert!(body.settle(&f.engine, true, 0));
        f.check(&body, LEN);
        assert_eq!((f.counter(|c| &c.c_adopted), f.counter(|c| &c.c_err_io)), (1, 0));
        body.slim(&f.engine);
    }
}

#[test]
fn what_is_not_there_as_it_is_said_to_be_is_not_adopted() {
    let f = unlimited();
    published(&f);
    let entry = f.store.lookup(URI).unwrap().unwrap();
    let good = Wanted { instance: f.store.instance().0, uri: URI, object: entry.object, body_len: LEN, file_len: FILE };
    let refused = |wanted: Wanted<'_>| f.engine.adopt(&wanted).unwrap_err();
    assert_eq!(refused(Wanted { instance: [7; 16], ..good }), NotAdopted::Elsewhere);
    assert_eq!(refused(Wanted { body_len: THRESHOLD, ..good }), NotAdopted::Small);
    assert_eq!(refused(Wanted { object: entry.object + 1, ..good }), NotAdopted::Gone);
    assert_eq!(refused(Wanted { file_len: FILE + 1, ..good }), NotAdopted::Gone);
    assert_eq!(refused(Wanted { uri: b"/l2/b", ..good }), NotAdopted::Gone);
    assert_eq!(refused(Wanted { uri: b"no URI", ..good }), NotAdopted::Outage(Outage::Protocol));
    assert_eq!(refused(Wanted { file_len: LEN - 1, ..good }), NotAdopted::Outage(Outage::Protocol));
    assert_eq!(f.pinned(), 0);
    // Purged, and replaced by another record.
    f.store.delete(URI, ANY_VERSION).unwrap();
    assert_eq!(refused(good), NotAdopted::Gone);
    published(&f);
    assert_eq!(refused(good), NotAdopted::Gone);
    assert_eq!((f.pinned(), f.engine.account.used()), (0, 0));
}

#[test]
fn a_record_that_is_purged_after_its_adoption_stays_its_body() {
    let f = unlimited();
    published(&f);
    let body = adopting(&f);
    f.store.delete(URI, ANY_VERSION).unwrap();
    take_in(&f.engine, &body, CHUNK);
    assert!(body.settle(&f.engine, true, 0));
    f.check(&body, LEN);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn bodies_that_share_a_record_keep_it_for_each_other() {
    let f = unlimited();
    let publisher = fetched(&f, LEN, true);
    assert_eq!(publisher.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Done);
    let (first, second) = (adopting(&f), adopting(&f));
    take_in(&f.engine, &first, CHUNK);
    take_in(&f.engine, &second, CHUNK);
    f.store.delete(URI, ANY_VERSION).unwrap();
    for body in [&publisher, &first, &second] {
        assert!(body.settle(&f.engine, true, 0));
        assert!(f.stored() > 0);
        f.check(body, LEN);
    }
    publisher.slim(&f.engine);
    f.check(&first, LEN);
    first.slim(&f.engine);
    assert_eq!(f.engine.account.used(), FILE);
    f.check(&second, LEN);
    second.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn an_adoption_that_comes_to_nothing_is_a_body_as_any_other() {
    // No room for the record, but for some of it.
    let f = fixture(Options { size: LEN, ..Options::default() }, 64 << 20);
    let big =
        Fixture { engine: engine(Options::default(), embedded(&f.store), Arc::default()), store: f.store.clone() };
    published(&big);
    let body = adopting(&f);
    let mut nuked = 0;
    let (ptr, room) = body
        .space(&f.engine, CHUNK, true, LIMITS, &mut || {
            nuked += 1;
            false
        })
        .unwrap();
    assert_eq!((nuked, body.adopted(ptr.as_ptr(), room)), (0, 0));
    assert_eq!((f.counter(|c| &c.c_adopt_fallback), f.counter(|c| &c.c_adopted), f.pinned()), (1, 0, 0));
    // SAFETY: ordinary room.
    unsafe { ptr.as_ptr().write_bytes(7, room) };
    body.slim(&f.engine);

    // It was given up, before and after room was asked for; or room was never asked for.
    let body = adopting(&big);
    body.give_up_adoption(&big.engine);
    let (ptr, room) = body.space(&big.engine, CHUNK, true, LIMITS, &mut || false).unwrap();
    assert_eq!((body.adopted(ptr.as_ptr(), room), big.pinned()), (0, 0));
    body.slim(&big.engine);
    let body = adopting(&big);
    assert!(big.pinned() > 0);
    assert!(body.settle(&big.engine, true, 0));
    assert_eq!(big.pinned(), 0);
    let body = adopting(&big);
    body.slim(&big.engine);
    assert_eq!(big.pinned(), 0);
    let announced = adopt(&big.engine, &big.store).unwrap();
    big.engine.cancel_adoption(announced);
    assert_eq!((big.pinned(), big.engine.account.used()), (0, 0));
}

#[test]
fn an_adoption_evicts_for_its_room_and_what_comes_behind_it_is_in_heap() {
    let f = fixture(Options { size: FILE + CHUNK as u64, ..Options::default() }, 64 << 20);
    published(&f);
    let cached = f.fetch(200_000, true, true);
    let body = adopting(&f);
    let mut evicted = 0;
    let (_, room) = body
        .space(&f.engine, usize::MAX >> 1, true, LIMITS, &mut || {
            cached.slim(&f.engine);
            evicted += 1;
            evicted == 1
        })
        .unwrap();
    assert_eq!((room as u64, evicted, f.engine.account.used()), (LEN, 1, FILE));
    body.extend(LEN);
    // Filters that were asked for more than the record has.
    let (ptr, room) = body.space(&f.engine, 100, false, LIMITS, &mut || false).unwrap();
    assert_eq!(body.adopted(ptr.as_ptr(), room), 0);
    for i in 0..100 {
        // SAFETY: ordinary room.
        unsafe { ptr.as_ptr().add(i).write(pattern(LEN + i as u64)) };
    }
    body.extend(100);
    body.trim(&f.engine);
    assert!(body.settle(&f.engine, true, 0));
    assert_eq!(f.check(&body, LEN + 100), 2);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.pinned(), f.counter(|c| &c.g_heap_bytes)), (0, 0, 0));
}

fn embedded(store: &Store) -> Backing {
    use objmapper_engine::backing::Embedded;
    Backing::Embedded(Embedded::new(store, objmapper_server::store::TierKind::Memory).unwrap())
}

#[test]
fn in_an_objmapperd_records_are_shared_and_lost_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let (server, store) = serve(&socket);
    let maintenance = Arc::new(Maintenance::default());
    let remote = Remote::new("s0", &socket, PATIENCE, maintenance.clone()).unwrap();
    // For one of the bodies that objmapper will not take.
    let options = Options { fallback_heap: Some(LEN), ..Options::default() };
    let engine = engine(options, Backing::Remote(remote), maintenance.clone());
    until("the store answers", || engine.is_happy());
    let f = Fixture { engine, store };

    let publisher = fetched(&f, LEN, false);
    assert_eq!(publisher.publish(&f.engine, &record(fence(&f.store)), &mut || false), Published::Done);
    assert!(publisher.settle(&f.engine, true, 11));
    // Released and adopted again at once, over and over: the pin is there each time.
    for _ in 0..20 {
        let body = adopting(&f);
        take_in(&f.engine, &body, usize::MAX >> 1);
        assert!(body.settle(&f.engine, true, 12));
        publisher.slim(&f.engine);
        body.slim(&f.engine);
        let again = adopting(&f);
        f.engine.cancel_adoption(adopt(&f.engine, &f.store).unwrap());
        assert!(f.pinned() > 0);
        again.slim(&f.engine);
    }
    until("the last pin is released", || f.pinned() == 0);
    assert_eq!(f.engine.account.used(), 0);

    let adopted = adopting(&f);
    take_in(&f.engine, &adopted, CHUNK);
    assert!(adopted.settle(&f.engine, true, 13));
    let (copied, unpublished) = (fetched(&f, LEN, true), fetched(&f, LEN, true));
    let Fixture { engine, store } = f;
    let fence_before = fence(&store);
    drop(store);
    server.drain(Duration::ZERO);
    until("the store is gone", || !engine.is_happy());
    assert_eq!(unpublished.publish(&engine, &record(fence_before), &mut || false), Published::Outage(Outage::Down));
    assert!(copied.settle(&engine, true, 14), "heap has room for it");
    assert_eq!((copied.describe().heap_pieces, copied.describe().in_draft), (1, false));
    assert!(!unpublished.settle(&engine, true, 15), "it cannot be kept");
    let (server, store) = serve(&socket);
    until("the store answers again", || engine.backing().answers());
    assert!(!engine.is_happy(), "it has not taken a body yet");
    engine.tidy();
    assert!(engine.is_happy());
    let f = Fixture { engine, store };
    // Readers that have begun can go on, with the one that was never published too.
    f.check(&adopted, LEN);
    f.check(&unpublished, LEN);
    f.check(&copied, LEN);
    // The tail of the one that was never published was written before the store was asked.
    assert_eq!(f.engine.account.used(), FILE + FILE + LEN);
    assert_eq!((f.counter(|c| &c.c_body_failed), f.counter(|c| &c.c_publish_copied)), (2, 1));
    assert_eq!(f.counter(|c| &c.g_fallback_bytes), LEN);
    let mut lost = Vec::new();
    until("the loss is noticed", || {
        if let Task::Sweep(scope) = maintenance.next_task(PATIENCE) {
            f.engine.sweep(scope, |owner| lost.push(owner));
        }
        !lost.is_empty()
    });
    assert_eq!((lost, f.counter(|c| &c.c_lost)), (vec![13], 1));
    adopted.slim(&f.engine);
    unpublished.slim(&f.engine);
    copied.slim(&f.engine);
    assert_eq!(f.counter(|c| &c.g_fallback_bytes), 0);
    assert_eq!((f.engine.account.used(), f.counter(|c| &c.g_writing), f.pinned()), (0, 0, 0));
    server.drain(PATIENCE);
}
