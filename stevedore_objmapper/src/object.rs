//! An object: its attributes, and its body.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32};

use objmapper_engine::body::Body;
use objmapper_engine::engine::Engine;
use objmapper_engine::heap::HeapChunk;
use parking_lot::Mutex;
use varnishd::boundary::infallible;
use varnishd::cast::{checked_objcore, stevedore_ref};
use varnishd_sys::attr::{self, obj_attr};
use varnishd_sys::bindings::OC_F_DYING;
use varnishd_sys::functions::{LRU_NukeOne, LRU_Remove, Pool_Sumstat};
use varnishd_sys::stevedore::Stevedore;
use varnishd_sys::{objcore, vsc, worker};

use crate::BOUNDARY;
use crate::announcement;
use crate::storage::engine_of;

const OBJECT_MAGIC: u32 = 0x6f62_6d70;

/// What a head costs beside its variable attributes, in the limit and in memory: `sizeof(struct object)` of Varnish's
/// own engines, so that the same objects fit into the same size.
const HEAD: usize = 128;

// Where the fixed attributes are in the head.
const LEN_AT: usize = 0;
const VXID_AT: usize = LEN_AT + attr::LEN_SIZE;
const LASTMODIFIED_AT: usize = VXID_AT + attr::VXID_SIZE;
const GZIPBITS_AT: usize = LASTMODIFIED_AT + attr::LASTMODIFIED_SIZE;
const FLAGS_AT: usize = GZIPBITS_AT + attr::GZIPBITS_SIZE;
const FIXED: usize = (FLAGS_AT + attr::FLAGS_SIZE).next_multiple_of(8);
const _: () = assert!(FIXED <= HEAD);

/// After so many objects that it freed a thread adds its counters to varnishd's. A request's worker does so when the request
/// is over, but the expiry thread only when it has nothing to do: while objects are evicted without a pause, `MAIN.n_object`
/// would go on counting those that are gone.
const SUMMED_AFTER: u32 = 64;

thread_local! {
    static FREED: Cell<u32> = const { Cell::new(0) };
}

// What is known of a body without its lock.
const COMES_IN: u8 = 0;
const IN_HEAP: u8 = 1;
const IN_FILE: u8 = 2;

/// A variable attribute: written once, by the fetch, before others look.
#[derive(Default)]
struct Variable {
    /// Where in the head.
    at: AtomicU32,
    /// Bytes; 0 is unset. Written after `at`.
    len: AtomicU32,
}

/// `oc->stobj->priv` points to a leaked `Box` of this; `priv2` is 1 if a record shall be its body.
pub(crate) struct Object {
    magic: u32,
    /// Fixed attributes, then variable ones.
    head: HeapChunk,
    /// Bytes of `head` that are taken.
    taken: AtomicU32,
    vary: Variable,
    headers: Variable,
    esidata: Mutex<Option<HeapChunk>>,
    /// Evicted: the account was told that the head is about to be freed.
    leaving: AtomicBool,
    /// Where the body is, once that is settled: `COMES_IN`, `IN_HEAP` or `IN_FILE`.
    settled: AtomicU8,
    pub(crate) body: Body,
}

impl Object {
    fn new(head: HeapChunk) -> Object {
        // SAFETY: the head is at least HEAD >= FIXED bytes (see `allocobj`), and nobody else knows it yet.
        unsafe { head.ptr().as_ptr().write_bytes(0, FIXED) };
        Object {
            magic: OBJECT_MAGIC,
            head,
            taken: AtomicU32::new(FIXED as u32),
            vary: Variable::default(),
            headers: Variable::default(),
            esidata: Mutex::new(None),
            leaving: AtomicBool::new(false),
            settled: AtomicU8::new(COMES_IN),
            body: Body::default(),
        }
    }

    #[inline]
    fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: every offset is below the head's size: the fixed ones by `FIXED <= HEAD`, the variable ones by the
        // check in `set_variable`.
        unsafe { self.head.ptr().add(offset) }
    }

    #[inline]
    fn fixed(&self, attr: obj_attr) -> Option<(NonNull<u8>, usize)> {
        let (at, size) = match attr {
            attr::OA_LEN => (LEN_AT, attr::LEN_SIZE),
            attr::OA_VXID => (VXID_AT, attr::VXID_SIZE),
            attr::OA_LASTMODIFIED => (LASTMODIFIED_AT, attr::LASTMODIFIED_SIZE),
            attr::OA_GZIPBITS => (GZIPBITS_AT, attr::GZIPBITS_SIZE),
            attr::OA_FLAGS => (FLAGS_AT, attr::FLAGS_SIZE),
            _ => return None,
        };
        Some((self.at(at), size))
    }

    #[inline]
    fn variable(&self, attr: obj_attr) -> Option<&Variable> {
        match attr {
            attr::OA_VARY => Some(&self.vary),
            attr::OA_HEADERS => Some(&self.headers),
            _ => None,
        }
    }

    #[inline]
    fn get(&self, attr: obj_attr) -> Option<(NonNull<u8>, usize)> {
        if let Some(found) = self.fixed(attr) {
            return Some(found);
        }
        if let Some(variable) = self.variable(attr) {
            let len = variable.len.load(Acquire) as usize;
            return (len > 0).then(|| (self.at(variable.at.load(Relaxed) as usize), len));
        }
        assert!(attr == attr::OA_ESIDATA, "unknown attribute {attr}");
        self.esidata.lock().as_ref().map(|chunk| (chunk.ptr(), chunk.size()))
    }

    /// Room for an attribute; only the fetch calls this.
    fn set(&self, attr: obj_attr, len: usize, alloc: impl FnOnce(usize) -> Option<HeapChunk>) -> Option<NonNull<u8>> {
        if let Some((ptr, size)) = self.fixed(attr) {
            assert!(len == size, "attribute {attr} has {size} bytes, not {len}");
            return Some(ptr);
        }
        if let Some(variable) = self.variable(attr) {
            return self.set_variable(variable, len);
        }
        assert!(attr == attr::OA_ESIDATA, "unknown attribute {attr}");
        let mut esidata = self.esidata.lock();
        if let Some(chunk) = &*esidata {
            assert!(len == chunk.size(), "attribute {attr} has {} bytes, not {len}", chunk.size());
            return Some(chunk.ptr());
        }
        *esidata = if len > 0 { alloc(len) } else { None };
        esidata.as_ref().map(HeapChunk::ptr)
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

    /// The fetch is over: where the body is now it stays.
    pub(crate) fn settled(&self) {
        self.settled.store(if self.body.is_in_heap() { IN_HEAP } else { IN_FILE }, Relaxed);
    }

    /// The attribute `OA_LEN`: how long the body is, once the fetch has ended well.
    pub(crate) fn length(&self) -> u64 {
        let mut bytes = [0; attr::LEN_SIZE];
        // SAFETY: the attribute's bytes are in the head; the fetch wrote them before its boc was gone.
        unsafe { self.at(LEN_AT).as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        u64::from_be_bytes(bytes)
    }

    /// Is the body in heap? Of one that is settled it is known without its lock.
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

/// The object of an objcore of ours, and its storage.
///
/// # Safety
/// `oc` must be what varnishd handed to a callback of our `obj_methods` (or to `panic`): an objcore whose stevedore is
/// ours, and to which the calling thread holds a reference.
#[inline]
pub(crate) unsafe fn object_of<'a>(oc: *const objcore) -> (&'static Engine, &'a Object) {
    // SAFETY: by contract, of which this is a part.
    let object = unsafe { object_at(oc) };
    // SAFETY: by contract; `stobj` as in `object_at`. The stevedore of an objcore that is handed to our methods is ours.
    let engine = unsafe { engine_of((*oc).stobj[0].stevedore.cast()) };
    (engine, object)
}

/// The object of an objcore of ours.
///
/// # Safety
/// As for [`object_of`].
#[inline]
pub(crate) unsafe fn object_at<'a>(oc: *const objcore) -> &'a Object {
    // SAFETY: by contract. `stobj` is written by `allocobj` before, and by `objfree` after, anybody else looks.
    let priv_ = unsafe { (*checked_objcore(oc)).stobj[0].priv_ };
    // SAFETY: `priv` of an objcore of ours is the Box that `allocobj` leaked, until `objfree`, which runs when no
    // reference is left.
    let object = unsafe { priv_.cast::<Object>().as_ref() };
    match object {
        Some(object) if object.magic == OBJECT_MAGIC => object,
        _ => panic!("the objcore's object is not ours"),
    }
}

/// As [`object_of`], for a panic message: no assumption holds.
///
/// # Safety
/// As for [`object_of`], but the object may be absent or damaged.
pub(crate) unsafe fn object_for_panic<'a>(oc: *const objcore) -> Option<&'a Object> {
    // SAFETY: varnishd checked the objcore's magic before it called (cache_panic.c).
    let priv_ = unsafe { oc.as_ref()?.stobj[0].priv_ };
    // SAFETY: a pointer that is not null is a leaked Box of ours.
    unsafe { priv_.cast::<Object>().as_ref() }.filter(|object| object.magic == OBJECT_MAGIC)
}

/// Takes memory of exactly `size` bytes, evicting for it as Varnish's own engines do.
///
/// # Safety
/// `wrk` and `stv` must be what varnishd handed to the calling callback.
pub(crate) unsafe fn alloc_exactly(
    wrk: *mut worker,
    stv: &Stevedore,
    engine: &Engine,
    size: usize,
) -> Option<HeapChunk> {
    loop {
        if let Some(chunk) = HeapChunk::alloc(&engine.account, size) {
            return Some(chunk);
        }
        // SAFETY: `wrk` by contract; the list was allocated in `open`. No lock of ours is held.
        if unsafe { LRU_NukeOne(wrk, stv.lru) } == 0 {
            return None;
        }
    }
}

pub(crate) unsafe extern "C" fn allocobj(
    wrk: *mut worker,
    stv: *const Stevedore,
    oc: *mut objcore,
    wsl: c_uint,
) -> c_int {
    BOUNDARY.fallible("allocobj", 0, || {
        // SAFETY: varnishd hands us its own stevedore and objcore.
        let (checked, engine) = unsafe { (stevedore_ref(stv), engine_of(stv)) };
        let size = HEAD + (wsl as usize).next_multiple_of(8);
        // SAFETY: `wrk` is varnishd's.
        let Some(head) = (unsafe { alloc_exactly(wrk, checked, engine, size) }) else { return 0 };
        let object = Object::new(head);
        let adopts = match announcement::take(oc, engine).map(|announced| object.body.adopt(announced)) {
            Some(Ok(())) => true,
            // A new body takes a record.
            Some(Err(announced)) => {
                engine.cancel_adoption(announced);
                false
            }
            None => false,
        };
        let object = Box::into_raw(Box::new(object));
        // SAFETY: STV_NewObject's caller owns the objcore, which has no stevedore yet: nobody else looks at `stobj`.
        let stobj = unsafe {
            checked_objcore(oc);
            &mut (*oc).stobj[0]
        };
        stobj.stevedore = stv.cast();
        stobj.priv_ = object.cast();
        stobj.priv2 = u64::from(adopts);
        1
    })
}

pub(crate) unsafe extern "C" fn objfree(wrk: *mut worker, oc: *mut objcore) {
    infallible("objfree", || {
        // SAFETY: varnishd's objcore of ours; the last reference to it is this thread's.
        let (engine, object) = unsafe { object_of(oc) };
        object.body.slim(engine);
        object.free_esidata(engine);
        // SAFETY: as above. Without a boc the object went onto the LRU list in `objbocdone`.
        unsafe {
            if (*oc).boc.is_null() {
                LRU_Remove(oc);
            }
        }
        // SAFETY: the Box was leaked in `allocobj`; `object` and every other reference to it end here.
        let object = unsafe { Box::from_raw((*oc).stobj[0].priv_.cast::<Object>()) };
        if object.leaving.into_inner() {
            engine.account.left(object.head.size() as u64);
        }
        object.head.free(&engine.account);
        // SAFETY: the objcore is this thread's alone; ObjFreeObj expects `stobj` to be zeroed.
        unsafe {
            let stobj = &mut (*oc).stobj[0];
            stobj.stevedore = null();
            stobj.priv_ = null_mut();
            stobj.priv2 = 0;
            vsc::one_object_less(wrk);
        }
        if FREED.replace(FREED.get() + 1) + 1 >= SUMMED_AFTER {
            FREED.set(0);
            // SAFETY: `wrk` is this thread's worker, whose counters it may sum at any time, as the workers and the expiry
            // thread do; no lock is held that the sum's comes before (HSH_DerefObjCore has given up the objhead's).
            unsafe { Pool_Sumstat(wrk) };
        }
    });
}

pub(crate) unsafe extern "C" fn objslim(_wrk: *mut worker, oc: *mut objcore) {
    infallible("objslim", || {
        // SAFETY: varnishd's objcore of ours. Nobody reads it: LRU_NukeOne slims what HSH_Snipe found unused, HSH_Cancel
        // what only its own delivery, which is over, could read (cache_hash.c).
        let (engine, object) = unsafe { object_of(oc) };
        object.free_esidata(engine);
        object.body.slim(engine);
        // SAFETY: as above; HSH_Snipe set the flag in this thread. (Set by another one meanwhile, it may be missed: hence
        // a volatile read.)
        let flags = unsafe { (&raw const (*oc).flags).read_volatile() };
        let dying = u32::from(flags) & OC_F_DYING != 0;
        if dying && !object.leaving.swap(true, Relaxed) {
            engine.account.leaves(object.head.size() as u64);
        }
    });
}

pub(crate) unsafe extern "C" fn objgetattr(
    _wrk: *mut worker,
    oc: *mut objcore,
    attr: obj_attr,
    len: *mut isize,
) -> *const c_void {
    infallible("objgetattr", || {
        // SAFETY: varnishd's objcore of ours, referenced by the caller.
        let object = unsafe { object_at(oc) };
        match object.get(attr) {
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

pub(crate) unsafe extern "C" fn objsetattr(
    wrk: *mut worker,
    oc: *mut objcore,
    attr: obj_attr,
    len: isize,
    ptr: *const c_void,
) -> *mut c_void {
    infallible("objsetattr", || {
        // SAFETY: varnishd's objcore of ours; the caller is its fetch.
        let (engine, object) = unsafe { object_of(oc) };
        // SAFETY: as above.
        let stv = unsafe { stevedore_ref((*checked_objcore(oc)).stobj[0].stevedore.cast()) };
        let len = usize::try_from(len).unwrap_or(0);
        let room = object.set(attr, len, |size| {
            // SAFETY: `wrk` is varnishd's.
            unsafe { alloc_exactly(wrk, stv, engine, size) }
        });
        let Some(room) = room else { return null_mut() };
        if !ptr.is_null() {
            // SAFETY: the caller's `len` bytes at `ptr`; `room` is as large, and ours.
            unsafe { std::ptr::copy_nonoverlapping(ptr.cast::<u8>(), room.as_ptr(), len) };
        }
        room.as_ptr().cast()
    })
}
