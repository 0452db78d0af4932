#![allow(dead_code, reason = "no test needs all of it")]
//! An engine over a real store in memory, and bodies whose every byte is known.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use objmapper_engine::account::{Account, SmaCounters};
use objmapper_engine::backing::{Backing, Embedded};
use objmapper_engine::body::Body;
use objmapper_engine::counters::Counters;
use objmapper_engine::engine::Engine;
use objmapper_engine::grant::ChunkLimits;
use objmapper_engine::maintenance::Maintenance;
use objmapper_engine::options::Options;
use objmapper_engine::record::Fence;
use objmapper_engine::span::{FileSpan, NoSpan, Part, Span};
use objmapper_server::net::{ListenConfig, Server};
use objmapper_server::store::{MemoryTier, Store, StoreConfig, TierKind};

pub(crate) const CHUNK: usize = 16 << 10;
pub(crate) const LIMITS: ChunkLimits = ChunkLimits { chunk: CHUNK, max: 256 << 20 };
pub(crate) const THRESHOLD: u64 = 64 << 10;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Fixture {
    pub(crate) engine: Engine,
    pub(crate) store: Store,
}

pub(crate) fn fixture(options: Options, store_limit: u64) -> Fixture {
    fixture_on(options, MemoryTier { limit: store_limit, mount: None })
}

pub(crate) fn fixture_on(options: Options, memory: MemoryTier) -> Fixture {
    let config = StoreConfig { memory: Some(memory), session_grace: Duration::ZERO, ..StoreConfig::default() };
    let store = Store::open(config).unwrap();
    let backing = Backing::Embedded(Embedded::new(&store, TierKind::Memory).unwrap());
    Fixture { engine: engine(options, backing, Arc::default()), store }
}

/// An engine over that store.
pub(crate) fn engine(options: Options, backing: Backing, maintenance: Arc<Maintenance>) -> Engine {
    let sma: &'static SmaCounters = Box::leak(Box::default());
    let counters: &'static Counters = Box::leak(Box::default());
    let account = Account::new(options.size, sma);
    Engine::new("s0", options, account, counters, backing, maintenance, "/varnish/s0/1".to_owned())
}

pub(crate) fn unlimited() -> Fixture {
    fixture(Options::default(), 256 << 20)
}

impl Fixture {
    pub(crate) fn stored(&self) -> u64 {
        self.store.stats().tiers[0].used
    }

    pub(crate) fn counter(&self, pick: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        pick(self.engine.counters).load(Relaxed)
    }

    /// Writes `len` bytes as a fetch does, in reads of at most `step`. `false`: no room.
    pub(crate) fn write(&self, body: &Body, len: u64, known: bool, step: usize) -> bool {
        let mut done = 0;
        while done < len {
            let want = if known { (len - done) as usize } else { CHUNK };
            let Ok((ptr, room)) = body.space(&self.engine, want, known, LIMITS, &mut || false) else {
                return false;
            };
            let n = room.min(step).min((len - done) as usize);
            for i in 0..n {
                // SAFETY: `room >= n` bytes at `ptr` are ours to write until `extend`.
                unsafe { ptr.as_ptr().add(i).write(pattern(done + i as u64)) };
            }
            body.extend(n as u64);
            done += n as u64;
        }
        true
    }

    pub(crate) fn fetch(&self, len: u64, known: bool, keep: bool) -> Body {
        let body = Body::default();
        assert!(self.write(&body, len, known, 10_000));
        body.trim(&self.engine);
        assert!(body.settle(&self.engine, keep, 0));
        body
    }

    /// Reads all, checks every byte, and returns the number of parts.
    pub(crate) fn check(&self, body: &Body, len: u64) -> usize {
        let (mut offset, mut parts) = (0, 0);
        loop {
            let part = match body.part(&self.engine, offset) {
                Ok(part) => part,
                Err(NoSpan::End) => break,
                Err(other) => panic!("{other:?}"),
            };
            let bytes = bytes(&part);
            assert!(bytes.iter().zip(offset..).all(|(byte, offset)| *byte == pattern(offset)));
            offset += bytes.len() as u64;
            parts += 1;
        }
        assert_eq!((offset, body.len()), (len, len));
        parts
    }

    /// Checks the first and the last of the bytes from `offset` on that there are in one part, and returns how many; 0 at the end.
    pub(crate) fn check_next(&self, body: &Body, offset: u64) -> u64 {
        match body.part(&self.engine, offset) {
            Ok(Part::Addressable(span)) => {
                for i in [0, span.len - 1] {
                    // SAFETY: a span's bytes can be read while it lives.
                    assert_eq!(unsafe { span.ptr.as_ptr().add(i).read() }, pattern(offset + i as u64));
                }
                span.len as u64
            }
            Ok(Part::InFile(span)) => {
                for i in [0, span.len - 1] {
                    let mut byte = [0];
                    span.file.read_exact_at(&mut byte, span.offset + i).unwrap();
                    assert_eq!(byte, [pattern(offset + i)]);
                }
                span.len
            }
            Ok(Part::Mapped(_)) => panic!("no mapping was asked for"),
            Err(NoSpan::End) => 0,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// The bytes from `offset` on, which are at an address.
    pub(crate) fn there(&self, body: &Body, offset: u64) -> Span {
        match body.part(&self.engine, offset) {
            Ok(Part::Addressable(span)) => span,
            other => panic!("{:?}", other.map(|part| part.len())),
        }
    }

    /// The bytes from `offset` on, which are in a file.
    pub(crate) fn in_file(&self, body: &Body, offset: u64) -> FileSpan {
        match body.part(&self.engine, offset) {
            Ok(Part::InFile(span)) => span,
            other => panic!("{:?}", other.map(|part| part.len())),
        }
    }
}

/// All bytes of a part.
fn bytes(part: &Part) -> Vec<u8> {
    let mut bytes = vec![0; part.len() as usize];
    match part {
        // SAFETY: a span's bytes can be read while it lives, and the object does.
        Part::Addressable(span) => unsafe { span.ptr.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) },
        Part::InFile(file) => assert_eq!(file.read(&mut bytes).unwrap(), bytes.len()),
        Part::Mapped(_) => panic!("no mapping was asked for"),
    }
    bytes
}

pub(crate) fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(2_654_435_761) >> 13) as u8
}

impl Fixture {
    /// Continues a body of unknown length up to `len`.
    pub(crate) fn write_more(&self, body: &Body, len: u64) -> bool {
        let mut done = body.len();
        while done < len {
            let Ok((ptr, room)) = body.space(&self.engine, CHUNK, false, LIMITS, &mut || false) else {
                return false;
            };
            let n = room.min((len - done) as usize);
            for i in 0..n {
                // SAFETY: as in `write`.
                unsafe { ptr.as_ptr().add(i).write(pattern(done + i as u64)) };
            }
            body.extend(n as u64);
            done += n as u64;
        }
        true
    }
}

/// The fence of a URI as it is now.
pub(crate) fn fence(store: &Store, uri: &[u8]) -> Fence {
    let shard = Fence::shard_of_bytes(uri);
    let board = std::fs::File::from(store.board().try_clone_to_owned().unwrap());
    let mut value = [0; 8];
    // EXTENSIONS.md of objmapper-proto: where the fences are.
    board.read_exact_at(&mut value, 12288 + 8 * u64::from(shard)).unwrap();
    Fence { shard, value: u64::from_ne_bytes(value) }
}

/// A store behind a socket, as objmapperd is.
pub(crate) fn serve(socket: &std::path::Path) -> (Server, Store) {
    let memory = Some(MemoryTier { limit: 64 << 20, mount: None });
    let store = Store::open(StoreConfig { memory, ..StoreConfig::default() }).unwrap();
    let listen = ListenConfig {
        socket: socket.to_owned(),
        mode: 0o600,
        owner: None,
        group: None,
        allow_uids: Vec::new(),
        allow_gids: Vec::new(),
        max_connections: 10,
        threads: 1,
    };
    (Server::start(listen, store.clone()).unwrap(), store)
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}
