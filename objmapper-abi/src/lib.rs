//! The C table in which storage engine and VMOD meet.
//!
//! They are two shared objects with a copy each of the Rust libraries that both use, so only types with the layout of C cross: the
//! engine exports one table of C functions under the symbol [`SYMBOL`] (varnishd loads a `-E` library with RTLD_GLOBAL), and
//! the VMOD looks it up with `dlsym` when it is loaded. Either works without the other. [`Engine::usable`] returns true if
//! the VMOD can use the table that it found.
//!
//! Every function may be called by any thread of the varnishd child unless it says otherwise, and never unwinds. varnishd's
//! structures are opaque here: `stv` is the address of a stevedore, `oc` of an objcore.

#![no_std]

use core::ffi::{CStr, c_int, c_void};

/// The outcome of [`Engine::publish`], and the kinds of failure, which engine and VMOD count alike.
pub use objmapper_client::{Outage, Published};

// They cross the table: another number or layout is another VERSION.
const _: () = {
    assert!(Outage::Down as i32 == 1 && Outage::Timeout as i32 == 2 && Outage::Full as i32 == 3);
    assert!(Outage::Io as i32 == 4 && Outage::Protocol as i32 == 5 && Outage::ALL.len() == 5);
    assert!(size_of::<Outage>() == 4 && size_of::<Published>() == 8 && size_of::<Adoption>() == 8);
};

/// The table's name among the process's symbols.
pub const SYMBOL: &CStr = c"objmapper_engine";

/// The value of [`Engine::magic`].
pub const MAGIC: u32 = 0x6f62_6d65;

/// The value of [`Engine::version`]. It grows with every change that is not an addition at the table's end.
pub const VERSION: u32 = 4;

/// Bytes that are not NUL-terminated.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Bytes {
    /// Address of the first byte; may be dangling if `len` is 0.
    pub ptr: *const u8,
    /// The number of bytes.
    pub len: usize,
}

/// The store behind a storage.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Store {
    /// The store's instance from the reply to ATTACH (EXTENSIONS.md); zeros if the store was never reached.
    pub instance: [u8; 16],
    /// The path of its socket; empty for a store inside this process, which [`Engine::connect`] reaches. Valid for as
    /// long as the process.
    pub socket: Bytes,
}

/// A published record whose file becomes the body of an object.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Record {
    /// The instance of the record's store.
    pub instance: [u8; 16],
    /// The record's URI.
    pub uri: Bytes,
    /// The record's object number. If the URI has another object by now, the outcome is [`Adoption::Gone`].
    pub object: u64,
    /// Bytes of the body, which begins at the file's first byte.
    pub body_len: u64,
    /// Bytes of the file: the body and the record's tail.
    pub file_len: u64,
}

/// The outcome of [`Engine::adopt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Adoption {
    /// The object will use the record's file as its body.
    Adopted = 0,
    /// The storage is not ours, or uses another store: copy the bytes.
    Elsewhere = 1,
    /// The body is small enough for heap: copy the bytes.
    Small = 2,
    /// The record is not under its URI any more.
    Gone = 3,
    /// The request failed.
    Outage(Outage) = 4,
}

/// The parameters by which a body becomes a record in the shared cache.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Publication {
    /// The URI of the new record.
    pub uri: Bytes,
    /// The bytes that are appended to the body's file: the record's tail.
    pub tail: Bytes,
    /// Milliseconds since 1970 after which the store may drop the record; 0 is never.
    pub expires: i64,
    /// Shard of the fence for COMMIT (EXTENSIONS.md).
    pub shard: u32,
    /// Value of that fence when the fetch began.
    pub fence: u64,
}

/// A callback for every new ban, as varnishd encodes it (cache_ban.h). `spec` is valid during the call only. varnishd holds
/// its ban mutex during the call: the callback must neither block nor call varnishd.
pub type OnBan = unsafe extern "C" fn(spec: Bytes);

/// The position of bytes of a body in a file.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Span {
    /// The file's descriptor, read-only; the engine owns it.
    pub fd: c_int,
    /// The storage's option `zero_copy`.
    pub how: How,
    /// Offset in the file of the first byte.
    pub offset: u64,
}

/// The option `zero_copy` of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum How {
    /// The filter chooses.
    Auto = 0,
    /// Send by sendfile(2).
    Sendfile = 1,
    /// Send by splice(2), through a pipe.
    Splice = 2,
}

/// The location of an object's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum BodyLocation {
    /// In a storage that is not ours.
    Elsewhere = 0,
    /// All of it is in heap and stays there.
    Heap = 1,
    /// In a storage whose bodies are to be copied (`zero_copy=off`).
    Off = 2,
    /// In a file, or it may get there.
    File = 3,
}

/// The mode of a delivery: the form in which a body is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum DeliveryMode {
    /// Bytes, because there is no such filter in this delivery, or it cannot send.
    Bytes = 0,
    /// Bytes, and [`Delivery::span`].
    Both = 1,
    /// [`Delivery::span`] alone. The filter does not read the bytes, and their addresses must not be read.
    Spans = 2,
    /// Bytes that only system calls read.
    Kernel = 3,
}

/// The reason why bytes of a file were copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Copied {
    /// No byte was copied.
    None = 0,
    /// The bytes are too few for zero copy to pay.
    Small = 1,
    /// The client speaks HTTP/2.
    Http2 = 2,
    /// The length was not known, so the response is chunked.
    Chunked = 3,
    /// Another filter changes or reads the bytes: gzip, ESI.
    Filtered = 4,
    /// The storage has `zero_copy=off`.
    Off = 5,
    /// The kernel does not support it, or there was no memory.
    Other = 6,
    /// The bytes are in heap, although the body is complete.
    Heap = 7,
    /// The body was still being fetched, and these bytes were not in the file yet.
    Streaming = 8,
}

impl Copied {
    /// The number of reasons.
    pub const COUNT: usize = 9;

    /// All reasons, each at the index that is its number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::None,
        Self::Small,
        Self::Http2,
        Self::Chunked,
        Self::Filtered,
        Self::Off,
        Self::Other,
        Self::Heap,
        Self::Streaming,
    ];
}

// Each reason is at the index that is its number.
const _: () = {
    let mut index = 0;
    while index < Copied::COUNT {
        assert!(Copied::ALL[index] as usize == index);
        index += 1;
    }
};

/// The figures of one delivery.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Delivered {
    /// Bytes that were sent from the file.
    pub sent: u64,
    /// Bytes that were copied.
    pub copied: u64,
    /// The reason for most of the copied bytes.
    pub why: Copied,
}

/// A callback that returns the mode of the delivery at `vdc` (varnishd's delivery context), before its body is iterated. It must neither
/// block nor unwind.
pub type OnIterate = unsafe extern "C" fn(vdc: *const c_void) -> DeliveryMode;

/// The functions for a delivery filter.
#[derive(Debug)]
#[repr(C)]
pub struct Delivery {
    /// Returns the location of the body of `oc`. The caller holds a reference to `oc`.
    pub location: unsafe extern "C" fn(oc: *const c_void) -> BodyLocation,
    /// Sets the callback that chooses the form of a body; null sets none, and bodies are delivered as bytes. The callback must
    /// stay loaded for the life of the process.
    pub on_iterate: unsafe extern "C" fn(listener: Option<OnIterate>),
    /// Returns true and sets `span` if the bytes are part of a file. The thread must be in the call that
    /// passed it these bytes, or bytes that include them; otherwise the result is false. The descriptor stays open and the file
    /// unchanged until that call returns; what the kernel sends of the file afterwards does not change either.
    pub span: unsafe extern "C" fn(ptr: *const u8, len: usize, span: *mut Span) -> bool,
    /// Counts a delivery of `oc` that had a body and has ended.
    pub delivered: unsafe extern "C" fn(oc: *const c_void, delivered: *const Delivered),
    /// Counts a delivery of `oc` for which the congestion control of its connection was changed for good.
    pub unpaced: unsafe extern "C" fn(oc: *const c_void),
    /// Reports that reading the file of [`Delivery::span`] failed with `errno` (EIO if it ends too early). The filter calls it
    /// before the call returns that passed it the bytes; the object then leaves the cache.
    pub unreadable: unsafe extern "C" fn(errno: c_int),
    /// Returns true if the file of object number `object` in the store `instance` was found to be unreadable. Such a record is
    /// not adopted.
    pub is_unreadable: unsafe extern "C" fn(instance: *const [u8; 16], object: u64) -> bool,
}

/// The table as the engine exports it.
#[derive(Debug)]
#[repr(C)]
pub struct Extended {
    /// The first part, which every engine has. Its `size` is that of the whole table.
    pub engine: Engine,
    /// The functions for delivery without a copy.
    pub delivery: Delivery,
}

impl Extended {
    /// Returns the functions for delivery; `None` if the engine has none.
    ///
    /// # Safety
    /// `table` must be the address of the symbol [`SYMBOL`], and [`Engine::usable`].
    pub unsafe fn delivery(table: *const Engine) -> Option<&'static Delivery> {
        // SAFETY: by contract `table` is the engine's table, of `size` bytes. It is never written after it was built, and the
        // engine's library is never unloaded.
        unsafe { ((*table).size >= size_of::<Extended>()).then(|| &(*table.cast::<Extended>()).delivery) }
    }
}

/// The table of functions that every engine has.
#[derive(Debug)]
#[repr(C)]
pub struct Engine {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of the table in the engine's version.
    pub size: usize,
    /// Returns true if `stv` is a storage of the engine. `stv` may be null.
    pub is_ours: unsafe extern "C" fn(stv: *const c_void) -> bool,
    /// Returns the engine's first open storage, or null.
    pub default_storage: unsafe extern "C" fn() -> *const c_void,
    /// Sets `store` to the store of a storage of the engine. Returns false if `stv` is another storage.
    pub store: unsafe extern "C" fn(stv: *const c_void, store: *mut Store) -> bool,
    /// Returns a new connection to the store inside this process: the client's end of a socket pair, which the caller owns.
    /// A negative value is `-errno`; `-ENOTSUP` if the store is an objmapperd.
    pub connect: unsafe extern "C" fn(stv: *const c_void) -> c_int,
    /// Announces that the next object that this thread allocates for `oc` in `stv` adopts a record, which is pinned for
    /// it. Called in the fetch, before the object is allocated and with no lock held; it may wait for the store, within
    /// its deadline. Another announcement, or [`Engine::cancel_adoption`], cancels it.
    ///
    /// The object may still get ordinary space: if the storage's limit has no room for all of the file, if the file cannot be
    /// opened, or if a filter writes to the space (any but `testgunzip` and `esi`).
    /// [`Engine::adopted`] then returns 0 and the caller copies the bytes. It also returns 0 for space behind the record's last byte.
    pub adopt: unsafe extern "C" fn(stv: *const c_void, oc: *const c_void, record: *const Record) -> Adoption,
    /// Cancels what [`Engine::adopt`] announced in this thread, if no object has taken it.
    pub cancel_adoption: unsafe extern "C" fn(),
    /// Returns the number of bytes of the adopted body that `ptr` stands for, at most `len`, if `ptr` is the space that the storage
    /// returned for the body of `oc`. Returns 0 for ordinary space, which is to be written. The bytes need not be at the address:
    /// it must not be written, and only `testgunzip` and `esi` may read it.
    pub adopted: unsafe extern "C" fn(oc: *const c_void, ptr: *const u8, len: usize) -> usize,
    /// Publishes the complete body of `oc`, whose fetch has ended well in this thread, with its boc still
    /// referenced. It may wait for the store, within its deadline.
    pub publish: unsafe extern "C" fn(oc: *const c_void, publication: *const Publication) -> Published,
    /// Sets the callback for new bans; null sets none. The callback must stay loaded for the life of the process.
    pub on_ban: unsafe extern "C" fn(listener: Option<OnBan>),
    /// Returns true if a storage of the engine began with objects of an earlier process (`persist=on`).
    pub has_reloaded: unsafe extern "C" fn() -> bool,
}

impl Engine {
    /// Returns true if a caller that was built with this crate can use the table.
    pub fn usable(&self) -> bool {
        self.magic == MAGIC && self.version == VERSION && self.size >= size_of::<Engine>()
    }
}

// SAFETY: the table has only functions and numbers, and is never written after it was built.
unsafe impl Sync for Engine {}
