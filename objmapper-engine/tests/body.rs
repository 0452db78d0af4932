//! Bodies over a real store in memory: where they live, what they cost, and that every byte and every limit holds.

mod common;

use std::os::unix::fs::FileExt;

use common::{CHUNK, LIMITS, THRESHOLD, fixture, fixture_on, pattern, unlimited};
use objmapper_engine::account::UNLIMITED;
use objmapper_engine::body::Body;
use objmapper_engine::options::Options;
use objmapper_engine::span::{NoSpan, Part};
use objmapper_server::store::{MemoryMount, MemoryTier, MountAccess, TierKind};

#[test]
fn bodies_of_every_size_read_back_and_leave_nothing() {
    let f = unlimited();
    for len in [1, 100, 4095, 4096, 16_384, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, 300_000, 2 << 20, (5 << 20) + 7] {
        for known in [true, false] {
            for keep in [true, false] {
                let body = f.fetch(len, known, keep);
                f.check(&body, len);
                let in_objmapper = f.counter(|c| &c.g_bodies);
                if known {
                    assert_eq!(in_objmapper, u64::from(len > THRESHOLD), "{len} bytes");
                }
                assert_eq!(body.describe().object.is_some(), in_objmapper == 1 && keep);
                // In heap a surplus below 512 bytes stays, as with malloc.
                let surplus = f.engine.account.used() - len;
                assert!(
                    surplus < if in_objmapper == 1 { 1 } else { 512 },
                    "{len} known {known} keep {keep}: {surplus}"
                );
                body.slim(&f.engine);
                assert_eq!((f.engine.account.used(), f.stored()), (0, 0), "{len} known {known} keep {keep}");
                for gauge in [
                    f.counter(|c| &c.g_bodies),
                    f.counter(|c| &c.g_body_bytes),
                    f.counter(|c| &c.g_heap_bytes),
                    f.counter(|c| &c.g_heap_pieces),
                    f.counter(|c| &c.g_writing),
                    f.counter(|c| &c.g_fds),
                    f.counter(|c| &c.g_maps),
                ] {
                    assert_eq!(gauge, 0);
                }
            }
        }
    }
}

#[test]
fn a_cached_large_body_is_one_span() {
    let f = unlimited();
    let body = f.fetch(9 << 20, false, true);
    assert_eq!(f.check(&body, 9 << 20), 1);
    body.slim(&f.engine);
}

#[test]
fn with_threshold_0_every_byte_is_in_objmapper() {
    let f = fixture(Options { threshold: 0, ..Options::default() }, 64 << 20);
    let body = f.fetch(1, true, true);
    assert_eq!((f.counter(|c| &c.g_bodies), f.counter(|c| &c.g_heap_pieces)), (1, 0));
    f.check(&body, 1);
    body.slim(&f.engine);
    let empty = f.fetch(0, true, true);
    assert_eq!(f.check(&empty, 0), 0);
    empty.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn an_address_that_was_handed_out_stays_while_the_body_moves() {
    let f = unlimited();
    let body = Body::default();
    assert!(f.write(&body, THRESHOLD, false, CHUNK));
    assert!(body.part(&f.engine, 0).unwrap().is_stable());
    let early = f.there(&body, 0);
    assert!(f.write_more(&body, 4 << 20));
    for i in 0..early.len {
        // SAFETY: what moved to objmapper keeps its heap until `settle`.
        assert_eq!(unsafe { early.ptr.as_ptr().add(i).read() }, pattern(i as u64));
    }
    body.trim(&f.engine);
    drop(early);
    assert!(body.settle(&f.engine, true, 0));
    f.check(&body, 4 << 20);
    assert_eq!(f.counter(|c| &c.g_heap_pieces), 0);
    body.slim(&f.engine);
}

#[test]
fn a_reader_of_a_draft_reads_on_while_and_after_it_is_published() {
    let f = unlimited();
    let body = Body::default();
    // All of it is in the buffer still.
    assert!(f.write(&body, 100_000, true, 1 << 20));
    assert!(!body.part(&f.engine, 0).unwrap().is_stable());
    let reader = f.there(&body, 0);
    assert!(f.write_more(&body, 1 << 20));
    // And this is in the file.
    let file = f.in_file(&body, 0);
    assert!(file.len > 100_000);
    body.trim(&f.engine);
    assert!(body.settle(&f.engine, true, 0));
    assert_eq!((f.counter(|c| &c.c_published), f.counter(|c| &c.g_writing)), (1, 0));
    for i in 0..reader.len {
        // SAFETY: a span's bytes can be read while it lives.
        assert_eq!(unsafe { reader.ptr.as_ptr().add(i).read() }, pattern(i as u64));
    }
    drop(reader);
    let mut bytes = vec![0; file.len as usize];
    file.file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().zip(0..).all(|(byte, offset)| *byte == pattern(offset)));
    f.check(&body, 1 << 20);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn a_full_store_means_heap_under_the_same_limit() {
    let f = fixture(Options::default(), 1 << 20);
    let first = f.fetch(900_000, true, true);
    let second = f.fetch(900_000, true, true);
    assert_eq!((f.counter(|c| &c.g_bodies), f.counter(|c| &c.c_fallback_full)), (1, 1));
    assert_eq!(f.engine.account.used(), 1_800_000);
    f.check(&first, 900_000);
    f.check(&second, 900_000);
    // Half-way: the store runs out while an unknown length comes in.
    first.slim(&f.engine);
    let third = f.fetch(3 << 20, false, true);
    assert_eq!(f.counter(|c| &c.c_mixed), 1);
    f.check(&third, 3 << 20);
    // What is in the file is published, so that no draft is left, and the rest is in heap.
    let described = third.describe();
    assert!(described.object.is_some() && described.heap_pieces > 0 && !described.in_draft, "{described:?}");
    assert_eq!((f.counter(|c| &c.g_writing), f.counter(|c| &c.g_bodies), f.store.stats().private), (0, 1, 0));
    assert_eq!(f.engine.account.used(), 900_000 + (3 << 20));
    second.slim(&f.engine);
    third.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_writing)), (0, 0, 0));
}

#[test]
fn the_limit_is_exact_and_eviction_is_asked_for() {
    let f = fixture(Options { size: 1 << 20, ..Options::default() }, 64 << 20);
    let body = Body::default();
    let mut nuked = 0;
    assert!(!f.write(&body, 2 << 20, true, 1 << 20), "more than the limit");
    assert!(f.engine.account.used() <= 1 << 20);
    let other = Body::default();
    let room = other.space(&f.engine, CHUNK, true, LIMITS, &mut || {
        nuked += 1;
        body.slim(&f.engine);
        nuked == 1
    });
    assert!(room.is_ok());
    assert_eq!(nuked, 1);
    other.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn descriptors_and_mappings_stay_within_their_bounds_and_bodies_stay_readable() {
    let f = fixture(Options { threshold: 0, fds: Some(3), maps: 2, size: UNLIMITED, ..Options::default() }, 64 << 20);
    let bodies: Vec<Body> = (0..50).map(|_| f.fetch(5000, true, true)).collect();
    for _ in 0..2 {
        for body in &bodies {
            f.check(body, 5000);
            assert!(matches!(body.part_for_kernel(&f.engine, 0), Ok(Part::Mapped(_))));
            assert!(f.counter(|c| &c.g_fds) <= 3 && f.counter(|c| &c.g_maps) <= 2);
        }
    }
    assert!(f.counter(|c| &c.c_fds_closed) >= 47 && f.counter(|c| &c.c_maps_dropped) >= 48);
    for body in &bodies {
        body.slim(&f.engine);
    }
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_fds)), (0, 0, 0));
}

#[test]
fn a_final_iteration_gives_back_what_it_read() {
    for len in [50_000, 3 << 20] {
        let f = unlimited();
        let body = Body::default();
        assert!(f.write(&body, len, false, CHUNK));
        body.trim(&f.engine);
        assert!(body.settle(&f.engine, false, 0));
        let mut offset = 0;
        loop {
            let n = f.check_next(&body, offset);
            if n == 0 {
                break;
            }
            offset += n;
            let before = f.engine.account.used();
            body.give_back(&f.engine, offset, 1);
            assert!(f.engine.account.used() < before || offset == len);
        }
        assert!(body.part(&f.engine, 0).is_err(), "what was given back is not there any more");
        assert_eq!(offset, len);
        assert!(f.engine.account.used() <= CHUNK as u64);
        body.slim(&f.engine);
        assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
    }
}

#[test]
fn what_a_final_iteration_cannot_give_back_while_the_writer_works_it_gives_back_later() {
    let f = fixture(Options { size: 2 << 20, threshold: 0, ..Options::default() }, 64 << 20);
    let body = Body::default();
    assert!(f.write(&body, 2 << 20, true, CHUNK));
    // The limit is reached: the writer looks for room, and meanwhile the reader is done with half of the body.
    let mut asked = 0;
    let room = body.space(&f.engine, CHUNK, false, LIMITS, &mut || {
        body.give_back(&f.engine, 1 << 20, 1);
        asked += 1;
        false
    });
    assert!(room.is_err());
    assert_eq!((asked, f.engine.account.used()), (1, 2 << 20));
    body.give_back(&f.engine, (1 << 20) + 1, 1);
    assert_eq!(f.engine.account.used(), (1 << 20) - 1);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn a_body_that_evicts_on_its_way_in_finds_the_store_with_room() {
    // The store holds hardly more than the limit allows, as the embedded one does.
    let f = fixture(Options { size: 8 << 20, ..Options::default() }, 9 << 20);
    let mut cached: Vec<Body> = (0..8).map(|_| f.fetch(1 << 20, true, true)).collect();
    let body = Body::default();
    let mut done = 0;
    while done < 6 << 20 {
        let want = (6 << 20) - done;
        let room = body.space(&f.engine, want, true, LIMITS, &mut || match cached.pop() {
            Some(oldest) => {
                oldest.slim(&f.engine);
                true
            }
            None => false,
        });
        let Ok((_, room)) = room else { panic!("no room after {done} bytes") };
        body.extend(room.min(want) as u64);
        done += room.min(want);
    }
    body.trim(&f.engine);
    assert!(body.settle(&f.engine, true, 0));
    assert_eq!((f.counter(|c| &c.c_fallback_full), f.counter(|c| &c.g_heap_pieces)), (0, 0));
    assert!(body.describe().object.is_some());
    body.slim(&f.engine);
    cached.iter().for_each(|body| body.slim(&f.engine));
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn a_draft_that_fails_before_its_first_byte_costs_nothing() {
    // The store allows more than its file system has.
    let mount = MemoryMount::new(1 << 20, MountAccess::AnyUser).unwrap();
    if mount.kind() == objmapper_server::store::MountKind::SharedMemoryDirectory {
        eprintln!("not tested: no file system of our own can be mounted here");
        return;
    }
    let f = fixture_on(Options::default(), MemoryTier { limit: 1 << 40, mount: Some(mount) });
    let mut filler = Vec::new();
    while f.counter(|c| &c.c_fallback_full) == 0 {
        filler.push(f.fetch(900_000, true, true));
        assert!(filler.len() < 10_000, "the file system has no limit");
    }
    let fell_back = filler.last().unwrap();
    f.check(fell_back, 900_000);
    // All but the last one; of that one the beginning may be there, published, or could not be and was copied.
    let in_store = filler.len() as u64 - 1;
    assert_eq!(f.counter(|c| &c.g_writing), 0);
    let published = f.counter(|c| &c.c_published);
    assert_eq!(f.counter(|c| &c.g_bodies), published);
    assert_eq!(published + f.counter(|c| &c.c_publish_copied), in_store + f.counter(|c| &c.c_mixed));
    assert!(fell_back.describe().heap_pieces > 0 && !fell_back.describe().in_draft);
    assert_eq!(f.engine.account.used(), filler.len() as u64 * 900_000);
    // The next one finds not even a page.
    let whole = f.counter(|c| &c.c_mixed);
    let next = f.fetch(900_000, true, true);
    f.check(&next, 900_000);
    assert_eq!((f.counter(|c| &c.c_mixed), f.counter(|c| &c.g_writing)), (whole, 0));
    assert!(next.describe().heap_pieces > 0 && !next.describe().in_draft);
    // Nor does one that is short enough to find that out only at its end.
    let short = f.fetch(200_000, true, true);
    f.check(&short, 200_000);
    assert_eq!((short.describe().heap_pieces, short.describe().in_draft), (1, false));
    assert_eq!((f.counter(|c| &c.c_mixed), f.counter(|c| &c.g_writing)), (whole, 0));
    assert_eq!(f.engine.account.used(), (filler.len() as u64 + 1) * 900_000 + 200_000);
    short.slim(&f.engine);
    next.slim(&f.engine);
    for body in &filler {
        body.slim(&f.engine);
    }
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_writing)), (0, 0, 0));
}

#[test]
fn a_fetch_that_ends_without_a_trim_is_published_all_the_same() {
    let f = unlimited();
    let body = Body::default();
    assert!(f.write(&body, 100_000, true, 10_000));
    let (_, room) = body.space(&f.engine, 1 << 20, true, LIMITS, &mut || false).unwrap();
    assert!(room > 0 && f.engine.account.used() > 100_000);
    assert!(body.settle(&f.engine, true, 0));
    assert_eq!((f.engine.account.used(), f.counter(|c| &c.c_published)), (100_000, 1));
    f.check(&body, 100_000);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn a_pass_larger_than_the_storage_goes_through_it() {
    let f = fixture(Options { size: 2 << 20, threshold: 0, ..Options::default() }, 3 << 20);
    let body = Body::default();
    let mut len = 0;
    while len < 20 << 20 {
        assert!(f.write_more(&body, len + (1 << 20)));
        let mut offset = len;
        while offset < body.len() {
            offset += f.check_next(&body, offset);
            body.give_back(&f.engine, offset, 1);
        }
        len += 1 << 20;
        assert_eq!(offset, len);
    }
    assert_eq!((f.counter(|c| &c.c_fallback_full), f.counter(|c| &c.g_heap_pieces)), (0, 0));
    body.trim(&f.engine);
    assert!(body.settle(&f.engine, false, 0));
    assert_eq!(f.engine.account.used(), 0);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_writing)), (0, 0, 0));
}

#[test]
fn the_store_charges_for_what_is_given_back_and_not_freed_yet() {
    let f = fixture(Options { threshold: 0, ..Options::default() }, 256 << 20);
    let on_file_system = || {
        let stat = nix::sys::statvfs::fstatvfs(f.store.tier_dir(TierKind::Memory).unwrap()).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    };
    let empty = on_file_system();
    let body = Body::default();
    let mut offset = 0;
    for round in 1..=40 {
        assert!(f.write_more(&body, round * 900_000));
        let (charged, taken) = (f.stored(), on_file_system() - empty);
        assert!(charged >= taken, "round {round}: {charged} bytes charged, {taken} taken");
        while offset < body.len() {
            offset += f.check_next(&body, offset);
            body.give_back(&f.engine, offset, 2 << 20);
        }
    }
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn what_a_final_iteration_gives_back_is_never_what_the_writer_moves() {
    let f = unlimited();
    const LEN: u64 = 200_000;
    for _ in 0..200 {
        let body = Body::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut offset = 0;
                while offset < LEN {
                    let n = f.check_next(&body, offset);
                    offset += n;
                    body.give_back(&f.engine, offset, 1);
                }
            });
            // Across the threshold in small steps, as a pass without a length comes in.
            for end in (10_001..=LEN).step_by(10_001).chain([LEN]) {
                assert!(f.write_more(&body, end));
            }
        });
        body.trim(&f.engine);
        assert!(body.settle(&f.engine, false, 0));
        body.slim(&f.engine);
        assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.g_body_bytes)), (0, 0, 0));
        assert_eq!((f.counter(|c| &c.g_heap_bytes), f.counter(|c| &c.c_err_io)), (0, 0));
    }
}

#[test]
fn readers_never_keep_a_body_from_being_published() {
    let f = unlimited();
    const LEN: u64 = 300_000;
    for round in 1..=100 {
        let body = Body::default();
        assert!(f.write(&body, LEN, false, CHUNK));
        body.trim(&f.engine);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut offset = 0;
                    while offset < LEN {
                        offset += f.check_next(&body, offset).min(50_000);
                    }
                });
            }
            assert!(body.settle(&f.engine, true, 0));
        });
        assert_eq!((f.counter(|c| &c.c_published), f.counter(|c| &c.g_writing)), (round, 0));
        body.slim(&f.engine);
    }
    assert_eq!((f.engine.account.used(), f.stored(), f.counter(|c| &c.c_body_failed)), (0, 0, 0));
}

#[test]
fn an_absurd_content_length_is_a_body_as_any_other() {
    let f = fixture(Options::default(), 1 << 30);
    let body = Body::default();
    let announced = 1 << 50;
    let (_, room) = body.space(&f.engine, announced, true, LIMITS, &mut || false).unwrap();
    assert!(room > 0);
    body.extend(1);
    assert_eq!((f.counter(|c| &c.g_writing), f.counter(|c| &c.c_fallback_full)), (1, 0));
    assert!(f.engine.account.used() <= LIMITS.max as u64);
    body.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}

#[test]
fn a_body_whose_file_was_shortened_is_lost_and_never_a_fault() {
    let f = fixture(Options { threshold: 0, fds: Some(1), ..Options::default() }, 64 << 20);
    let (body, other) = (f.fetch(1 << 20, true, true), f.fetch(100, true, true));
    let Ok(Part::Mapped(mapped)) = body.part_for_kernel(&f.engine, 0) else { panic!("not mapped") };
    // Still open, shortened by the store's own user.
    let open = f.in_file(&body, 0);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*open.file));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let mut buffer = vec![0; 2000];
    assert_eq!(open.read(&mut buffer).unwrap(), 1000);
    let behind = f.in_file(&body, 1000);
    assert!(matches!(behind.read(&mut buffer), Err(NoSpan::Lost(_))));
    // The kernel reads through the mapping: an error, not a signal.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let behind = mapped.ptr().wrapping_add(512 << 10);
    let write = || {
        // SAFETY: write(2) of bytes that cannot be read is an error.
        unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), behind.cast(), 100) }
    };
    assert!(mapped.lend(write, |written| *written < 0).is_err());
    assert!(
        mapped.lend(|| -1, |written| *written < 0).is_ok_and(|written| written == -1),
        "the consumer's own failure"
    );
    std::io::Write::write_all(&mut writer, b"x").unwrap();
    drop((reader, open, behind, mapped));
    // And opened again.
    f.check(&other, 100);
    let Err(NoSpan::Lost(error)) = body.part(&f.engine, 0) else { panic!("of another length") };
    for _ in 0..2 {
        body.lose(&f.engine, &error);
    }
    assert_eq!((f.counter(|c| &c.c_lost), f.counter(|c| &c.c_err_io)), (1, 2));
    body.slim(&f.engine);
    other.slim(&f.engine);
    assert_eq!((f.engine.account.used(), f.stored()), (0, 0));
}
