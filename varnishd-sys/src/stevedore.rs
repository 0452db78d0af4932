//! `struct stevedore` (Varnish: `bin/varnishd/storage/storage.h`).

use core::ffi::{c_char, c_int, c_uint, c_void};
use core::marker::{PhantomData, PhantomPinned};

use crate::bindings::{objcore, vsb, worker};
use crate::obj_methods::ObjMethods;

/// `STEVEDORE_MAGIC`.
pub const STEVEDORE_MAGIC: c_uint = 0x4baf_43db;

/// varnishd's least-recently-used list of a stevedore (Varnish: `storage/storage_lru.c`); opaque.
#[repr(C)]
pub struct Lru {
    _opaque: [u8; 0],
    _not_send: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `storage_init_f`: parses the `-s` arguments, in the child, before it gives up its privileges.
pub type StorageInit = unsafe extern "C" fn(*mut Stevedore, c_int, *const *mut c_char);
/// `storage_open_f`: in the child, in its CLI thread, after it gave up its privileges.
pub type StorageOpen = unsafe extern "C" fn(*mut Stevedore);
/// `storage_allocobj_f`: makes an object with so many bytes for variable attributes; 0 is failure.
pub type StorageAllocObj = unsafe extern "C" fn(*mut worker, *const Stevedore, *mut objcore, c_uint) -> c_int;
/// `storage_close_f`: the child ends; called twice, with 1 (warning) and 0.
pub type StorageClose = unsafe extern "C" fn(*const Stevedore, c_int);
/// `BI_NEW` of `enum baninfo`: a ban came.
pub const BI_NEW: c_uint = 0;
/// `BI_DROP`: the oldest ban went.
pub const BI_DROP: c_uint = 1;

/// `storage_baninfo_f`: a ban (its spec and the spec's length) came or went, as the second argument (`enum baninfo`)
/// says. Called with `ban_mtx` held, for every storage; not 0 asks for a `banexport`.
pub type StorageBanInfo = unsafe extern "C" fn(*const Stevedore, c_uint, *const u8, c_uint) -> c_int;
/// `storage_banexport_f`: the whole list of bans.
pub type StorageBanExport = unsafe extern "C" fn(*const Stevedore, *const u8, c_uint);
/// `storage_panic_f`: describes an object in a panic message.
pub type StoragePanic = unsafe extern "C" fn(*mut vsb, *const objcore);
/// `storage_allocbuf_f`: a plain buffer, or NULL.
pub type StorageAllocBuf = unsafe extern "C" fn(*mut worker, *const Stevedore, usize, *mut usize) -> *mut c_void;
/// `storage_freebuf_f`: gives it back.
pub type StorageFreeBuf = unsafe extern "C" fn(*mut worker, *const Stevedore, usize);
/// The VCL variables that are byte counts.
pub type VarBytes = unsafe extern "C" fn(*const Stevedore) -> i64;
/// The VCL variables that are booleans.
pub type VarBool = unsafe extern "C" fn(*const Stevedore) -> c_uint;

/// `VTAILQ_ENTRY`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TailqEntry {
    /// The next element.
    pub next: *mut Stevedore,
    /// The pointer that points here.
    pub prev: *mut *mut Stevedore,
}

/// `struct stevedore`.
///
/// varnishd copies the one that is registered for every `-s` that names it, and fills in the fields after `priv_`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stevedore {
    /// [`STEVEDORE_MAGIC`].
    pub magic: c_uint,
    /// The name in `-s`.
    pub name: *const c_char,
    /// See [`StorageInit`].
    pub init: Option<StorageInit>,
    /// See [`StorageOpen`].
    pub open: Option<StorageOpen>,
    /// See [`StorageClose`].
    pub close: Option<StorageClose>,
    /// See [`StorageAllocObj`]; required.
    pub allocobj: Option<StorageAllocObj>,
    /// See [`StorageBanInfo`].
    pub baninfo: Option<StorageBanInfo>,
    /// See [`StorageBanExport`].
    pub banexport: Option<StorageBanExport>,
    /// See [`StoragePanic`].
    pub panic: Option<StoragePanic>,
    /// See [`StorageAllocBuf`].
    pub allocbuf: Option<StorageAllocBuf>,
    /// See [`StorageFreeBuf`].
    pub freebuf: Option<StorageFreeBuf>,
    /// Only of varnishd's own simple stevedores.
    pub sml_alloc: Option<unsafe extern "C" fn()>,
    /// Only of varnishd's own simple stevedores.
    pub sml_free: Option<unsafe extern "C" fn()>,
    /// Only of varnishd's own simple stevedores.
    pub sml_getobj: Option<unsafe extern "C" fn()>,
    /// What can be done with an object; required.
    pub methods: *const ObjMethods,
    /// Only if varnishd's LRU is used.
    pub lru: *mut Lru,
    /// `storage.<name>.free_space`.
    pub var_free_space: Option<VarBytes>,
    /// `storage.<name>.used_space`.
    pub var_used_space: Option<VarBytes>,
    /// `storage.<name>.happy`.
    pub var_happy: Option<VarBool>,
    /// The engine's own.
    pub priv_: *mut c_void,
    /// varnishd's list of stevedores.
    pub list: TailqEntry,
    /// The arguments; the stevedore keeps them.
    pub av: *mut *mut c_char,
    /// The name before `=` in `-s`, or `s0`, `s1`, …
    pub ident: *const c_char,
    /// `storage.<ident>`.
    pub vclname: *const c_char,
}

// SAFETY: a `Stevedore` that is shared between threads is either a constant (no interior mutability; its pointers are
// null or point to statics), or varnishd's own copy, whose fields varnishd and `open` write before any worker thread runs.
unsafe impl Sync for Stevedore {}

const _: () = {
    use core::mem::offset_of;
    const P: usize = size_of::<usize>();
    assert!(size_of::<Stevedore>() == 25 * P);
    assert!(offset_of!(Stevedore, name) == P);
    assert!(offset_of!(Stevedore, allocobj) == 5 * P);
    assert!(offset_of!(Stevedore, baninfo) == 6 * P);
    assert!(offset_of!(Stevedore, banexport) == 7 * P);
    assert!(offset_of!(Stevedore, methods) == 14 * P);
    assert!(offset_of!(Stevedore, lru) == 15 * P);
    assert!(offset_of!(Stevedore, var_free_space) == 16 * P);
    assert!(offset_of!(Stevedore, priv_) == 19 * P);
    assert!(offset_of!(Stevedore, ident) == 23 * P);
    // The slots of the VCL variables come from a table that is installed: a Varnish with others is noticed here.
    assert!(crate::bindings::OBJM_STV_VAR_free_space == 0);
    assert!(crate::bindings::OBJM_STV_VAR_used_space == 1);
    assert!(crate::bindings::OBJM_STV_VAR_happy == 2);
    assert!(crate::bindings::OBJM_STV_VAR__COUNT == 3);
};
