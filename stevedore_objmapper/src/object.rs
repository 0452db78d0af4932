//! An object: its attributes, and its body.
//!
//! ```text
//! allocobj ─► objsetattr, objgetspace … ─► objbocdone ─► objslim ─► objfree
//!             └──── the fetch alone ────┘                (the body)  (all)
//! ```
//!
//! Fixed and variable attributes are in one piece of heap, the *head*; ESI data is in a piece of its own. A variable attribute is
//! written once, by the fetch, and published by its length; readers need no lock. The object is freed when varnishd holds no
//! reference to it.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32};

use objmapper_engine::body::Body;
use objmapper_engine::engine::Engine;
use objmapper_engine::heap::HeapChunk;
use objmapper_engine::persist::{Record, RecordParts};
use parking_lot::Mutex;
use varnishd::attributes::{Attribute, FIXED_SIZE, LENGTH};
use varnishd::boundary::infallible;
use varnishd::lru::{self, Lru};
use varnishd::objcore::{self, Objcore};
use varnishd::raw::{RawAttribute, RawObjcore, RawStorage, RawWorker};
use varnishd::storage::Storage;
use varnishd::worker::Worker;

use crate::BOUNDARY;
use crate::announcement;
use crate::persist::{self, Kept};
use crate::storage::engine_of;

const OBJECT_MAGIC: u32 = 0x6f62_6d70;

/// The cost of a head beside its variable attributes, in the limit and in memory: that of Varnish's own engines, so that the same objects fit into the same size.
const HEAD: usize = 128;

const _: () = assert!(FIXED_SIZE <= HEAD);

/// The number of objects after whose end a thread adds its counters to varnishd's. A request's worker does so when the request
/// is over, but the expiry thread only when it has nothing to do: while objects are evicted without a pause, `MAIN.n_object`
/// would go on counting those that are gone.
const SUMMED_AFTER: u32 = 64;

thread_local! {
    static FREED: Cell<u32> = const { Cell::new(0) };
}

// The states of a body that are known without its lock.
const COMES_IN: u8 = 0;
const IN_HEAP: u8 = 1;
const IN_FILE: u8 = 2;

/// A variable attribute: written once, by the fetch, before the object is found.
#[derive(Default)]
struct Variable {
    /// Its offset in the head.
    at: AtomicU32,
    /// Bytes; 0 is unset. Written after `at`.
    len: AtomicU32,
}

/// A leaked `Box` of this is what varnishd keeps for us with an object.
pub(crate) struct Object {
    magic: u32,
    /// Fixed attributes, then variable ones.
    head: HeapChunk,
    /// Bytes of `head` that are taken.
    taken: AtomicU32,
    vary: Variable,
    headers: Variable,
    esidata: Mutex<Option<HeapChunk>>,
    /// Evicted: the account counts the head as about to be freed.
    leaving: AtomicBool,
    /// `COMES_IN`; once the body is settled, `IN_HEAP` or `IN_FILE`.
    settled: AtomicU8,
    /// What is written of it for the next start.
    pub(crate) kept: Kept,
    pub(crate) body: Body,
}

impl Object {
    fn new(head: HeapChunk) -> Object {
        // SAFETY: the head is at least HEAD >= FIXED_SIZE bytes (see `allocobj`), and known to this thread alone.
        unsafe { head.ptr().as_ptr().write_bytes(0, FIXED_SIZE) };
        Object {
            magic: OBJECT_MAGIC,
            head,
            taken: AtomicU32::new(FIXED_SIZE as u32),
            vary: Variable::default(),
            headers: Variable::default(),
            esidata: Mutex::new(None),
            leaving: AtomicBool::new(false),
            settled: AtomicU8::new(COMES_IN),
            kept: Kept::default(),
            body: Body::default(),
        }
    }

    /// Makes an object of what an earlier process has kept: its attributes, and its settled body. `None`: the storage has no room
    /// for it, or the record makes no sense; the body is released.
    pub(crate) fn restored(engine: &Engine, record: &Record<'_>, body: Body) -> Option<Object> {
        let Some((head, esidata)) = Self::space_for(engine, record) else {
            body.slim(engine);
            return None;
        };
        let object = Object { kept: Kept::restored(), body, ..Object::new(head) };
        let copy = |bytes: &[u8], to: NonNull<u8>| {
            // SAFETY: as many bytes of the new head, or of the new chunk, which nothing else knows yet.
            unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        };
        copy(record.fixed, object.at(0));
        for (variable, bytes) in [(&object.vary, record.vary), (&object.headers, record.headers)] {
            if let Some(room) = object.set_variable(variable, bytes.len()) {
                copy(bytes, room);
            }
        }
        if let Some(chunk) = esidata {
            copy(record.esidata, chunk.ptr());
            *object.esidata.lock() = Some(chunk);
        }
        object.settled();
        Some(object)
    }

    /// Room for a record's attributes, and for its ESI data if it has some.
    fn space_for(engine: &Engine, record: &Record<'_>) -> Option<(HeapChunk, Option<HeapChunk>)> {
        let variable = record.vary.len() + record.headers.len();
        let size = HEAD.checked_add(variable)?.next_multiple_of(8);
        if record.fixed.len() != FIXED_SIZE || u32::try_from(size).is_err() {
            return None;
        }
        let head = HeapChunk::alloc(&engine.account, size)?;
        if record.esidata.is_empty() {
            return Some((head, None));
        }
        match HeapChunk::alloc(&engine.account, record.esidata.len()) {
            Some(chunk) => Some((head, Some(chunk))),
            None => {
                head.free(&engine.account);
                None
            }
        }
    }

    /// Frees an object that varnishd does not know.
    pub(crate) fn free(self, engine: &Engine) {
        self.body.slim(engine);
        self.free_esidata(engine);
        self.head.free(&engine.account);
    }

    /// Its attributes, for a record.
    ///
    /// # Safety
    /// The fetch must have ended, and the object not be slimmed during `'a`: its attributes do not change any more.
    pub(crate) unsafe fn attributes<'a>(&self) -> RecordParts<'a> {
        let bytes = |(at, len): (NonNull<u8>, usize)| {
            // SAFETY: an attribute's bytes, which the fetch has written; they stay by contract.
            unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
        };
        let variable = |attr| self.get(attr).map_or(&[][..], bytes);
        RecordParts {
            fixed: bytes((self.at(0), FIXED_SIZE)),
            vary: variable(Attribute::Vary),
            headers: variable(Attribute::Headers),
            esidata: variable(Attribute::EsiData),
            uri: &[],
            body: Default::default(),
        }
    }

    #[inline]
    fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: every offset is below the head's size: the fixed ones by `FIXED_SIZE <= HEAD`, the variable ones by the
        // check in `set_variable`.
        unsafe { self.head.ptr().add(offset) }
    }

    #[inline]
    fn get_variable(&self, variable: &Variable) -> Option<(NonNull<u8>, usize)> {
        let len = variable.len.load(Acquire) as usize;
        (len > 0).then(|| (self.at(variable.at.load(Relaxed) as usize), len))
    }

    #[inline]
    fn get(&self, attribute: Attribute) -> Option<(NonNull<u8>, usize)> {
        match attribute {
            Attribute::Fixed(part) => Some((self.at(part.offset), part.size)),
            Attribute::Vary => self.get_variable(&self.vary),
            Attribute::Headers => self.get_variable(&self.headers),
            Attribute::EsiData => self.esidata.lock().as_ref().map(|chunk| (chunk.ptr(), chunk.size())),
        }
    }

    /// Returns room for an attribute. Only the fetch calls this.
    fn set(
        &self,
        attribute: Attribute,
        len: usize,
        alloc: impl FnOnce(usize) -> Option<HeapChunk>,
    ) -> Option<NonNull<u8>> {
        match attribute {
            Attribute::Fixed(part) => {
                assert!(len == part.size, "{attribute:?} has {} bytes, not {len}", part.size);
                Some(self.at(part.offset))
            }
            Attribute::Vary => self.set_variable(&self.vary, len),
            Attribute::Headers => self.set_variable(&self.headers, len),
            Attribute::EsiData => {
                let mut esidata = self.esidata.lock();
                if let Some(chunk) = &*esidata {
                    assert!(len == chunk.size(), "{attribute:?} has {} bytes, not {len}", chunk.size());
                    return Some(chunk.ptr());
                }
                *esidata = if len > 0 { alloc(len) } else { None };
                esidata.as_ref().map(HeapChunk::ptr)
            }
        }
    }

    fn set_variable(&self, variable: &Variable, len: usize) -> Option<NonNull<u8>> {
        let old = variable.len.load(Relaxed) as usize;
        if old > 0 {
            assert!(len == old, "a variable attribute has {old} bytes, not {len}");
            return Some(self.at(variable.at.load(Relaxed) as usize));
        }
        if len == 0 {
            return None;
        }
        let taken = self.taken.load(Relaxed) as usize;
        assert!(
            taken.checked_add(len).is_some_and(|end| end <= self.head.size()),
            "variable attributes of {len} bytes more do not fit"
        );
        self.taken.store((taken + len) as u32, Relaxed);
        variable.at.store(taken as u32, Relaxed);
        variable.len.store(len as u32, Release);
        Some(self.at(taken))
    }

    fn free_esidata(&self, engine: &Engine) {
        let chunk = self.esidata.lock().take();
        if let Some(chunk) = chunk {
            chunk.free(&engine.account);
        }
    }

    /// Notes that the fetch is over: the body stays in heap, or in its file.
    pub(crate) fn settled(&self) {
        self.settled.store(if self.body.is_in_heap() { IN_HEAP } else { IN_FILE }, Relaxed);
    }

    /// Returns the body's length as the fetch has noted it when it ended well.
    pub(crate) fn length(&self) -> u64 {
        let mut bytes = [0; LENGTH.size];
        // SAFETY: the attribute's bytes are in the head; the fetch wrote them before its boc was gone.
        unsafe { self.at(LENGTH.offset).as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        u64::from_be_bytes(bytes)
    }

    /// Returns true if the body is in heap. Of a settled one this takes no lock.
    pub(crate) fn is_in_heap(&self) -> bool {
        match self.settled.load(Relaxed) {
            IN_HEAP => true,
            IN_FILE => false,
            _ => self.body.is_in_heap(),
        }
    }

    pub(crate) fn head_size(&self) -> usize {
        self.head.size()
    }
}

/// Returns our object of one in varnishd's index, and its storage.
///
/// # Safety
/// The storage of `oc` must be ours: what varnishd calls our methods with.
#[inline]
pub(crate) unsafe fn object_of<'a>(oc: Objcore<'a>) -> (&'static Engine, &'a Object) {
    // SAFETY: by contract: our storages are open before there are objects.
    unsafe { (engine_of(Storage::new(oc.storage())), object_at(oc)) }
}

/// Returns our object of one in varnishd's index.
///
/// # Safety
/// As for [`object_of`].
#[inline]
unsafe fn object_at<'a>(oc: Objcore<'a>) -> &'a Object {
    // SAFETY: the `Box` that `allocobj` leaked, until `objfree`, which runs when no reference is left.
    match unsafe { oc.object().cast::<Object>().as_ref() } {
        Some(object) if object.magic == OBJECT_MAGIC => object,
        _ => panic!("the objcore's object is not ours"),
    }
}

/// As [`object_of`], for a panic message: the object may be absent or damaged.
///
/// # Safety
/// As for [`objcore::object_for_panic`].
pub(crate) unsafe fn object_for_panic<'a>(oc: *const RawObjcore) -> Option<&'a Object> {
    // SAFETY: a pointer that is not null is a leaked `Box` of ours.
    unsafe { objcore::object_for_panic(oc).cast::<Object>().as_ref() }.filter(|object| object.magic == OBJECT_MAGIC)
}

/// Takes memory of exactly `size` bytes, evicting for it as Varnish's own engines do. No lock of ours may be held.
pub(crate) fn alloc_exactly(wrk: Worker<'_>, lru: Lru, engine: &Engine, size: usize) -> Option<HeapChunk> {
    loop {
        if let Some(chunk) = HeapChunk::alloc(&engine.account, size) {
            return Some(chunk);
        }
        if !lru.evict_one(wrk) {
            return None;
        }
    }
}

/// Makes an object with `wsl` bytes for its variable attributes.
pub(crate) unsafe extern "C" fn allocobj(
    wrk: *mut RawWorker,
    stv: *const RawStorage,
    oc: *mut RawObjcore,
    wsl: c_uint,
) -> c_int {
    BOUNDARY.fallible("allocobj", 0, || {
        // SAFETY: varnishd's own arguments; the storage is ours and open.
        let (storage, oc, wrk) = unsafe { (Storage::new(stv), Objcore::new(oc), Worker::new(wrk)) };
        // SAFETY: as above.
        let engine = unsafe { engine_of(storage) };
        let size = HEAD + (wsl as usize).next_multiple_of(8);
        let Some(head) = alloc_exactly(wrk, storage.lru(), engine, size) else { return 0 };
        let object = Object::new(head);
        let adopts = match announcement::take(oc.id(), engine).map(|announced| object.body.adopt(announced)) {
            Some(Ok(())) => true,
            // A new body takes a record.
            Some(Err(announced)) => {
                engine.cancel_adoption(announced);
                false
            }
            None => false,
        };
        // SAFETY: called to allocate this object.
        unsafe { oc.set_object(stv, Box::into_raw(Box::new(object)).cast(), adopts) };
        1
    })
}

/// Frees an object, to which there are no references.
pub(crate) unsafe extern "C" fn objfree(wrk: *mut RawWorker, oc: *mut RawObjcore) {
    infallible("objfree", || {
        // SAFETY: varnishd's own arguments.
        let (oc, wrk) = unsafe { (Objcore::new(oc), Worker::new(wrk)) };
        // SAFETY: an object of ours; the last reference to it is this thread's.
        let (engine, object) = unsafe { object_of(oc) };
        // Before the body goes.
        persist::forget(oc, object);
        object.body.slim(engine);
        object.free_esidata(engine);
        // SAFETY: as above.
        unsafe { lru::remove(oc) };
        // SAFETY: the Box was leaked in `allocobj`; `object` and every other reference to it end here.
        let object = unsafe { Box::from_raw(oc.object().cast::<Object>()) };
        if object.leaving.into_inner() {
            engine.account.left(object.head.size() as u64);
        }
        object.head.free(&engine.account);
        // SAFETY: called to free this object.
        unsafe { oc.clear_object() };
        wrk.count_freed_object();
        if FREED.replace(FREED.get() + 1) + 1 >= SUMMED_AFTER {
            FREED.set(0);
            // As the workers and the expiry thread do; varnishd has given up the lock of the object's head.
            wrk.publish_counters();
        }
    });
}

/// Frees the body of an object, and keeps the attributes.
pub(crate) unsafe extern "C" fn objslim(_wrk: *mut RawWorker, oc: *mut RawObjcore) {
    infallible("objslim", || {
        // SAFETY: varnishd's object of ours. There is no reader: varnishd slims what is evicted and was found unused, and what only
        // its own delivery, which is over, could read (cache_hash.c).
        let oc = unsafe { Objcore::new(oc) };
        // SAFETY: as above.
        let (engine, object) = unsafe { object_of(oc) };
        // Before the body goes.
        persist::forget(oc, object);
        object.free_esidata(engine);
        object.body.slim(engine);
        // An eviction has set the flag in this thread. (Set by another one meanwhile, it may be missed.)
        if oc.is_dying() && !object.leaving.swap(true, Relaxed) {
            engine.account.leaves(object.head.size() as u64);
        }
    });
}

fn attribute(number: RawAttribute) -> Attribute {
    Attribute::of(number).unwrap_or_else(|| panic!("unknown attribute {number}"))
}

/// Returns an attribute; null if it was not set.
pub(crate) unsafe extern "C" fn objgetattr(
    _wrk: *mut RawWorker,
    oc: *mut RawObjcore,
    number: RawAttribute,
    len: *mut isize,
) -> *const c_void {
    infallible("objgetattr", || {
        // SAFETY: varnishd's object of ours, referenced by the caller.
        let object = unsafe { object_at(Objcore::new(oc)) };
        match object.get(attribute(number)) {
            Some((ptr, size)) => {
                // SAFETY: `len` is null or the caller's.
                if let Some(len) = unsafe { len.as_mut() } {
                    *len = size as isize;
                }
                ptr.as_ptr().cast_const().cast()
            }
            None => null(),
        }
    })
}

/// Returns room for an attribute of `len` bytes, with those at `ptr` if it is not null.
pub(crate) unsafe extern "C" fn objsetattr(
    wrk: *mut RawWorker,
    oc: *mut RawObjcore,
    number: RawAttribute,
    len: isize,
    ptr: *const c_void,
) -> *mut c_void {
    infallible("objsetattr", || {
        // SAFETY: varnishd's own arguments.
        let (oc, wrk) = unsafe { (Objcore::new(oc), Worker::new(wrk)) };
        // SAFETY: an object of ours; the caller is its fetch.
        let ((engine, object), storage) = unsafe { (object_of(oc), Storage::new(oc.storage())) };
        let len = usize::try_from(len).unwrap_or(0);
        let room = object.set(attribute(number), len, |size| alloc_exactly(wrk, storage.lru(), engine, size));
        let Some(room) = room else { return null_mut() };
        if !ptr.is_null() {
            // SAFETY: the caller's `len` bytes at `ptr`; `room` is as large, and ours.
            unsafe { std::ptr::copy_nonoverlapping(ptr.cast::<u8>(), room.as_ptr(), len) };
        }
        room.as_ptr().cast()
    })
}
