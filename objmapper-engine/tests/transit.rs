//! Bodies that are delivered and not cached: the store takes none, and the heap for such bodies is used up.

mod common;

use std::sync::Arc;

use common::{CHUNK, Fixture, LIMITS, fixture, pattern};
use objmapper_engine::body::Body;
use objmapper_engine::options::Options;
use objmapper_engine::space::NoRoom;
use objmapper_engine::transit::{Readers, Step, WINDOW};
use objmapper_server::store::{PrivateObject, TierKind};

const HEAP: u64 = 2 << 20;

/// A store without room, and little heap instead. The room is taken for as long as the second value lives.
fn full() -> (Fixture, PrivateObject) {
    const STORE: u64 = 1 << 20;
    let f = fixture(Options { fallback_heap: Some(HEAP), ..Options::default() }, STORE);
    let session = Arc::new(f.store.session(None).unwrap());
    let taken = session.create(Some(TierKind::Memory), STORE, None).unwrap();
    (f, taken)
}

/// A body in transit, of which `len` bytes are there.
fn in_transit(f: &Fixture, len: u64) -> Body {
    let body = Body::default();
    assert!(f.write(&body, len, false, 10_000));
    assert!(body.begin_transit(&f.engine) && !body.begin_transit(&f.engine) && body.is_in_transit());
    body
}

fn step(f: &Fixture, body: &Body, readers: Readers) -> Step {
    body.transit_space(&f.engine, readers, 1, LIMITS, &mut || false)
}

/// Fills room that there is; `false`: there is none now.
fn write(f: &Fixture, body: &Body, readers: Readers) -> bool {
    match step(f, body, readers) {
        Step::Space(ptr, room) => {
            let len = body.len();
            for i in 0..room {
                // SAFETY: `room` bytes at `ptr` are ours to write until `extend`.
                unsafe { ptr.as_ptr().add(i).write(pattern(len + i as u64)) };
            }
            body.extend(room as u64);
            true
        }
        Step::Wait | Step::Fail => false,
    }
}

fn transit(f: &Fixture) -> u64 {
    f.counter(|c| &c.g_transit_bytes)
}

#[test]
fn a_body_that_is_known_not_to_fit_takes_no_heap_from_those_that_do() {
    let (f, _taken) = full();
    let body = Body::default();
    let room = body.space(&f.engine, 3 << 20, true, LIMITS, &mut || false);
    assert!(matches!(room, Err(NoRoom::FallbackHeap)));
    assert_eq!((f.counter(|c| &c.g_fallback_bytes), f.engine.account.used()), (0, 0));
    let small = f.fetch(1 << 20, true, true);
    assert_eq!(f.counter(|c| &c.g_fallback_bytes), 1 << 20);
    small.slim(&f.engine);
    assert_eq!(f.counter(|c| &c.g_fallback_bytes), 0);
}

#[test]
fn an_unknown_length_takes_what_there_is_and_no_more() {
    let (f, _taken) = full();
    let body = Body::default();
    assert!(!f.write(&body, 8 << 20, false, CHUNK));
    let fallback = f.counter(|c| &c.g_fallback_bytes);
    assert!(fallback <= HEAP && fallback + 2 * CHUNK as u64 > HEAP, "{fallback}");
    body.slim(&f.engine);
    assert_eq!((f.counter(|c| &c.g_fallback_bytes), f.engine.account.used()), (0, 0));
}

#[test]
fn the_slowest_reader_is_waited_for() {
    const LEN: u64 = 64 << 20;
    let (f, _taken) = full();
    let body = in_transit(&f, 20 * CHUNK as u64);
    let readers = Readers::Holders(2);
    let (fast, slow) = (body.follow(), body.follow());
    let mut read = [0; 2];
    while body.len() < LEN {
        while write(&f, &body, readers) {}
        assert!(transit(&f) <= WINDOW, "{} bytes in transit", transit(&f));
        // One of them takes all that is there, and one a piece of it.
        while read[0] < body.len() {
            read[0] += f.check_next(&body, read[0]);
        }
        fast.reached(read[0]);
        read[1] += f.check_next(&body, read[1]);
        slow.reached(read[1]);
    }
    assert_eq!(f.counter(|c| &c.c_transit_failed), 0);
    drop((fast, slow));
    body.trim(&f.engine);
    assert!(!body.settle(&f.engine, true, 0), "it is not cached");
    body.slim(&f.engine);
    assert_eq!((transit(&f), f.counter(|c| &c.g_fallback_bytes), f.engine.account.used()), (0, 0, 0));
}

#[test]
fn nothing_is_given_back_before_all_holders_are_known_to_read() {
    let (f, _taken) = full();
    let body = in_transit(&f, 20 * CHUNK as u64);
    let readers = Readers::Holders(2);
    let reader = body.follow();
    while write(&f, &body, readers) {}
    reader.reached(body.len());
    assert!(matches!(step(&f, &body, readers), Step::Wait), "the other one needs all of it");
    assert_eq!(f.check_next(&body, 0), 16384.min(body.len()));
    // It does not begin. What all such bodies have together ends some time.
    while !matches!(step(&f, &body, readers), Step::Fail) {
        if !write(&f, &body, readers) {
            body.await_readers(std::time::Duration::from_millis(1));
        }
        assert!(transit(&f) <= HEAP);
    }
    assert!(transit(&f) > HEAP - WINDOW);
    let late = body.follow();
    f.check(&body, body.len());
    reader.reached(body.len());
    late.reached(body.len());
    assert!(write(&f, &body, readers), "both are known now");
    drop((reader, late));
    body.slim(&f.engine);
    assert_eq!((transit(&f), f.engine.account.used()), (0, 0));
}

#[test]
fn a_fetch_for_nothing_ends_and_a_cancelled_one_goes_on() {
    let (f, _taken) = full();
    let body = in_transit(&f, 20 * CHUNK as u64);
    drop(body.follow());
    assert!(matches!(step(&f, &body, Readers::Holders(0)), Step::Fail));
    assert_eq!(f.counter(|c| &c.c_transit_failed), 1);
    // varnishd ends it itself after the next piece.
    for _ in 0..20 {
        assert!(write(&f, &body, Readers::Gone));
        assert!(transit(&f) <= WINDOW);
    }
    body.slim(&f.engine);
    assert_eq!((transit(&f), f.engine.account.used()), (0, 0));
}

#[test]
fn what_is_not_streamed_has_as_much_again_together() {
    let (f, _taken) = full();
    let (one, other) = (in_transit(&f, 20 * CHUNK as u64), in_transit(&f, 20 * CHUNK as u64));
    let mut turns = [&one, &other].into_iter().cycle();
    while write(&f, turns.next().unwrap(), Readers::Later) {}
    assert!(transit(&f) <= HEAP && transit(&f) > HEAP - WINDOW);
    assert_eq!(f.counter(|c| &c.c_transit_failed), 1);
    f.check(&one, one.len());
    f.check(&other, other.len());
    one.slim(&f.engine);
    other.slim(&f.engine);
    assert_eq!((transit(&f), f.engine.account.used()), (0, 0));
}
