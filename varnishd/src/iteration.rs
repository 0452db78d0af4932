//! The iteration of a body (Varnish: `cache/cache_obj.c`): a storage passes its pieces to a consumer, following the fetch while there
//! is one.
//!
//! A consumer may keep the address of a piece without [`Flags::FLUSH`] until the object is dereferenced: HTTP/1 queues it for
//! `writev`. After a call with [`Flags::FLUSH`] no address is kept.

use std::ffi::{c_int, c_uint, c_void};
use std::ops::BitOr;

use varnishd_sys::bindings::{BOS_FAILED, BOS_FINISHED, OBJ_ITER_END, OBJ_ITER_FLUSH, ObjIterate, ObjWaitExtend};
use varnishd_sys::functions::{HSH_DerefBoc, HSH_RefBoc};

use crate::boundary::Boundary;
use crate::delivery::Delivery;
use crate::objcore::Objcore;
use crate::raw::{RawBoc, RawConsumer};
use crate::worker::Worker;

/// What a consumer is told of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(c_uint);

impl Flags {
    /// Nothing.
    pub const NONE: Flags = Flags(0);
    /// The address must not be kept.
    pub const FLUSH: Flags = Flags(OBJ_ITER_FLUSH);
    /// The piece is the last one.
    pub const END: Flags = Flags(OBJ_ITER_END);

    /// Returns true if all of `other` are set.
    pub fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns these flags, or none.
    #[must_use]
    pub fn only_if(self, condition: bool) -> Flags {
        if condition { self } else { Flags::NONE }
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// The function that consumes a body.
pub struct Consumer {
    func: RawConsumer,
    private: *mut c_void,
}

impl Consumer {
    /// Returns the consumer that varnishd called an iteration with.
    ///
    /// # Safety
    /// `func` and `private` must be what varnishd called with, in this thread. The consumer must not be used after that call.
    pub unsafe fn new(func: RawConsumer, private: *mut c_void) -> Consumer {
        Consumer { func, private }
    }

    /// Returns the delivery behind the consumer; `None` if it is something else.
    pub fn delivery<'a>(&self) -> Option<Delivery<'a>> {
        // SAFETY: by contract of `new`.
        unsafe { Delivery::of_consumer(self.func, self.private) }
    }

    /// Passes the consumer a piece. A value other than 0 ends the iteration.
    ///
    /// # Safety
    /// The `len` bytes at `ptr` must be readable during the call, and beyond it, until the object is dereferenced, if
    /// [`Flags::FLUSH`] is not set. If the delivery sends from files alone, they need not be.
    pub unsafe fn consume(&self, flags: Flags, ptr: *const c_void, len: usize) -> c_int {
        // SAFETY: by contract.
        unsafe { (self.func)(self.private, flags.0, ptr, len as isize) }
    }
}

/// The progress of a fetch.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Bytes of the body that are there.
    pub len: u64,
    /// There will be no more.
    pub is_complete: bool,
}

/// The fetch has failed.
#[derive(Debug, Clone, Copy)]
pub struct FetchFailed;

/// A reference to the boc of an object that is being fetched. Dropped last, it may end the fetch (the storage is called back).
pub struct Following<'a> {
    oc: Objcore<'a>,
    wrk: Worker<'a>,
    boc: *mut RawBoc,
}

impl<'a> Following<'a> {
    /// Follows the fetch of an object; `None` if there is none any more.
    pub fn begin(oc: Objcore<'a>, wrk: Worker<'a>) -> Option<Following<'a>> {
        // SAFETY: a referenced object.
        let boc = unsafe { HSH_RefBoc(oc.as_ptr()) };
        (!boc.is_null()).then(|| Following { oc, wrk, boc })
    }

    /// Returns true if some of the body has come in.
    pub fn has_bytes(&self) -> bool {
        // SAFETY: a referenced boc; the number only ever grows.
        unsafe { (&raw const (*self.boc).fetched_so_far).read_volatile() > 0 }
    }

    /// Waits until more than `offset` bytes are there, or the fetch has ended. No lock may be held.
    ///
    /// # Errors
    /// The fetch has failed.
    pub fn wait(&self, offset: u64) -> Result<Progress, FetchFailed> {
        let mut state = 0;
        // SAFETY: a referenced object with its boc.
        let len = unsafe { ObjWaitExtend(self.wrk.as_ptr(), self.oc.as_ptr(), offset, &raw mut state) };
        if state == BOS_FAILED { Err(FetchFailed) } else { Ok(Progress { len, is_complete: state == BOS_FINISHED }) }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        // SAFETY: the reference of `begin`.
        unsafe { HSH_DerefBoc(self.wrk.as_ptr(), self.oc.as_ptr()) };
    }
}

struct Each<'a, F> {
    boundary: &'static Boundary,
    call: &'a mut F,
}

/// Passes `call` each piece of an object's body until it returns false. Returns true if it got to the end.
pub fn for_each_piece<F>(oc: Objcore<'_>, wrk: Worker<'_>, boundary: &'static Boundary, call: &mut F) -> bool
where
    F: FnMut(&[u8]) -> bool,
{
    unsafe extern "C" fn piece<F: FnMut(&[u8]) -> bool>(
        each: *mut c_void,
        _flags: c_uint,
        ptr: *const c_void,
        len: isize,
    ) -> c_int {
        // SAFETY: what `for_each_piece` gave.
        let Some(Each { boundary, call }) = (unsafe { each.cast::<Each<'_, F>>().as_mut() }) else { return 1 };
        boundary.fallible("iteration", 1, || {
            let Ok(len @ 1..) = usize::try_from(len) else { return 0 };
            // SAFETY: bytes of the object's body, which nothing writes any more.
            let bytes = unsafe { std::slice::from_raw_parts(ptr.cast::<u8>(), len) };
            c_int::from(!call(bytes))
        })
    }
    let mut each = Each { boundary, call };
    // SAFETY: a referenced object; `each` outlives the call, which alone uses it meanwhile.
    unsafe { ObjIterate(wrk.as_ptr(), oc.as_ptr(), (&raw mut each).cast(), Some(piece::<F>), 0) == 0 }
}
