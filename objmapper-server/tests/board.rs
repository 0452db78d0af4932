//! The board and its fences: nothing that was fetched before a delete is published after it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use objmapper_proto::ObjUri;
use objmapper_proto::ext::board::{MAGIC, SIZE, SLOTS, Word};
use objmapper_server::store::*;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

fn open() -> (Store, Session) {
    let memory = Some(MemoryTier { limit: 8 << 20, mount: None });
    let store = Store::open(StoreConfig { memory, ..StoreConfig::default() }).unwrap();
    let session = store.session(None).unwrap();
    (store, session)
}

fn word(store: &Store, word: Word) -> u64 {
    let file = File::from(store.board().try_clone_to_owned().unwrap());
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, word.offset() as u64).unwrap();
    u64::from_ne_bytes(bytes)
}

fn fence(store: &Store, uri: &str) -> Fence {
    let shard = Fence::shard_of(&ObjUri::try_from(uri).unwrap());
    Fence { shard, value: word(store, Word::Fence(shard)) }
}

fn private(session: &Session, body: &[u8], uri: Option<&[u8]>) -> PrivateObject {
    let private = session.create(None, body.len() as u64, uri).unwrap();
    File::from(private.file().unwrap().try_clone_to_owned().unwrap()).write_all(body).unwrap();
    private
}

fn is_conflict<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict(_)))
}

#[test]
fn a_board_is_sealed_and_begins_anywhere() {
    let (one, other) = (open().0, open().0);
    let seals = fcntl_get_seals(one.board()).unwrap();
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL), "{seals:?}");
    assert_eq!(fstat(one.board()).unwrap().st_size, SIZE as i64);
    let mut magic = [0; 8];
    let file = File::from(one.board().try_clone_to_owned().unwrap());
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(magic, MAGIC);
    for slot in 0..SLOTS {
        assert_eq!(word(&one, Word::Announced(slot)), word(&one, Word::Recorded(slot)));
        assert_ne!(word(&one, Word::Recorded(slot)), word(&other, Word::Recorded(slot)));
    }
    assert_ne!(fence(&one, "/a"), fence(&other, "/a"));
}

#[test]
fn a_delete_moves_the_fence_and_an_eviction_does_not() {
    let (store, session) = open();
    let mut last = fence(&store, "/a");
    let mut moved = |what: &str, expected: bool| {
        let now = fence(&store, "/a");
        assert_eq!(now != last, expected, "{what}");
        last = now;
    };
    assert!(matches!(store.delete(b"/a", ANY_VERSION), Err(StoreError::NotFound)));
    moved("a delete that finds nothing", true);
    let first = private(&session, b"1", None).commit(Commit::new(b"/a", 1)).unwrap();
    moved("a commit", false);
    private(&session, b"2", None).commit(Commit::new(b"/a", 1)).unwrap();
    moved("a replacement", false);
    assert!(is_conflict(&store.evict(b"/a", first.version)));
    store.evict(b"/a", ANY_VERSION).unwrap();
    assert!(store.lookup(b"/a").unwrap().is_none());
    moved("an eviction", false);
    private(&session, b"3", None).commit(Commit::new(b"/a", 1)).unwrap();
    store.delete(b"/a", ANY_VERSION).unwrap();
    moved("a delete", true);
    store.evict(b"/a", ANY_VERSION).unwrap_err();
    store.delete(b"/b", ANY_VERSION).unwrap_err();
    moved("a delete of another URI", false);
}

#[test]
fn an_eviction_dooms_nobody() {
    let (store, session) = open();
    let mut kept = private(&session, b"x", Some(b"/a"));
    store.evict(b"/a", ANY_VERSION).unwrap_err();
    kept.commit(Commit::new(b"/a", 1)).unwrap();
}

#[test]
fn a_conflict_of_a_fenced_commit_leaves_the_object_private() {
    let (store, session) = open();
    let seen = fence(&store, "/key");
    let fenced = |uri, length| Commit { fence: Some(seen), ..Commit::new(uri, length) };
    let (mut a, mut b, c) =
        (private(&session, b"a", None), private(&session, b"b", None), private(&session, b"c", None));
    // The fence of the key, for an object under a URI of its own.
    a.commit(fenced(b"/variant/1", 1)).unwrap();
    store.delete(b"/key", ANY_VERSION).unwrap_err();
    assert!(is_conflict(&b.commit(fenced(b"/variant/2", 1))));
    assert!(store.lookup(b"/variant/2").unwrap().is_none(), "nothing is published");
    assert_eq!(session.private_objects(), 2, "it is still private");
    assert!(is_conflict(&b.commit(fenced(b"/variant/3", 1))), "and stays so");
    b.commit(Commit::new(b"/private/2", 1)).unwrap();
    drop(c);
    // Any other reason too, with a fence that holds; without one the handle is used up.
    let now = fence(&store, "/key");
    let mut d = private(&session, b"d", None);
    let there = Commit { if_version: 0, ..Commit::new(b"/private/2", 1) };
    assert!(is_conflict(&d.commit(Commit { fence: Some(now), ..there })));
    assert!(is_conflict(&d.commit(there)));
    assert!(matches!(d.commit(Commit::new(b"/d", 1)), Err(StoreError::UnknownHandle)));
    assert_eq!((session.private_objects(), store.stats().private), (0, 0));
}

/// The invariant: what a reader finds was fetched (its content read from the origin) after the last delete that
/// ended before the reader looked.
#[test]
fn under_load_nothing_older_than_a_delete_is_found_after_it() {
    let (store, _) = open();
    let (origin, stop) = (AtomicU64::new(1), AtomicBool::new(false));
    let (published, refused, seen) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(0u64));
    let end_of_wait = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        for i in 0..3 {
            let (store, origin, stop, published, refused) = (store.clone(), &origin, &stop, &published, &refused);
            let uri = if i == 0 { "/key" } else { "/variant" };
            scope.spawn(move || {
                let session = store.session(None).unwrap();
                while !stop.load(SeqCst) {
                    let fence = fence(&store, "/key");
                    let content = origin.load(SeqCst);
                    let mut object = private(&session, &content.to_be_bytes(), None);
                    match object.commit(Commit { fence: Some(fence), ..Commit::new(uri.as_bytes(), 8) }) {
                        Ok(_) => published.fetch_add(1, SeqCst),
                        Err(StoreError::Conflict(_)) => refused.fetch_add(1, SeqCst),
                        Err(why) => panic!("{why}"),
                    };
                }
            });
        }
        while published.load(SeqCst) < 500 || refused.load(SeqCst) < 20 {
            assert!(Instant::now() < end_of_wait, "{published:?} published, {refused:?} refused");
            let content = origin.fetch_add(1, SeqCst) + 1;
            // As a purge does: the key, and here what its index would hide too.
            let _ = store.delete(b"/key", ANY_VERSION);
            let _ = store.evict(b"/variant", ANY_VERSION);
            for uri in [&b"/key"[..], b"/variant"] {
                if let Some((_, body)) = store.open_uri(uri).unwrap() {
                    let mut bytes = [0; 8];
                    File::from(body).read_exact_at(&mut bytes, 0).unwrap();
                    let found = u64::from_be_bytes(bytes);
                    assert!(found >= content, "found {found}, deleted at {content}");
                    *seen.lock().unwrap() += 1;
                }
            }
        }
        stop.store(true, SeqCst);
    });
    assert!(*seen.lock().unwrap() > 0, "nothing was ever found");
}
