//! A storage engine (a *stevedore*) as varnishd sees it (Varnish: `storage/storage.h`): its tables, and what varnishd keeps of each
//! storage.
//!
//! ```text
//! library loaded ─► register ─► init (as the manager's user) ─► open (in the CLI thread, jailed) ─► objects … ─► close
//! ```
//!
//! varnishd copies the registered table for every `-s` that names it. The copy is written by `init` and `open` only, before any
//! worker thread runs.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use varnishd_sys::bindings::VNUM_2bytes;
use varnishd_sys::functions::STV_Register;
use varnishd_sys::obj_methods::{
    ObjBocDone, ObjExtend, ObjFree, ObjGetAttr, ObjGetSpace, ObjIterator, ObjMethods, ObjSetAttr, ObjSlim, ObjTrimStore,
};
use varnishd_sys::stevedore::{
    STEVEDORE_MAGIC, StorageAllocBuf, StorageAllocObj, StorageBanExport, StorageBanInfo, StorageClose, StorageFreeBuf,
    StorageInit, StorageOpen, StoragePanic, TailqEntry, VarBool, VarBytes,
};
use varnishd_sys::version;

use crate::boundary::Constant;
use crate::cast::stevedore_ref;
use crate::lru::{self, Lru};
use crate::raw::RawStorage;

/// The table of what can be done with an object.
pub type ObjectMethods = ObjMethods;

/// The callbacks for an object. An object is put onto varnishd's least-recently-used list, and touched there when it is used.
pub struct ObjectCallbacks {
    /// The last reference is gone.
    pub free: ObjFree,
    /// Passes the body to a consumer.
    pub iterate: ObjIterator,
    /// Returns room for more of the body.
    pub get_space: ObjGetSpace,
    /// So many bytes of that room are body now.
    pub extend: ObjExtend,
    /// Returns an attribute.
    pub get_attribute: ObjGetAttr,
    /// Returns room for an attribute.
    pub set_attribute: ObjSetAttr,
    /// Nothing more will be written.
    pub trim: ObjTrimStore,
    /// The fetch has ended.
    pub boc_done: ObjBocDone,
    /// Frees the body, and keeps the attributes.
    pub slim: ObjSlim,
}

impl ObjectCallbacks {
    /// Returns the table of these callbacks.
    // A branch of Varnish may have slots that another has not.
    #[allow(clippy::needless_update)]
    pub const fn table(self) -> ObjectMethods {
        ObjMethods {
            // Required.
            objfree: Some(self.free),
            objiterator: Some(self.iterate),
            objgetspace: Some(self.get_space),
            objextend: Some(self.extend),
            objgetattr: Some(self.get_attribute),
            objsetattr: Some(self.set_attribute),
            // Optional.
            objtrimstore: Some(self.trim),
            objbocdone: Some(self.boc_done),
            objslim: Some(self.slim),
            objtouch: Some(lru::TOUCH),
            objsetstate: None,
            ..ObjMethods::NONE
        }
    }
}

/// The callbacks for a storage.
pub struct StorageCallbacks {
    /// Parses the arguments of `-s`.
    pub init: StorageInit,
    /// Opens the storage.
    pub open: StorageOpen,
    /// Closes it.
    pub close: StorageClose,
    /// Allocates an object.
    pub allocate: StorageAllocObj,
    /// A ban came or went. Not 0 asks for the whole list.
    pub ban: StorageBanInfo,
    /// All bans, from the oldest to the newest.
    pub all_bans: StorageBanExport,
    /// Describes an object for a panic message.
    pub panic: StoragePanic,
    /// Allocates a plain buffer.
    pub allocate_buffer: StorageAllocBuf,
    /// Frees a plain buffer.
    pub free_buffer: StorageFreeBuf,
    /// `storage.<name>.free_space`.
    pub free_space: VarBytes,
    /// `storage.<name>.used_space`.
    pub used_space: VarBytes,
    /// `storage.<name>.happy`.
    pub happy: VarBool,
}

impl StorageCallbacks {
    /// Returns the table of an engine that `-s` calls `name`.
    pub const fn table(self, name: &'static CStr, methods: &'static Constant<ObjectMethods>) -> RawStorage {
        RawStorage {
            magic: STEVEDORE_MAGIC,
            name: name.as_ptr(),
            init: Some(self.init),
            open: Some(self.open),
            close: Some(self.close),
            allocobj: Some(self.allocate),
            baninfo: Some(self.ban),
            banexport: Some(self.all_bans),
            panic: Some(self.panic),
            allocbuf: Some(self.allocate_buffer),
            freebuf: Some(self.free_buffer),
            sml_alloc: None,
            sml_free: None,
            sml_getobj: None,
            methods: methods.address(),
            lru: null_mut(),
            var_free_space: Some(self.free_space),
            var_used_space: Some(self.used_space),
            var_happy: Some(self.happy),
            priv_: null_mut(),
            list: TailqEntry { next: null_mut(), prev: null_mut() },
            av: null_mut(),
            ident: null(),
            vclname: null(),
        }
    }
}

/// Registers an engine under the name of its table, or another one. Called when the library is loaded.
pub fn register(table: &'static RawStorage, name: Option<&'static CStr>) {
    // SAFETY: storage/mgt_stevedore.c copies the structure; the strings and tables that it points to are static. varnishd never
    // unloads the library.
    unsafe { STV_Register(table, name.map_or(null(), CStr::as_ptr)) };
}

/// Returns the product and the branch that this library was built for, as in `varnish 7.7`.
pub fn branch() -> String {
    let release = version::compiled_for();
    let branch: Vec<&str> = release.version.split('.').take(2).collect();
    format!("{} {}", release.product, branch.join("."))
}

/// Compares the varnishd around this library with the one that it was built for.
///
/// # Errors
/// They differ: the message says what to do.
pub fn check_release() -> Result<(), String> {
    version::check().map_err(|mismatch| mismatch.to_string())
}

/// A storage that varnishd has configured, for `'a`.
#[derive(Clone, Copy)]
pub struct Storage<'a>(&'a RawStorage);

impl<'a> Storage<'a> {
    /// Returns the storage that varnishd called with. A pointer to anything else ends the child.
    ///
    /// # Safety
    /// `stv` must be a storage of varnishd's, which lives for `'a`.
    #[inline]
    #[track_caller]
    pub unsafe fn new(stv: *const RawStorage) -> Storage<'a> {
        // SAFETY: by contract; `init` and `open` have written to it before any worker runs.
        Storage(unsafe { stevedore_ref(stv) })
    }

    /// Returns the storage at an address, if it has these methods.
    ///
    /// # Safety
    /// `stv` must be null or as for [`Storage::new`].
    pub unsafe fn with_methods(stv: *const c_void, methods: &'static Constant<ObjectMethods>) -> Option<Storage<'a>> {
        if stv.is_null() {
            return None;
        }
        // SAFETY: by contract.
        let storage = unsafe { Storage::new(stv.cast()) };
        std::ptr::eq(storage.0.methods, methods.address()).then_some(storage)
    }

    /// Returns the storage's address.
    #[inline]
    pub fn as_ptr(self) -> *const RawStorage {
        self.0
    }

    /// Returns the name of its engine in `-s`.
    pub fn name(self) -> &'a CStr {
        // SAFETY: a string that varnishd keeps.
        unsafe { CStr::from_ptr(self.0.name) }
    }

    /// Returns its own name: what is before `=` in `-s`, or `s0`, `s1`, … Known from `open` on.
    pub fn ident(self) -> &'a CStr {
        // SAFETY: a string that varnishd keeps.
        unsafe { CStr::from_ptr(self.0.ident) }
    }

    /// Returns what [`set_private`] has stored.
    #[inline]
    pub fn private(self) -> *mut c_void {
        self.0.priv_
    }

    /// Returns its least-recently-used list, which [`set_lru`] has stored in `open`.
    #[inline]
    pub fn lru(self) -> Lru {
        // SAFETY: `open` has stored a list there.
        unsafe { Lru::new(self.0.lru) }
    }
}

/// Stores the engine's own pointer.
///
/// # Safety
/// `stv` must be what varnishd calls `init` with, in that call.
pub unsafe fn set_private(stv: *mut RawStorage, private: *mut c_void) {
    // SAFETY: by contract: no other thread runs yet.
    unsafe { (*stv).priv_ = private };
}

/// Stores the storage's least-recently-used list.
///
/// # Safety
/// `stv` must be what varnishd calls `open` with, in that call.
pub unsafe fn set_lru(stv: *mut RawStorage, lru: Lru) {
    // SAFETY: by contract: no worker runs yet.
    unsafe { (*stv).lru = lru.as_ptr() };
}

/// Returns the arguments of `-s`.
///
/// # Safety
/// `av` must be an array of `ac` strings, which live as long as the process: what varnishd calls `init` with.
pub unsafe fn arguments(ac: c_int, av: *const *mut c_char) -> Vec<&'static CStr> {
    let count = usize::try_from(ac).unwrap_or(0);
    (0..count)
        // SAFETY: by contract.
        .map(|index| unsafe { CStr::from_ptr(*av.add(index)) })
        .collect()
}

/// Parses a number of bytes as varnishd does ("1G").
///
/// # Errors
/// varnishd's own message.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = CString::new(text).map_err(|_| "has a NUL byte".to_owned())?;
    let mut bytes = 0;
    // SAFETY: lib/libvarnish/vnum.c reads a string, writes a number and returns NULL or a static text.
    let error = unsafe { VNUM_2bytes(text.as_ptr(), &raw mut bytes, 0) };
    if error.is_null() {
        return Ok(bytes);
    }
    // SAFETY: see above.
    Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
}
