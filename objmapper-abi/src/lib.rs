//! The C table in which storage engine and VMOD meet.
//!
//! They are two shared objects with a copy each of the Rust libraries that both use, so no Rust type crosses: the engine
//! exports one table of C functions under the symbol [`SYMBOL`] (varnishd loads a `-E` library with RTLD_GLOBAL), and
//! the VMOD looks it up with `dlsym` when it is loaded. Either works without the other. [`Engine::usable`] says whether
//! a table that was found can be used.
//!
//! Every function may be called by any thread of the varnishd child unless it says otherwise, and never unwinds. Names of
//! Varnish's structs are opaque here: `stv` is a `struct stevedore *`, `oc` a `struct objcore *`, `wrk` the calling
//! thread's `struct worker *`.

#![no_std]

use core::ffi::{CStr, c_int, c_void};

/// The table's name among the process's symbols.
pub const SYMBOL: &CStr = c"objmapper_engine";

/// What [`Engine::magic`] holds.
pub const MAGIC: u32 = 0x6f62_6d65;

/// What [`Engine::version`] holds: grows with every change that is not an addition at the table's end.
pub const VERSION: u32 = 2;

/// Bytes that are not NUL-terminated.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Bytes {
    /// The first one; may be dangling if `len` is 0.
    pub ptr: *const u8,
    /// How many.
    pub len: usize,
}

/// The store behind a storage.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Store {
    /// The store's instance, as ATTACH told it (EXTENSIONS.md); zeros while it was never reached.
    pub instance: [u8; 16],
    /// The path of its socket; empty for a store inside this process, which [`Engine::connect`] reaches. Valid for as
    /// long as the process.
    pub socket: Bytes,
}

/// A published record that an object shall adopt as its body.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Record {
    /// The instance of the store that it is in.
    pub instance: [u8; 16],
    /// Under which URI.
    pub uri: Bytes,
    /// Its number there. Another one under that URI by now: [`Adoption::Gone`].
    pub object: u64,
    /// Bytes of body, from the file's first byte on.
    pub body_len: u64,
    /// Bytes of the file, which is longer by the record's tail.
    pub file_len: u64,
}

/// What became of [`Engine::adopt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Adoption {
    /// The object's storage will be the record.
    Adopted = 0,
    /// The storage is not ours, or uses another store: copy the bytes.
    Elsewhere = 1,
    /// The body is small enough to live in heap: copy the bytes.
    Small = 2,
    /// The record is not under its URI any more.
    Gone = 3,
    /// The store did not answer (in time).
    Down = 4,
    /// Descriptors, mappings or memory ran out, or an internal error.
    Failed = 5,
}

/// How a body becomes a record that others find.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Publication {
    /// Under which URI.
    pub uri: Bytes,
    /// What is appended to the body's file, behind its last byte: from there to the file's end.
    pub tail: Bytes,
    /// When the store may drop it, milliseconds since 1970; 0 is never.
    pub expires: i64,
    /// The fence of COMMIT (EXTENSIONS.md): which shard,
    pub shard: u32,
    /// and its value when the fetch began.
    pub fence: u64,
}

/// What became of [`Engine::publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Published {
    /// Others find it; the object's body is the record.
    Done = 0,
    /// The body is not in the store (in heap, of another storage, or mixed): publish a copy.
    Elsewhere = 1,
    /// The URI was deleted since the fetch began. The body stays the object's own.
    Conflict = 2,
    /// The store is full. The body stays the object's own, as it does for all that follow.
    Full = 3,
    /// The store is not connected.
    Down = 4,
    /// It did not answer in time: it may or may not be published.
    Timeout = 5,
    /// Anything else; logged by the engine.
    Failed = 6,
}

/// Told of every new ban, as varnishd encodes it (cache_ban.h), valid during the call only. Called while varnishd holds
/// its ban mutex: it must neither block nor call varnishd.
pub type OnBan = unsafe extern "C" fn(spec: Bytes);

/// Where bytes of a body are in a file.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Span {
    /// The file's descriptor, read-only; not the caller's to close.
    pub fd: c_int,
    /// How the operator wants bodies to be sent.
    pub how: How,
    /// Offset in the file of the first byte.
    pub offset: u64,
}

/// The option `zero_copy` of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum How {
    /// As is best.
    Auto = 0,
    /// By sendfile(2).
    Sendfile = 1,
    /// By splice(2), through a pipe.
    Splice = 2,
}

/// Where an object's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Place {
    /// In a storage that is not ours.
    Elsewhere = 0,
    /// In heap, all of it and for ever.
    Heap = 1,
    /// In a storage whose bodies are to be copied (`zero_copy=off`).
    Off = 2,
    /// In a file, or it may get there.
    File = 3,
}

/// How a filter that sends from files wants to be given a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Wish {
    /// There is no such filter in this delivery, or it cannot send: bytes.
    Bytes = 0,
    /// Bytes, and [`Delivery::span`].
    Both = 1,
    /// [`Delivery::span`] alone: nobody looks at the bytes. The addresses must not be read.
    Spans = 2,
    /// Bytes that nothing but system calls looks at.
    Kernel = 3,
}

/// Why bytes of a file were copied after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Copied {
    /// None were.
    None = 0,
    /// Too few to be worth it.
    Small = 1,
    /// The client speaks HTTP/2.
    Http2 = 2,
    /// The length was not known: chunked.
    Chunked = 3,
    /// Another filter changed them, or needs to see them: gzip, ESI.
    Filtered = 4,
    /// `zero_copy=off`.
    Off = 5,
    /// The kernel can't, or there was no memory.
    Other = 6,
    /// In heap, although the body is complete.
    Heap = 7,
    /// The body was still being fetched, and these bytes were not in the file yet.
    Streaming = 8,
}

impl Copied {
    /// How many there are.
    pub const COUNT: usize = 9;

    /// All, each at the index that is its number.
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

// At the index that is its number.
const _: () = {
    let mut index = 0;
    while index < Copied::COUNT {
        assert!(Copied::ALL[index] as usize == index);
        index += 1;
    }
};

/// What became of one delivery.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Delivered {
    /// Bytes that were sent from the file.
    pub sent: u64,
    /// Bytes that were copied.
    pub copied: u64,
    /// Why: the reason that stands for the most of them.
    pub why: Copied,
}

/// Asks the delivery with this `struct vdp_ctx *`, before its body is iterated. It must neither block nor unwind.
pub type OnIterate = unsafe extern "C" fn(vdc: *const c_void) -> Wish;

/// What a delivery filter needs of the engine.
#[derive(Debug)]
#[repr(C)]
pub struct Delivery {
    /// Where is the body of `oc`, which the caller references?
    pub place: unsafe extern "C" fn(oc: *const c_void) -> Place,
    /// Sets who is asked how a body shall be handed out, for ever: the function must stay loaded. Null: nobody, bytes.
    pub on_iterate: unsafe extern "C" fn(listener: Option<OnIterate>),
    /// Are these bytes part of a file? Only true while the thread is in the call (of `objiterate_f`) with which it was
    /// handed them, or bytes that they are part of. The descriptor stays open, and the file as it is, until that call
    /// returns; what the kernel still sends of it afterwards stays as it is, too.
    pub span: unsafe extern "C" fn(ptr: *const u8, len: usize, span: *mut Span) -> bool,
    /// A delivery of `oc` is over, and had a body: counts it.
    pub delivered: unsafe extern "C" fn(oc: *const c_void, delivered: *const Delivered),
    /// For the delivery of `oc` the congestion control of its connection was changed, and stays so: counts it.
    pub unpaced: unsafe extern "C" fn(oc: *const c_void),
    /// Reading the file of [`Delivery::span`] failed with `errno` (EIO if it ends too early). Called before the call returns in
    /// which that span was handed out; the object then leaves the cache.
    pub unreadable: unsafe extern "C" fn(errno: c_int),
    /// Returns true if the file of object number `object` in the store `instance` was found to be unreadable. Such a record is
    /// not adopted.
    pub is_unreadable: unsafe extern "C" fn(instance: *const [u8; 16], object: u64) -> bool,
}

/// The table as the engine exports it.
#[derive(Debug)]
#[repr(C)]
pub struct Extended {
    /// As the first engines had it. Its `size` is that of all of this.
    pub engine: Engine,
    /// For delivery without a copy.
    pub delivery: Delivery,
}

impl Extended {
    /// The part for delivery; `None`: the engine has none.
    ///
    /// # Safety
    /// `table` must be what the symbol stands for, and [`Engine::usable`].
    pub unsafe fn delivery(table: *const Engine) -> Option<&'static Delivery> {
        // SAFETY: by contract; `size` says how much of the table there is, and nobody ever writes to it.
        unsafe { ((*table).size >= size_of::<Extended>()).then(|| &(*table.cast::<Extended>()).delivery) }
    }
}

/// The table.
#[derive(Debug)]
#[repr(C)]
pub struct Engine {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of this struct, as the engine knows it.
    pub size: usize,
    /// Is this storage ours? `stv` may be null.
    pub is_ours: unsafe extern "C" fn(stv: *const c_void) -> bool,
    /// The first storage of ours that is open, or null.
    pub default_storage: unsafe extern "C" fn() -> *const c_void,
    /// Tells of the store behind a storage of ours; `false` if it is not one.
    pub store: unsafe extern "C" fn(stv: *const c_void, store: *mut Store) -> bool,
    /// A new connection to the store inside this process, which the caller owns: the client's end of a socket pair.
    /// Negative: `-errno`; `-ENOTSUP` if the store is an objmapperd.
    pub connect: unsafe extern "C" fn(stv: *const c_void) -> c_int,
    /// Announces that the next object that this thread allocates for `oc` in `stv` adopts a record, which is pinned for
    /// it. Called in the fetch, before the object is allocated and with no lock held; it may wait for the store, within
    /// its deadline. Announcing again, or [`Engine::cancel_adoption`], gives the former announcement up.
    ///
    /// Even then the object may have to do with ordinary room: without room for all of the file below the storage's
    /// limit, if its file cannot be opened, or with a filter on top that writes to the room (all but `testgunzip` and `esi`).
    /// [`Engine::adopted`] then answers 0: copy the bytes. So it does for what is asked for behind the record's last byte.
    pub adopt: unsafe extern "C" fn(stv: *const c_void, oc: *const c_void, record: *const Record) -> Adoption,
    /// Gives up what [`Engine::adopt`] announced in this thread, if no object has taken it.
    pub cancel_adoption: unsafe extern "C" fn(),
    /// If `ptr` is the room that ObjGetSpace gave for the adopted body of `oc`: how many bytes of the body are there
    /// already, at most `len`. Else 0: it is room to write to. The bytes need not be at that address, which must neither be written to
    /// nor, by anything but `testgunzip` and `esi`, be read.
    pub adopted: unsafe extern "C" fn(oc: *const c_void, ptr: *const u8, len: usize) -> usize,
    /// Publishes the complete body of `oc`, whose fetch has ended well (BOS_FINISHED) in this thread, with its boc still
    /// referenced. It may wait for the store, within its deadline.
    pub publish: unsafe extern "C" fn(oc: *const c_void, publication: *const Publication) -> Published,
    /// Sets who is told of new bans, for ever: the function must stay loaded. Null: nobody.
    pub on_ban: unsafe extern "C" fn(listener: Option<OnBan>),
}

impl Engine {
    /// Can a caller that was built with this crate use the table?
    pub fn usable(&self) -> bool {
        self.magic == MAGIC && self.version == VERSION && self.size >= size_of::<Engine>()
    }
}

// SAFETY: a table of functions and numbers; nothing in it is written after it was built.
unsafe impl Sync for Engine {}
