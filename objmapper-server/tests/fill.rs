//! The seam for a tier that is not on this machine: a thread of the store's own process fills what clients have leased.

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::{InProcess, eventually};
use objmapper_proto::ObjUri;
use objmapper_proto::ext::{LeaseOutcome as WireOutcome, Request, Want};
use objmapper_server::store::*;

const LONG: Duration = Duration::from_secs(60);

/// What a thread does with what it is offered.
type Answer = fn(&Store, Fill);

/// Fills on a thread per URI, as the table says; what is not in it is dropped.
struct Threads {
    store: Mutex<Option<std::sync::Weak<Store>>>,
    answers: HashMap<&'static [u8], Answer>,
    offers: Arc<AtomicUsize>,
}

impl Filler for Threads {
    fn offer(&self, fill: Fill) {
        self.offers.fetch_add(1, SeqCst);
        let answer = self.answers.get(fill.uri()).copied();
        let store = self.store.lock().unwrap().as_ref().and_then(std::sync::Weak::upgrade);
        std::thread::spawn(move || {
            if let (Some(answer), Some(store)) = (answer, store) {
                answer(&store, fill);
            }
        });
    }
}

fn write(fill: &Fill, bytes: &[u8]) -> Result<PrivateObject, StoreError> {
    let body = fill.begin(bytes.len() as u64)?;
    // Through the object's own descriptor: a duplicate would have to be closed before the commit.
    rustix::io::write(body.file().unwrap().as_fd(), bytes).unwrap();
    Ok(body)
}

fn filled(_: &Store, fill: Fill) {
    let body = write(&fill, b"from afar").unwrap();
    fill.commit(body, 9, 0).unwrap();
}

fn refused(_: &Store, fill: Fill) {
    fill.refuse(LONG);
}

fn panicked(_: &Store, _fill: Fill) {
    // A thread that ends in whatever way gives the lease back.
    std::panic::resume_unwind(Box::new("the remote store talks nonsense"));
}

/// Something is deleted while the filler reads.
fn overtaken_by_a_delete(store: &Store, fill: Fill) {
    let body = write(&fill, b"from afar").unwrap();
    let _ = store.delete(fill.uri(), ANY_VERSION);
    assert!(matches!(fill.commit(body, 9, 0), Err(StoreError::Conflict(_))));
}

/// A delete before the body is begun: a private object of the URI, made later, does not know of it, and the fence does.
fn begun_after_a_delete(store: &Store, fill: Fill) {
    let _ = store.delete(fill.uri(), ANY_VERSION);
    let body = write(&fill, b"from afar").unwrap();
    assert!(matches!(fill.commit(body, 9, 0), Err(StoreError::Conflict(_))));
}

/// A client that does not wait for leases publishes meanwhile.
fn overtaken_by_a_commit(store: &Store, fill: Fill) {
    let body = write(&fill, b"from afar").unwrap();
    let session = store.session(None).unwrap();
    let mut newer = session.create(None, 5, None).unwrap();
    rustix::io::write(newer.file().unwrap(), b"newer").unwrap();
    newer.commit(Commit::new(fill.uri(), 5)).unwrap();
    assert!(matches!(fill.commit(body, 9, 0), Err(StoreError::Conflict(_))));
}

struct Setup {
    server: InProcess,
    offers: Arc<AtomicUsize>,
    /// Keeps the filler's way to the store alive.
    _store: Arc<Store>,
}

fn setup() -> Setup {
    let server = InProcess::new();
    let store = Arc::new(server.store.clone());
    let offers = Arc::new(AtomicUsize::new(0));
    let answers: [(&'static [u8], Answer); 6] = [
        (b"/filled", filled),
        (b"/refused", refused),
        (b"/panicked", panicked),
        (b"/deleted", overtaken_by_a_delete),
        (b"/deleted-before", begun_after_a_delete),
        (b"/overtaken", overtaken_by_a_commit),
    ];
    let filler = Threads {
        store: Mutex::new(Some(Arc::downgrade(&store))),
        answers: answers.into_iter().collect(),
        offers: offers.clone(),
    };
    server.store.set_filler(Arc::new(filler)).unwrap();
    Setup { server, offers, _store: store }
}

/// Asks for the lease and returns its outcome, of the call or of the callback.
fn lease(session: &Session, uri: &[u8], wait: Duration) -> LeaseOutcome {
    let (tell, told) = mpsc::channel();
    let callback = Box::new(move |outcome| drop(tell.send(outcome)));
    match session.lease(uri, wait, LONG, false, callback).unwrap() {
        LeaseOutcome::Waiting(_) => told.recv_timeout(LONG).unwrap().unwrap(),
        outcome => outcome,
    }
}

#[test]
fn a_thread_fills_a_lease_and_its_waiters_get_the_object() {
    let setup = setup();
    let session = setup.server.store.session(None).unwrap();
    let LeaseOutcome::Present(entry) = lease(&session, b"/filled", LONG) else { panic!("not filled") };
    let body = setup.server.store.open_body(entry.tier, entry.object).unwrap();
    assert_eq!(std::io::read_to_string(File::from(body)).unwrap(), "from afar");
    assert!(matches!(lease(&session, b"/filled", LONG), LeaseOutcome::Present(_)));
    assert_eq!(setup.offers.load(SeqCst), 1, "what is there is not asked for");
    // Over the socket as well, with the descriptor.
    let mut peer = setup.server.attached();
    setup.server.store.delete(b"/filled", ANY_VERSION).unwrap();
    let uri = ObjUri::parse(b"/filled").unwrap();
    let request = Request::Lease { wait: 60_000, hold: 60_000, uri, want: Want::FD };
    let (answer, fds) = peer.call(&request).unwrap();
    assert!(matches!(answer, common::Answer::Lease(WireOutcome::Present(_))), "{answer:?}");
    assert_eq!(common::read_fd(fds.into_iter().next().unwrap()), b"from afar");
    assert_eq!(setup.offers.load(SeqCst), 2);
}

#[test]
fn what_a_filler_does_not_have_is_for_the_clients_one_after_another() {
    let setup = setup();
    let store = &setup.server.store;
    let (one, two) = (store.session(None).unwrap(), store.session(None).unwrap());
    for uri in [&b"/unknown"[..], b"/panicked", b"/deleted", b"/deleted-before"] {
        let offers = setup.offers.load(SeqCst);
        let LeaseOutcome::Granted(id) = lease(&one, uri, LONG) else { panic!("{}", uri.escape_ascii()) };
        assert!(matches!(lease(&two, uri, Duration::ZERO), LeaseOutcome::TimedOut));
        assert!(store.lookup(uri).unwrap().is_none());
        assert_eq!(setup.offers.load(SeqCst), offers + 1, "one look for all that wait");
        one.unlease(id, Duration::ZERO).unwrap();
    }
    assert!(matches!(lease(&one, b"/refused", LONG), LeaseOutcome::Refused(_)));
    assert!(matches!(lease(&two, b"/refused", LONG), LeaseOutcome::Refused(_)));
    let LeaseOutcome::Present(entry) = lease(&one, b"/overtaken", LONG) else { panic!("a client has published it") };
    assert_eq!(entry.length, 5);
    eventually("nothing is held", || store.stats().leases == 0 && store.stats().private == 0);
}

#[test]
fn a_client_that_does_not_wait_is_not_kept_and_there_is_one_filler() {
    let setup = setup();
    let session = setup.server.store.session(None).unwrap();
    assert!(matches!(lease(&session, b"/filled", Duration::ZERO), LeaseOutcome::Granted(_)));
    assert_eq!(setup.offers.load(SeqCst), 0);
    struct Nothing;
    impl Filler for Nothing {
        fn offer(&self, _: Fill) {}
    }
    assert!(setup.server.store.set_filler(Arc::new(Nothing)).is_err());
}
