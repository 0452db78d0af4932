//! The beginning of `struct objhead` (Varnish: `bin/varnishd/cache/cache_objhead.h`, which is not installed): all objects of one
//! digest.

use core::ffi::{c_int, c_uint};

use crate::ban::BanObjcores;
use crate::bindings::{DIGEST_LEN, lock};

/// `OBJHEAD_MAGIC`.
pub const OBJHEAD_MAGIC: c_uint = 0x1b96_615d;

/// The beginning of `struct objhead`, the same in every branch that can be built for.
#[repr(C)]
pub struct ObjHead {
    /// [`OBJHEAD_MAGIC`].
    pub magic: c_uint,
    /// References to it. Written with `mtx` held.
    pub refcnt: c_int,
    /// Held by whoever changes an object's flags and references. varnishd takes its ban mutex with this one held, so that
    /// a thread that holds the ban mutex may only try.
    pub mtx: lock,
    /// The list of its objects: the first one, and the pointer that ends the list. Read and written with `mtx` held.
    pub objcs: BanObjcores,
    /// The key. It does not change.
    pub digest: [u8; DIGEST_LEN as usize],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(ObjHead, refcnt) == 4);
    assert!(offset_of!(ObjHead, mtx) == 8);
    assert!(offset_of!(ObjHead, objcs) == 16);
    assert!(offset_of!(ObjHead, digest) == 32);
    assert!(DIGEST_LEN == 32);
};
