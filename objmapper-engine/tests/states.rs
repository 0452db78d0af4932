//! The states of a body: what a reader gets in each, and what a call does in a state in which it is not legal.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{CHUNK, Fixture, LIMITS, PATIENCE, THRESHOLD, engine, fence, fixture, pattern, serve, unlimited, until};
use objmapper_client::Published;
use objmapper_engine::adopt::{Announced, Wanted};
use objmapper_engine::backing::{Backing, Remote};
use objmapper_engine::body::Body;
use objmapper_engine::maintenance::Maintenance;
use objmapper_engine::options::Options;
use objmapper_engine::record::NewRecord;
use objmapper_engine::space::NoRoom;
use objmapper_engine::span::{NoSpan, Part};
use objmapper_engine::transit::{Readers, Step};

const LEN: u64 = 300_001;
const TAIL: &[u8] = b"the record's head, and its trailer";
const URI: &[u8] = b"/l2/a";

/// A record under `URI`, at which no body is left, and its object number.
fn publish_record(f: &Fixture) -> u64 {
    let body = Body::default();
    assert!(f.write(&body, LEN, true, CHUNK));
    body.trim(&f.engine);
    assert_eq!(publish(f, &body), Published::Done);
    assert!(body.settle(&f.engine, true, 0));
    body.slim(&f.engine);
    f.store.lookup(URI).unwrap().unwrap().object
}

fn publish(f: &Fixture, body: &Body) -> Published {
    let fence = fence(&f.store, URI);
    body.publish(&f.engine, &NewRecord { uri: URI, tail: TAIL, expires: 0, fence }, &mut || false)
}

fn announce(f: &Fixture, object: u64) -> Announced {
    let file_len = LEN + TAIL.len() as u64;
    f.engine.adopt(&Wanted { instance: f.store.instance().0, uri: URI, object, body_len: LEN, file_len }).unwrap()
}

fn space(f: &Fixture, body: &Body) -> Result<usize, NoRoom> {
    body.space(&f.engine, CHUNK, false, LIMITS, &mut || false).map(|(_, size)| size)
}

fn transit_step(f: &Fixture, body: &Body) -> Step {
    body.transit_space(&f.engine, Readers::Holders(1), 1, LIMITS, &mut || false)
}

fn is_at_end(f: &Fixture, body: &Body, offset: u64) -> bool {
    matches!(body.part(&f.engine, offset), Err(NoSpan::End))
}

/// Checks that no call of the writer's changes a body whose fetch has ended.
fn nothing_begins_again(f: &Fixture, body: &Body) {
    let (len, used) = (body.len(), f.engine.account.used());
    assert_eq!(space(f, body), Err(NoRoom::Limit));
    body.extend(1);
    body.trim(&f.engine);
    body.adopt_with_bytes();
    body.give_up_adoption(&f.engine);
    assert_eq!(publish(f, body), Published::Elsewhere);
    assert!(!body.begin_transit(&f.engine) && !body.is_in_transit());
    assert!(matches!(transit_step(f, body), Step::Fail));
    assert_eq!((body.len(), f.engine.account.used(), f.counter(|c| &c.c_adopt_fallback)), (len, used, 0));
}

#[test]
fn a_body_in_heap_is_read_while_it_comes_in_and_ends_once() {
    let f = unlimited();
    let body = Body::default();
    assert!(is_at_end(&f, &body, 0));
    assert!(f.write(&body, 1000, false, CHUNK));
    assert!(body.is_in_heap() && body.part(&f.engine, 0).unwrap().is_stable());
    assert!(is_at_end(&f, &body, 1000));
    f.check(&body, 1000);
    assert!(!body.begin_transit(&f.engine), "the store has refused nothing");
    assert!(matches!(transit_step(&f, &body), Step::Fail));
    assert_eq!(publish(&f, &body), Published::Elsewhere);
    body.trim(&f.engine);
    assert!(body.settle(&f.engine, true, 0));
    f.check(&body, 1000);
    assert!(body.settle(&f.engine, true, 0));
    nothing_begins_again(&f, &body);
    body.slim(&f.engine);
    assert_eq!((body.len(), f.engine.account.used()), (0, 0));
    assert!(is_at_end(&f, &body, 0));
}

#[test]
fn a_draft_is_read_from_its_file_and_its_buffer_and_is_published_once() {
    let f = unlimited();
    let body = Body::default();
    assert!(f.write(&body, LEN, false, CHUNK));
    f.in_file(&body, 0);
    assert!(matches!(body.part(&f.engine, LEN - 1), Ok(Part::Addressable(_))), "the last bytes are in the buffer");
    assert!(!body.part(&f.engine, LEN - 1).unwrap().is_stable());
    assert!(!body.is_in_heap() && body.describe().in_draft);
    f.check(&body, LEN);
    assert!(!body.begin_transit(&f.engine), "the store has refused nothing");
    body.trim(&f.engine);
    f.check(&body, LEN);
    assert_eq!(publish(&f, &body), Published::Done);
    f.check(&body, LEN);
    assert_eq!(publish(&f, &body), Published::Elsewhere, "once");
    assert!(body.settle(&f.engine, true, 0));
    assert!(body.settle(&f.engine, true, 0));
    assert_eq!(f.counter(|c| &c.c_published), 1);
    nothing_begins_again(&f, &body);
    f.check(&body, LEN);
    assert!(matches!(body.part_for_kernel(&f.engine, 0), Ok(Part::Mapped(_))));
    body.slim(&f.engine);
    assert_eq!(f.engine.account.used(), 0);
}

#[test]
fn what_the_store_refuses_is_read_from_heap_and_what_it_took_from_the_file() {
    let f = fixture(Options::default(), 1 << 20);
    let mixed = Body::default();
    assert!(f.write(&mixed, 3 << 20, false, CHUNK));
    assert!(f.check(&mixed, 3 << 20) > 1);
    f.in_file(&mixed, 0);
    assert!(mixed.part(&f.engine, (3 << 20) - 1).unwrap().is_stable());
    assert!(!mixed.is_in_heap() && mixed.describe().in_draft && mixed.describe().heap_pieces > 0);
    mixed.trim(&f.engine);
    assert_eq!(publish(&f, &mixed), Published::Elsewhere, "a part of it is in heap");
    // There is no room in the store for another one.
    let refused = Body::default();
    assert!(f.write(&refused, 1 << 20, true, CHUNK));
    assert!(refused.is_in_heap() && f.counter(|c| &c.g_fallback_bytes) >= 1 << 20);
    f.check(&refused, 1 << 20);
    assert_eq!(publish(&f, &refused), Published::Elsewhere);
    for body in [&mixed, &refused] {
        let len = body.len();
        body.trim(&f.engine);
        assert!(body.settle(&f.engine, true, 0));
        f.check(body, len);
        nothing_begins_again(&f, body);
    }
    assert!(mixed.describe().object.is_some() && refused.describe().object.is_none());
    // One that is not kept stays as it came in, until it is freed.
    mixed.slim(&f.engine);
    let passed = Body::default();
    assert!(f.write(&passed, 3 << 20, false, CHUNK));
    passed.trim(&f.engine);
    assert!(passed.settle(&f.engine, false, 0));
    assert!(passed.describe().in_draft && passed.describe().object.is_none());
    f.check(&passed, 3 << 20);
    passed.slim(&f.engine);
    refused.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_writing)), (0, 0, 0));
}

#[test]
fn an_adopted_record_is_read_as_far_as_the_writer_has_come() {
    let f = unlimited();
    let object = publish_record(&f);
    let body = Body::default();
    assert!(body.adopt(announce(&f, object)).is_ok());
    // It has one already.
    let Err(back) = body.adopt(announce(&f, object)) else { panic!("a second record") };
    f.engine.cancel_adoption(back);
    body.extend(1000);
    assert!(is_at_end(&f, &body, 0), "nothing was announced as body yet");
    assert!(!body.begin_transit(&f.engine));
    assert!(space(&f, &body).is_ok());
    assert!(is_at_end(&f, &body, 0));
    body.extend(1000);
    assert_eq!(f.in_file(&body, 0).len, 1000);
    assert!(is_at_end(&f, &body, 1000));
    // Too late: the record is the body.
    body.adopt_with_bytes();
    body.give_up_adoption(&f.engine);
    assert_eq!((f.counter(|c| &c.c_adopted), f.counter(|c| &c.c_adopt_fallback)), (1, 0));
    assert_eq!(publish(&f, &body), Published::Elsewhere);
    body.extend(LEN - 1000);
    body.trim(&f.engine);
    assert!(body.settle(&f.engine, true, 0));
    f.check(&body, LEN);
    nothing_begins_again(&f, &body);
    // Nor does a body that has begun take one.
    let begun = Body::default();
    assert!(f.write(&begun, 10, false, CHUNK));
    let Err(back) = begun.adopt(announce(&f, object)) else { panic!("a record behind other bytes") };
    f.engine.cancel_adoption(back);
    f.check(&begun, 10);
    begun.slim(&f.engine);
    body.slim(&f.engine);
    assert_eq!(f.engine.account.used(), 0);
}

#[test]
fn a_body_in_transit_keeps_its_file_and_is_never_stored() {
    let f = fixture(Options { fallback_heap: Some(1 << 20), ..Options::default() }, 1 << 20);
    let body = Body::default();
    assert!(!f.write(&body, 8 << 20, false, CHUNK), "neither the store nor the heap has room");
    assert_eq!(space(&f, &body), Err(NoRoom::FallbackHeap));
    let len = body.len();
    assert!(body.begin_transit(&f.engine) && !body.begin_transit(&f.engine) && body.is_in_transit());
    f.check(&body, len);
    f.in_file(&body, 0);
    assert_eq!(space(&f, &body), Err(NoRoom::FallbackHeap), "its room is another one's to give");
    let reader = body.follow();
    let Step::Space(ptr, size) = transit_step(&f, &body) else { panic!("no room in transit") };
    for i in 0..size {
        // SAFETY: `size` bytes at `ptr` are ours to write until `extend`.
        unsafe { ptr.as_ptr().add(i).write(pattern(len + i as u64)) };
    }
    body.extend(size as u64);
    f.check(&body, len + size as u64);
    drop(reader);
    body.trim(&f.engine);
    assert_eq!(publish(&f, &body), Published::Elsewhere);
    for _ in 0..2 {
        assert!(!body.settle(&f.engine, true, 0), "it leaves the cache");
    }
    f.check(&body, len + size as u64);
    assert_eq!(f.counter(|c| &c.c_published), 0);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_transit_bytes)), (0, 0, 0));
}

#[test]
fn an_orphan_is_read_to_its_end_and_leaves_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let (server, store) = serve(&socket);
    let maintenance = Arc::new(Maintenance::default());
    let remote = Remote::new("s0", &socket, PATIENCE, maintenance.clone()).unwrap();
    let options = Options { fallback_heap: Some(THRESHOLD), ..Options::default() };
    let f = Fixture { engine: engine(options, Backing::Remote(remote), maintenance), store };
    until("the store answers", || f.engine.is_happy());
    let body = Body::default();
    assert!(f.write(&body, LEN, false, CHUNK));
    body.trim(&f.engine);
    let reader = f.in_file(&body, 0);
    // Neither can it be published, nor is there heap for a copy.
    server.drain(Duration::ZERO);
    until("the store is gone", || !f.engine.is_happy());
    for _ in 0..2 {
        assert!(!body.settle(&f.engine, true, 0), "it leaves the cache");
    }
    assert_eq!((f.counter(|c| &c.c_body_failed), f.counter(|c| &c.c_publish_copied)), (1, 0));
    assert_eq!(reader.read(&mut vec![0; LEN as usize]).unwrap() as u64, LEN);
    f.check(&body, LEN);
    assert_eq!((f.engine.account.used(), f.counter(|c| &c.g_writing)), (LEN, 1));
    nothing_begins_again(&f, &body);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.counter(|c| &c.g_writing), f.counter(|c| &c.g_body_bytes)), (0, 0, 0));
}

#[test]
fn readers_never_wait_for_the_writer() {
    // In heap, and in a draft: the limit is reached, and the writer evicts for as long as this closure runs.
    for (threshold, give_back, known) in [(u64::MAX, 1 << 20, false), (0, 0, true)] {
        let f = fixture(Options { size: 2 << 20, threshold, ..Options::default() }, 64 << 20);
        let body = Body::default();
        assert!(f.write(&body, 2 << 20, known, CHUNK));
        let mut asked = 0;
        let room = body.space(&f.engine, CHUNK, false, LIMITS, &mut || {
            asked += 1;
            f.check(&body, 2 << 20);
            assert!(body.describe().len.is_some() && !body.is_empty());
            drop(body.follow());
            body.give_back(&f.engine, give_back, 1);
            asked == 1 && give_back > 0
        });
        // Heap is given back meanwhile, and is the room that the writer waits for.
        assert_eq!((room.is_ok(), asked), (give_back > 0, 1), "threshold {threshold}");
        body.slim(&f.engine);
        assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
    }
}
