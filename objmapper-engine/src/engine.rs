//! One storage: its options, its limit, its counters, and where its published bodies are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::account::Account;
use crate::backing::{Backing, Draft, Failure, Stored};
use crate::body::NoSpan;
use crate::cache::Cache;
use crate::counters::{self, Counters};
use crate::heap::HeapChunk;
use crate::log::StateLog;
use crate::maps::BodyMap;
use crate::options::Options;

/// One storage.
pub struct Engine {
    /// What the operator asked for.
    pub options: Options,
    /// The limit and the bytes below it.
    pub account: Account,
    /// `OBJM.<ident>.*`.
    pub counters: &'static Counters,
    backing: Backing,
    fds: Cache<File>,
    maps: Cache<BodyMap>,
    uri_base: String,
    next_key: AtomicU64,
    state_log: StateLog,
}

impl Engine {
    /// A storage named `ident` in varnishd. `uri_base` begins the URIs of its bodies and is unique to this process.
    pub fn new(
        ident: &str,
        options: Options,
        account: Account,
        counters: &'static Counters,
        backing: Backing,
        uri_base: String,
    ) -> Engine {
        let c = counters;
        counters.g_happy.store(u64::from(backing.answers()), Relaxed);
        Engine {
            fds: Cache::new(options.fds, &c.g_fds, &c.c_opened, &c.c_fds_closed),
            maps: Cache::new(options.maps, &c.g_maps, &c.c_mapped, &c.c_maps_dropped),
            options,
            account,
            counters,
            backing,
            uri_base,
            next_key: AtomicU64::new(0),
            state_log: StateLog::new(ident),
        }
    }

    /// Where published bodies are.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// `storage.<name>.happy`: does the store answer?
    pub fn is_happy(&self) -> bool {
        self.backing.answers()
    }

    /// A new draft, or `None`: the body stays in heap, which is counted under its reason.
    pub(crate) fn create_draft(&self, length: u64) -> Option<Draft> {
        match self.backing.create(length) {
            Ok(draft) => {
                self.state_log.works();
                Some(draft)
            }
            Err(failure) => {
                self.count_fallback(&failure);
                None
            }
        }
    }

    /// Sets a draft's reservation; `false` is counted.
    pub(crate) fn reserve(&self, draft: &mut Draft, length: u64) -> bool {
        match self.backing.reserve(draft, length) {
            Ok(()) => true,
            Err(failure) => {
                self.count_fallback(&failure);
                false
            }
        }
    }

    /// Publishes a draft; `None` is counted.
    pub(crate) fn publish(&self, draft: Draft, length: u64) -> Option<Stored> {
        let key = self.next_key.fetch_add(1, Relaxed);
        let uri = format!("{}/{key:x}", self.uri_base);
        match self.backing.publish(draft, &uri, length, key) {
            Ok(stored) => Some(stored),
            Err(failure) => {
                self.count_failure(&failure);
                self.state_log.fails(&format!("a body could not be published: {failure}"));
                None
            }
        }
    }

    fn count_failure(&self, failure: &Failure) {
        let c = self.counters;
        match failure {
            Failure::Down(_) | Failure::Full(_) => {}
            Failure::Timeout(_) => counters::add(&c.c_err_timeout, 1),
            Failure::Io(_) => counters::add(&c.c_err_io, 1),
            Failure::Protocol(_) => counters::add(&c.c_err_protocol, 1),
        }
    }

    fn count_fallback(&self, failure: &Failure) {
        self.count_failure(failure);
        let c = self.counters;
        counters::add(
            match failure {
                Failure::Down(_) => &c.c_fallback_down,
                Failure::Full(_) => &c.c_fallback_full,
                Failure::Timeout(_) => &c.c_fallback_timeout,
                Failure::Io(_) | Failure::Protocol(_) => &c.c_fallback_error,
            },
            1,
        );
        self.state_log.fails(&format!("bodies stay in heap: {failure}"));
    }

    /// Something went wrong with a body's file.
    pub(crate) fn file_error(&self, what: &str, error: &io::Error) {
        counters::add(&self.counters.c_err_io, 1);
        if matches!(error.raw_os_error(), Some(libc_errno::EMFILE | libc_errno::ENFILE | libc_errno::ENOMEM)) {
            self.fds.shed();
            self.maps.shed();
        }
        self.state_log.fails(&format!("{what}: {error}"));
    }

    /// A draft's accounting ends.
    pub(crate) fn lost_draft(&self, outstanding: u64) {
        self.account.dealloc(outstanding);
        counters::sub(&self.counters.g_body_bytes, outstanding);
        counters::sub(&self.counters.g_bodies, 1);
        counters::sub(&self.counters.g_writing, 1);
    }

    /// Frees a piece of a body in heap.
    pub(crate) fn free_piece(&self, chunk: HeapChunk) {
        counters::sub(&self.counters.g_heap_pieces, 1);
        counters::sub(&self.counters.g_heap_bytes, chunk.size() as u64);
        chunk.free(&self.account);
    }

    /// A body was just published: who asks for it next finds it open.
    pub(crate) fn remember(&self, stored: &Stored, file: File) {
        self.fds.insert(stored.key, file);
    }

    /// A published body of `len` bytes is not wanted any more.
    pub(crate) fn forget(&self, stored: Stored, len: u64) {
        self.maps.remove(stored.key);
        self.fds.remove(stored.key);
        self.backing.release(&stored);
        self.account.dealloc(len);
        counters::sub(&self.counters.g_body_bytes, len);
        counters::sub(&self.counters.g_bodies, 1);
    }

    fn file(&self, stored: &Stored) -> io::Result<std::sync::Arc<File>> {
        self.fds.get_or_make(stored.key, || {
            let open = || openat(&*stored.tier, stored.path().as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
            let fd = match open() {
                Err(Errno::EMFILE | Errno::ENFILE) => {
                    self.fds.shed();
                    open()
                }
                other => other,
            };
            fd.map(File::from).map_err(io::Error::from)
        })
    }

    /// A published body's bytes, mapped.
    pub(crate) fn map(&self, stored: &Stored, len: u64) -> Result<std::sync::Arc<BodyMap>, NoSpan> {
        self.maps.get_or_make(stored.key, || {
            let file = self.file(stored).map_err(|error| self.not_opened(error))?;
            BodyMap::new(&file, len).map_err(|error| {
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    return NoSpan::Lost(error);
                }
                self.file_error("mapping a cached body", &error);
                NoSpan::Unmapped
            })
        })
    }

    fn not_opened(&self, error: io::Error) -> NoSpan {
        self.file_error("opening a cached body", &error);
        NoSpan::Lost(error)
    }

    /// Reads a published body.
    pub(crate) fn read_at(&self, stored: &Stored, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file(stored)?.read_at(buffer, offset)
    }
}

mod libc_errno {
    pub(super) const ENOMEM: i32 = nix::errno::Errno::ENOMEM as i32;
    pub(super) const ENFILE: i32 = nix::errno::Errno::ENFILE as i32;
    pub(super) const EMFILE: i32 = nix::errno::Errno::EMFILE as i32;
}
