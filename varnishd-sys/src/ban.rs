//! varnishd's list of bans (Varnish: `bin/varnishd/cache/cache_ban.h`, which is not installed).
//!
//! The list may be walked with [`ban_mtx`] held. Newer bans come first. What a ban's `spec` says is described in
//! `cache_ban.h`; its length is a big-endian u32 at [`BANS_LENGTH`].

use core::ffi::c_uint;

use crate::bindings::{lock, objcore};

/// `BAN_MAGIC`.
pub const BAN_MAGIC: c_uint = 0x700b_08ea;
/// Where in a ban's spec its time is: a double in native byte order, seconds since 1970.
pub const BANS_TIMESTAMP: usize = 0;
/// Where in a ban's spec its length is, in bytes, head included.
pub const BANS_LENGTH: usize = 8;
/// Where in a ban's spec its flags are, one byte.
pub const BANS_FLAGS: usize = 12;
/// Bytes before a ban's tests.
pub const BANS_HEAD_LEN: usize = 16;
/// The ban tests requests.
pub const BANS_FLAG_REQ: c_uint = 1 << 0;
/// The ban tests objects only.
pub const BANS_FLAG_OBJ: c_uint = 1 << 1;
/// The ban needs no look any more: all objects older than it were tested, or it was a duplicate.
pub const BANS_FLAG_COMPLETED: c_uint = 1 << 2;

/// `VTAILQ_ENTRY(ban)`.
#[repr(C)]
pub struct BanEntry {
    /// The next, older ban.
    pub next: *mut Ban,
    /// The pointer that points here.
    pub prev: *mut *mut Ban,
}

/// `VTAILQ_HEAD(, objcore)`.
#[repr(C)]
pub struct BanObjcores {
    /// The first one.
    pub first: *mut objcore,
    /// The pointer that ends the list.
    pub last: *mut *mut objcore,
}

/// `struct ban`.
#[repr(C)]
pub struct Ban {
    /// [`BAN_MAGIC`].
    pub magic: c_uint,
    /// `BANS_FLAG_*`.
    pub flags: c_uint,
    /// In the list of all bans.
    pub list: BanEntry,
    /// In a list of the ban lurker's.
    pub lurker_list: BanEntry,
    /// Objects that were last tested by this ban.
    pub refcount: i64,
    /// Those objects.
    pub objcore: BanObjcores,
    /// The tests, as bytes.
    pub spec: *const u8,
}

/// `struct banhead_s`.
#[repr(C)]
pub struct BanHead {
    /// The newest ban.
    pub first: *mut Ban,
    /// The pointer that ends the list.
    pub last: *mut *mut Ban,
}

const _: () = {
    use core::mem::offset_of;
    const P: usize = size_of::<usize>();
    assert!(offset_of!(Ban, list) == 8);
    assert!(offset_of!(Ban, lurker_list) == 8 + 2 * P);
    assert!(offset_of!(Ban, refcount) == 8 + 4 * P);
    assert!(offset_of!(Ban, objcore) == 16 + 4 * P);
    assert!(offset_of!(Ban, spec) == 16 + 6 * P);
    assert!(size_of::<Ban>() == 16 + 7 * P);
};

unsafe extern "C" {
    /// To be held while the list is read or changed (Varnish: `cache/cache_ban.c`, as the list). Lock it with
    /// [`Lck__Lock`](crate::bindings::Lck__Lock), and neither block nor call varnishd before
    /// [`Lck__Unlock`](crate::bindings::Lck__Unlock).
    pub static mut ban_mtx: lock;
    /// All bans, never empty once varnishd serves requests.
    pub static mut ban_head: BanHead;
}
