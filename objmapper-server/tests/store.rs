//! The store as an embedding process sees it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use objmapper_server::store::*;

const PAGE: u64 = 4096;

fn memory_config(limit: u64) -> StoreConfig {
    StoreConfig { memory: Some(MemoryTier { limit, mount: None }), ..StoreConfig::default() }
}

fn disk_config(dir: &std::path::Path, limit: u64) -> StoreConfig {
    StoreConfig { disk: Some(DiskTier { dir: dir.into(), limit }), ..StoreConfig::default() }
}

fn memory(limit: u64) -> (Store, Session) {
    let store = Store::open(memory_config(limit)).unwrap();
    let session = store.session(None).unwrap();
    (store, session)
}

fn write(private: &PrivateObject, body: &[u8]) {
    let file = private.file().unwrap().try_clone_to_owned().unwrap();
    File::from(file).write_all(body).unwrap();
}

fn put_with(session: &Session, body: &[u8], commit: Commit<'_>) -> Result<Entry, StoreError> {
    let mut private = session.create(None, body.len() as u64, Some(commit.uri))?;
    write(&private, body);
    private.commit(commit)
}

fn put(session: &Session, uri: &[u8], body: &[u8]) -> Entry {
    put_with(session, body, Commit::new(uri, body.len() as u64)).unwrap()
}

fn read(fd: OwnedFd) -> Vec<u8> {
    let mut body = Vec::new();
    File::from(fd).read_to_end(&mut body).unwrap();
    body
}

fn used(store: &Store) -> u64 {
    let stat = store.stats().tiers[0];
    stat.used - stat.index
}

/// Waits for a condition with a bound.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn in_ms(ms: i64) -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64 + ms
}

#[test]
fn a_private_object_is_seen_by_nobody_until_its_commit() {
    let (store, session) = memory(4 << 20);
    let mut private = session.create(None, 5, Some(b"/a")).unwrap();
    write(&private, b"hello");
    assert_eq!(store.lookup(b"/a").unwrap(), None);
    assert!(store.list(b"/", b"", 10).entries.is_empty());
    assert_eq!((used(&store), store.stats().private), (PAGE, 1));
    let entry = private.commit(Commit::new(b"/a", 5)).unwrap();
    assert_eq!((entry.length, entry.tier, entry.is_pinned()), (5, TierKind::Memory, false));
    let (found, body) = store.open_uri(b"/a").unwrap().unwrap();
    assert_eq!(found, entry);
    assert_eq!(read(body), b"hello");
    assert_eq!((used(&store), store.stats().private), (PAGE, 0));
}

#[test]
fn dropping_or_aborting_a_private_object_gives_everything_back() {
    let (store, session) = memory(4 << 20);
    drop(session.create(None, 1 << 20, None).unwrap());
    let (handle, file) = session.create(None, 1 << 20, None).unwrap().into_parts().unwrap();
    assert_eq!(used(&store), 1 << 20);
    session.abort(handle).unwrap();
    assert!(matches!(session.abort(handle), Err(StoreError::UnknownHandle)));
    assert_eq!((used(&store), store.stats().private), (1 << 20, 1), "it can still be written");
    drop(file);
    eventually("nothing is left", || (used(&store), store.stats().private) == (0, 0));
}

#[test]
fn bodies_cannot_be_written_by_readers() {
    let (store, session) = memory(4 << 20);
    let entry = put(&session, b"/a", b"hello");
    let body = store.open_body(entry.tier, entry.object).unwrap();
    assert!(rustix::io::write(&body, b"x").is_err());
    assert!(rustix::fs::ftruncate(&body, 0).is_err());
    assert_eq!(rustix::fs::fstat(&body).unwrap().st_mode & 0o777, 0o444);
    let dir = rustix::fs::fstat(store.tier_dir(TierKind::Memory).unwrap()).unwrap();
    assert_eq!(dir.st_mode & 0o022, 0, "peers could write into the tier's directory");
}

#[test]
fn a_commit_replaces_and_a_version_guards_it() {
    let (store, session) = memory(4 << 20);
    let none = Commit { if_version: 0, ..Commit::new(b"/a", 1) };
    let first = put_with(&session, b"1", none).unwrap();
    assert!(matches!(put_with(&session, b"2", none), Err(StoreError::Conflict(_))));
    let second = put_with(&session, b"2", Commit { if_version: first.version, ..none }).unwrap();
    assert!(second.version > first.version && second.object != first.object);
    let stale = Commit { if_version: first.version, ..none };
    assert!(matches!(put_with(&session, b"3", stale), Err(StoreError::Conflict(_))));
    assert_eq!(read(store.open_uri(b"/a").unwrap().unwrap().1), b"2");
    assert!(store.open_body(first.tier, first.object).is_err(), "the replaced file must be gone");
    assert_eq!((used(&store), store.stats().tiers[0].objects, store.stats().private), (PAGE, 1, 0));
    assert!(matches!(store.delete(b"/a", first.version), Err(StoreError::Conflict(_))));
    store.delete(b"/a", second.version).unwrap();
    assert!(matches!(store.delete(b"/a", ANY_VERSION), Err(StoreError::NotFound)));
    assert_eq!(used(&store), 0);
}

#[test]
fn a_commit_is_refused_while_the_file_is_writable_somewhere_and_can_be_repeated() {
    let (_, session) = memory(4 << 20);
    let mut private = session.create(None, 5, None).unwrap();
    write(&private, b"hello");
    let duplicate = private.file().unwrap().try_clone_to_owned().unwrap();
    assert!(matches!(private.commit(Commit::new(b"/a", 5)), Err(StoreError::Busy)));
    // SAFETY: a fresh shared mapping of an open file; unmapped below, never dereferenced.
    let map = unsafe {
        let prot = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, rustix::mm::MapFlags::SHARED, &duplicate, 0)
    }
    .unwrap();
    drop(duplicate);
    assert!(matches!(private.commit(Commit::new(b"/a", 5)), Err(StoreError::Busy)));
    // SAFETY: the mapping made above.
    unsafe { rustix::mm::munmap(map, 4096) }.unwrap();
    assert!(matches!(private.commit(Commit::new(b"/a", 4)), Err(StoreError::Invalid(_))));
    private.commit(Commit::new(b"/a", 5)).unwrap();
}

#[test]
fn a_delete_dooms_the_private_objects_of_its_uri() {
    let (store, session) = memory(4 << 20);
    let mut doomed = session.create(None, 1, Some(b"/a")).unwrap();
    write(&doomed, b"x");
    let mut other = session.create(None, 1, Some(b"/b")).unwrap();
    write(&other, b"x");
    assert!(matches!(store.delete(b"/a", ANY_VERSION), Err(StoreError::NotFound)));
    assert!(matches!(doomed.commit(Commit::new(b"/a", 1)), Err(StoreError::Conflict(_))));
    other.commit(Commit::new(b"/b", 1)).unwrap();
    put(&session, b"/a", b"later");
    assert_eq!(store.stats().private, 0);
}

#[test]
fn eviction_makes_room_up_to_the_last_byte_and_takes_the_least_recently_used() {
    let limit = 1 << 20;
    let (store, session) = memory(limit);
    let body = vec![7u8; 64 << 10];
    for i in 0..16 {
        put(&session, format!("/{i:02}").as_bytes(), &body);
    }
    assert_eq!(used(&store), limit, "the last byte must be usable");
    assert_eq!(store.stats().tiers[0].evictions, 0);
    store.lookup(b"/00").unwrap().unwrap();
    put(&session, b"/new", &body);
    assert_eq!((used(&store), store.stats().tiers[0].evictions), (limit, 1));
    assert!(store.lookup(b"/00").unwrap().is_some());
    assert!(store.lookup(b"/01").unwrap().is_none());
    put(&session, b"/all", &vec![1u8; limit as usize]);
    assert_eq!((used(&store), store.stats().tiers[0].objects), (limit, 1));
    let too_large = session.create(None, limit + 1, None);
    assert!(matches!(too_large, Err(StoreError::Full { .. })));
    assert!(store.lookup(b"/all").unwrap().is_some(), "an impossible wish must evict nothing");
}

#[test]
fn pinned_and_private_objects_are_not_evicted_but_make_the_tier_full() {
    let (store, session) = memory(1 << 20);
    let pin = Commit { pin: true, ..Commit::new(b"/pinned", 512 << 10) };
    let pinned = put_with(&session, &vec![1; 512 << 10], pin).unwrap();
    let private = session.create(None, 512 << 10, None).unwrap();
    assert!(matches!(session.create(None, 1, None), Err(StoreError::Full { .. })));
    assert!(matches!(private.reserve((512 << 10) + 1), Err(StoreError::Full { .. })));
    private.reserve(256 << 10).unwrap();
    drop(session.create(None, 256 << 10, None).unwrap());
    assert_eq!(store.stats().tiers[0].pinned, 512 << 10);
    // A deleted object that is pinned keeps its file and its bytes.
    store.delete(b"/pinned", ANY_VERSION).unwrap();
    assert!(store.lookup(b"/pinned").unwrap().is_none());
    assert_eq!(read(store.open_body(pinned.tier, pinned.object).unwrap()).len(), 512 << 10);
    assert_eq!(used(&store), 768 << 10);
    session.release(&[pinned.object, 999]);
    assert!(store.open_body(pinned.tier, pinned.object).is_err());
    assert_eq!((used(&store), store.stats().tiers[0].pinned), (256 << 10, 0));
}

#[test]
fn pins_do_not_nest_within_a_session_but_add_up_over_sessions() {
    let (store, one) = memory(1 << 20);
    let two = store.session(None).unwrap();
    let entry = put(&one, b"/a", b"x");
    assert!(one.lookup(b"/a", true).unwrap().unwrap().is_pinned());
    one.lookup(b"/a", true).unwrap().unwrap();
    two.lookup(b"/a", true).unwrap().unwrap();
    put(&one, b"/a", b"y");
    assert_eq!(used(&store), 2 * PAGE);
    one.release(&[entry.object]);
    assert!(store.open_body(entry.tier, entry.object).is_ok());
    two.release(&[entry.object]);
    assert!(store.open_body(entry.tier, entry.object).is_err());
    assert_eq!(used(&store), PAGE);
}

#[test]
fn a_surplus_of_a_commit_is_given_back() {
    let (store, session) = memory(4 << 20);
    let mut private = session.create(None, 1 << 20, None).unwrap();
    let file = private.file().unwrap().try_clone_to_owned().unwrap();
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, keep, 0, 1 << 20).unwrap();
    drop(file);
    write(&private, b"hello");
    private.commit(Commit::new(b"/a", 5)).unwrap();
    assert_eq!(used(&store), PAGE);
}

#[test]
fn a_writer_that_passed_its_reservation_pays_at_the_commit() {
    let (store, session) = memory(1 << 20);
    put(&session, b"/old", &vec![1; 700 << 10]);
    let mut private = session.create(None, 0, None).unwrap();
    write(&private, &vec![2; 600 << 10]);
    private.commit(Commit::new(b"/new", 600 << 10)).unwrap();
    assert!(store.lookup(b"/old").unwrap().is_none());
    assert_eq!(used(&store), 600 << 10);
}

#[test]
fn expired_objects_are_misses_and_their_bytes_come_back() {
    let (store, session) = memory(1 << 20);
    let soon = Commit { expires: in_ms(50), ..Commit::new(b"/a", 1) };
    put_with(&session, b"x", soon).unwrap();
    assert!(store.lookup(b"/a").unwrap().is_some());
    eventually("the object is a miss", || store.lookup(b"/a").unwrap().is_none());
    eventually("its bytes are back", || used(&store) == 0);
    put_with(&session, b"x", Commit { expires: in_ms(-1), ..soon }).unwrap();
    let fresh = Commit { if_version: 0, ..Commit::new(b"/a", 1) };
    put_with(&session, b"y", fresh).expect("an expired object is none");
}

#[test]
fn ephemeral_objects_die_with_their_pin_or_their_session() {
    let (store, session) = memory(1 << 20);
    let other = store.session(None).unwrap();
    let of = |uri| Commit { ephemeral: true, pin: true, ..Commit::new(uri, 1) };
    let released = put_with(&session, b"x", of(b"/released")).unwrap();
    let kept = put_with(&session, b"x", of(b"/kept")).unwrap();
    assert!(kept.is_ephemeral() && kept.is_pinned());
    session.release(&[released.object]);
    assert!(store.lookup(b"/released").unwrap().is_none());
    assert!(other.lookup(b"/kept", false).unwrap().is_some());
    let private = session.create(None, PAGE, None).unwrap().into_parts().unwrap();
    let twin = session.clone();
    session.end();
    assert!(store.lookup(b"/kept").unwrap().is_none());
    drop(private);
    eventually("nothing is left", || (used(&store), store.stats().private, store.stats().sessions) == (0, 0, 1));
    assert!(matches!(twin.lookup(b"/a", true), Err(StoreError::NotFound) | Ok(None)));
    assert!(matches!(twin.create(None, 1, None), Err(StoreError::UnknownSession)));
}

#[test]
fn a_session_outlives_its_connections_by_the_grace_time() {
    let grace = Duration::from_millis(300);
    let store = Store::open(StoreConfig { session_grace: grace, ..memory_config(1 << 20) }).unwrap();
    let session = store.session(None).unwrap();
    let token = session.token();
    let pin = Commit { pin: true, ephemeral: true, ..Commit::new(b"/a", 1) };
    put_with(&session, b"x", pin).unwrap();
    drop(session);
    let back = store.session(Some(token)).unwrap();
    assert!(back.lookup(b"/a", false).unwrap().unwrap().is_pinned());
    drop(back);
    eventually("the session ends", || store.stats().sessions == 0);
    assert!(matches!(store.session(Some(token)), Err(StoreError::UnknownSession)));
    eventually("its object is gone", || used(&store) == 0);
}

#[test]
fn listings_come_in_order_in_pages_and_by_prefix() {
    let (store, session) = memory(4 << 20);
    for i in 0..250 {
        put(&session, format!("/p/{i:03}").as_bytes(), b"x");
    }
    put(&session, b"/q/1", b"x");
    put(&session, b"/o", b"x");
    let (mut seen, mut cursor) = (Vec::new(), Vec::new());
    loop {
        let page = store.list(b"/p/", &cursor, 7);
        assert!(page.entries.len() <= 7);
        seen.extend(page.entries.iter().map(|(uri, _)| uri.to_vec()));
        if page.last {
            break;
        }
        cursor = seen.last().unwrap().clone();
        // What goes during the walk does not disturb the rest.
        let _ = store.delete(b"/p/000", ANY_VERSION);
    }
    let expected: Vec<_> = (0..250).map(|i| format!("/p/{i:03}").into_bytes()).collect();
    assert_eq!(seen, expected);
}

#[test]
fn v01_objects_are_visible_at_once_and_weighed_again() {
    let (store, _) = memory(1 << 20);
    let (entry, writer) = store.get_or_create(None, b"/f").unwrap();
    assert!(entry.is_foreign() && entry.length == 0);
    let mut writer = File::from(writer);
    writer.write_all(&vec![1; 300 << 10]).unwrap();
    let (entry, reader) = store.get_or_create(None, b"/f").unwrap();
    assert_eq!((entry.length, used(&store)), (300 << 10, 300 << 10));
    assert!(rustix::io::write(&reader, b"x").is_err(), "a later get must be read-only");
    writer.write_all(&vec![1; 100 << 10]).unwrap();
    eventually("the sweep weighs it", || used(&store) == 400 << 10);
    writer.write_all(&vec![1; 1200 << 10]).unwrap();
    eventually("what the tier cannot hold goes", || store.lookup(b"/f").unwrap().is_none());
    assert_eq!((used(&store), store.stats().foreign_overruns), (400 << 10, 1), "it can still be written");
    drop(writer);
    eventually("nothing is left", || used(&store) == 0);
}

#[test]
fn a_v01_object_that_its_creator_left_empty_can_be_filled_by_the_next() {
    let (store, _) = memory(1 << 20);
    drop(store.get_or_create(None, b"/f").unwrap());
    let (_, next) = store.get_or_create(None, b"/f").unwrap();
    let mut next = File::from(next);
    next.write_all(b"hello").unwrap();
    drop(next);
    let (_, reader) = store.get_or_create(None, b"/f").unwrap();
    assert!(rustix::io::write(&reader, b"x").is_err());
    assert_eq!(read(reader), b"hello");
}

#[test]
fn legacy_writable_gives_writable_descriptors() {
    let store = Store::open(StoreConfig { legacy_writable: true, ..memory_config(1 << 20) }).unwrap();
    let (_, first) = store.get_or_create(None, b"/f").unwrap();
    File::from(first).write_all(b"hello").unwrap();
    let (_, again) = store.get_or_create(None, b"/f").unwrap();
    File::from(again).write_all(b"HE").unwrap();
    assert_eq!(read(store.open_uri(b"/f").unwrap().unwrap().1), b"HEllo");
}

fn lease(session: &Session, wait: u64, hold: u64) -> (LeaseOutcome, mpsc::Receiver<Result<LeaseOutcome, StoreError>>) {
    let (tell, told) = mpsc::channel();
    let callback = Box::new(move |outcome| tell.send(outcome).unwrap_or(()));
    let (wait, hold) = (Duration::from_millis(wait), Duration::from_millis(hold));
    (session.lease(b"/l", wait, hold, false, callback).unwrap(), told)
}

fn told(receiver: &mpsc::Receiver<Result<LeaseOutcome, StoreError>>) -> LeaseOutcome {
    receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap()
}

#[test]
fn one_fetches_and_the_others_get_its_object() {
    let (store, one) = memory(1 << 20);
    let two = store.session(None).unwrap();
    assert!(matches!(lease(&one, 0, 60_000).0, LeaseOutcome::Granted(_)));
    let (outcome, waiting) = lease(&two, 60_000, 60_000);
    assert!(matches!(outcome, LeaseOutcome::Waiting(_)));
    assert!(matches!(lease(&two, 0, 60_000).0, LeaseOutcome::TimedOut));
    let entry = put(&one, b"/l", b"x");
    assert!(matches!(told(&waiting), LeaseOutcome::Present(e) if e.object == entry.object));
    assert!(matches!(lease(&two, 0, 60_000).0, LeaseOutcome::Present(_)));
    assert_eq!(store.stats().leases, 0);
}

#[test]
fn a_lease_passes_on_when_it_is_given_up_runs_out_or_dies() {
    let (store, one) = memory(1 << 20);
    let (two, three) = (store.session(None).unwrap(), store.session(None).unwrap());
    let LeaseOutcome::Granted(id) = lease(&one, 0, 60_000).0 else { panic!("not granted") };
    let (_, second) = lease(&two, 60_000, 60_000);
    let (_, third) = lease(&three, 60_000, 50);
    assert!(matches!(two.unlease(id, Duration::ZERO), Err(StoreError::UnknownHandle)), "not theirs");
    one.unlease(id, Duration::ZERO).unwrap();
    assert!(matches!(told(&second), LeaseOutcome::Granted(_)));
    two.end();
    assert!(matches!(told(&third), LeaseOutcome::Granted(_)));
    // The third one's hold of 50 ms runs out while the first waits.
    let (_, again) = lease(&one, 60_000, 60_000);
    let LeaseOutcome::Granted(id) = told(&again) else { panic!("not granted") };
    let (_, impatient) = lease(&three, 50, 1);
    assert!(matches!(told(&impatient), LeaseOutcome::TimedOut));
    let (outcome, cancelled) = lease(&three, 60_000, 1);
    let LeaseOutcome::Waiting(ticket) = outcome else { panic!("not waiting") };
    assert!(three.cancel_wait(ticket) && !three.cancel_wait(ticket));
    let (_, waiting) = lease(&three, 60_000, 1);
    one.unlease(id, Duration::from_secs(60)).unwrap();
    assert!(matches!(told(&waiting), LeaseOutcome::Refused(_)));
    assert!(cancelled.recv_timeout(Duration::from_secs(1)).is_err());
    assert!(matches!(lease(&one, 60_000, 1).0, LeaseOutcome::Refused(_)));
    put(&one, b"/l", b"x");
    store.delete(b"/l", ANY_VERSION).unwrap();
    assert!(matches!(lease(&one, 0, 1).0, LeaseOutcome::Granted(_)), "a commit ends a refusal");
}

#[test]
fn a_disk_tier_comes_back_with_objects_sessions_and_pins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/here");
    let store = Store::open(disk_config(&path, 4 << 20)).unwrap();
    let instance = store.instance();
    let session = store.session(None).unwrap();
    let token = session.token();
    let first = put(&session, b"/a", b"first");
    let pinned = session.lookup(b"/a", true).unwrap().unwrap();
    put(&session, b"/a", b"second");
    put(&session, b"/gone", b"x");
    store.delete(b"/gone", ANY_VERSION).unwrap();
    put_with(&session, b"e", Commit { ephemeral: true, ..Commit::new(b"/e", 1) }).unwrap();
    put_with(&session, b"x", Commit { expires: in_ms(3_600_000), ..Commit::new(b"/x", 1) }).unwrap();
    let abandoned = session.create(None, 1 << 20, None).unwrap();
    let before: Vec<_> = store.list(b"/", b"", 100).entries;
    drop(abandoned);
    drop((session, store));

    let store = Store::open(disk_config(&path, 4 << 20)).unwrap();
    assert_eq!(store.instance(), instance);
    assert_eq!(store.list(b"/", b"", 100).entries, before);
    assert_eq!(used(&store), 4 * PAGE);
    assert_eq!(read(store.open_body(TierKind::Disk, pinned.object).unwrap()), b"first");
    let session = store.session(Some(token)).unwrap();
    let fresh = put(&session, b"/b", b"x");
    assert!(fresh.object > before.iter().map(|(_, e)| e.object).max().unwrap());
    session.release(&[first.object]);
    assert!(store.open_body(TierKind::Disk, pinned.object).is_err());
    session.end();
    assert!(store.lookup(b"/e").unwrap().is_none());
    assert_eq!(read(store.open_uri(b"/a").unwrap().unwrap().1), b"second");
}

#[test]
fn two_stores_cannot_use_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _one = Store::open(disk_config(dir.path(), 4 << 20)).unwrap();
    let error = Store::open(disk_config(dir.path(), 4 << 20)).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains("remedy"), "{error}");
}

#[test]
fn a_lowered_limit_is_met_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(disk_config(dir.path(), 4 << 20)).unwrap();
    let session = store.session(None).unwrap();
    for i in 0..4 {
        put(&session, format!("/{i}").as_bytes(), &vec![1; 1 << 20]);
    }
    drop((session, store));
    // The index needs some of it.
    let store = Store::open(disk_config(dir.path(), (2 << 20) + (512 << 10))).unwrap();
    assert_eq!((used(&store), store.stats().tiers[0].objects), (2 << 20, 2));
    assert!(store.lookup(b"/3").unwrap().is_some(), "the oldest go first");
}

#[test]
fn files_without_a_record_and_records_without_a_file_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let objects = dir.path().join("objmapper-store/objects");
    let store = Store::open(disk_config(dir.path(), 4 << 20)).unwrap();
    let session = store.session(None).unwrap();
    let kept = put(&session, b"/kept", b"x");
    let lost = put(&session, b"/lost", b"x");
    drop((session, store));
    std::fs::remove_file(objects.join(body_path(lost.object))).unwrap();
    let orphan = objects.join(body_path(lost.object + 1));
    std::fs::write(&orphan, "half").unwrap();
    let store = Store::open(disk_config(dir.path(), 4 << 20)).unwrap();
    eventually("the orphan is removed", || !orphan.exists());
    eventually("the record is dropped", || used(&store) == PAGE);
    assert!(store.lookup(b"/lost").unwrap().is_none());
    assert!(objects.join(body_path(kept.object)).exists());
}

#[test]
fn any_tier_means_memory_first_then_disk() {
    let dir = tempfile::tempdir().unwrap();
    let both = StoreConfig { disk: disk_config(dir.path(), 4 << 20).disk, ..memory_config(1 << 20) };
    let store = Store::open(both).unwrap();
    let session = store.session(None).unwrap();
    let commit = Commit { pin: true, ..Commit::new(b"/m", 1 << 20) };
    assert_eq!(put_with(&session, &vec![1; 1 << 20], commit).unwrap().tier, TierKind::Memory);
    assert_eq!(put(&session, b"/d", b"x").tier, TierKind::Disk);
    // Replacing across tiers frees the other one's file.
    let mut over = session.create(Some(TierKind::Disk), 1, None).unwrap();
    write(&over, b"y");
    over.commit(Commit::new(b"/m", 1)).unwrap();
    session.release(&[1, 2, 3]);
    assert_eq!(store.stats().tiers[0].objects, 0);
}

#[test]
fn unusable_configurations_are_explained() {
    let none = Store::open(StoreConfig::default()).unwrap_err().to_string();
    assert!(none.contains("neither"), "{none}");
    let small = Store::open(memory_config(4096)).unwrap_err().to_string();
    assert!(small.contains("4096") && small.contains("1M"), "{small}");
    let dir = std::path::Path::new("/proc/nowhere");
    let bad = Store::open(disk_config(dir, 4 << 20)).unwrap_err().to_string();
    assert!(bad.contains("/proc/nowhere") && bad.contains("remedy"), "{bad}");
}

/// Many threads, few URIs, a tight limit: the account must never pass the limit and end at exactly
/// what the surviving files weigh.
fn stress(config: StoreConfig) {
    let store = Store::open(config).unwrap();
    let limit = store.stats().tiers[0].limit;
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                let session = store.session(None).unwrap();
                let mut seed = thread + 1;
                for _ in 0..400 {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let uri = format!("/{}", seed >> 33 & 15);
                    match seed >> 40 & 7 {
                        0..3 => {
                            let length = (seed >> 50) as usize * 8;
                            let pin = seed >> 44 & 1 == 1;
                            let commit = Commit { pin, ..Commit::new(uri.as_bytes(), length as u64) };
                            match put_with(&session, &vec![thread as u8; length], commit) {
                                Ok(_) | Err(StoreError::Full { .. } | StoreError::Conflict(_)) => {}
                                Err(e) => panic!("{e}"),
                            }
                        }
                        3..5 => {
                            if let Some((entry, body)) = session.open(uri.as_bytes(), true).unwrap() {
                                let body = read(body);
                                assert_eq!(body.len() as u64, entry.length);
                                assert!(body.windows(2).all(|w| w[0] == w[1]), "torn");
                                let again = store.open_body(entry.tier, entry.object).unwrap();
                                assert_eq!(read(again), body);
                                session.release(&[entry.object]);
                            }
                        }
                        5 => {
                            let _ = store.delete(uri.as_bytes(), ANY_VERSION);
                        }
                        _ => {
                            let _ = session.lookup(uri.as_bytes(), false).unwrap();
                        }
                    }
                    assert!(used(store) <= limit);
                }
                session.end();
            });
        }
    });
    let stats = &store.stats().tiers[0];
    let listing = store.list(b"/", b"", 100);
    let weight: u64 = listing.entries.iter().map(|(_, e)| e.length.max(1).div_ceil(PAGE) * PAGE).sum();
    assert_eq!((stats.used - stats.index, stats.pinned, stats.objects), (weight, 0, listing.entries.len() as u64));
    for (_, entry) in &listing.entries {
        let fd = store.open_body(entry.tier, entry.object).unwrap();
        assert_eq!(rustix::fs::fstat(fd.as_fd()).unwrap().st_size as u64, entry.length);
    }
    assert_eq!(store.stats().lost_files, 0);
}

#[test]
fn many_threads_in_memory() {
    stress(memory_config(1 << 20));
}

#[test]
fn many_threads_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    stress(disk_config(dir.path(), 1 << 20));
}
