//! Plain buffers that varnishd takes from a storage (Varnish: `storage/stevedore.c`), for the receive window of HTTP/2.
//!
//! A buffer is in heap, and in the storage's account, from [`allocbuf`] to [`freebuf`].

use std::ffi::c_void;
use std::ptr::null_mut;

use objmapper_engine::heap::HeapChunk;
use varnishd::boundary::infallible;
use varnishd::raw::{RawStorage, RawWorker};
use varnishd::storage::Storage;
use varnishd::worker::Worker;

use crate::BOUNDARY;
use crate::object::alloc_exactly;
use crate::storage::engine_of;

const BUFFER_MAGIC: u32 = 0x6f62_6275;

struct Buffer {
    magic: u32,
    chunk: HeapChunk,
}

/// Allocates a buffer. `private` is for [`freebuf`].
pub(crate) unsafe extern "C" fn allocbuf(
    wrk: *mut RawWorker,
    stv: *const RawStorage,
    size: usize,
    private: *mut usize,
) -> *mut c_void {
    BOUNDARY.fallible("allocbuf", null_mut(), || {
        // SAFETY: varnishd's own storage and worker.
        let (storage, wrk) = unsafe { (Storage::new(stv), Worker::new(wrk)) };
        // SAFETY: as above, of ours and open.
        let engine = unsafe { engine_of(storage) };
        if u32::try_from(size).is_err() {
            return null_mut();
        }
        let Some(chunk) = alloc_exactly(wrk, storage.lru(), engine, size) else { return null_mut() };
        let ptr = chunk.ptr().as_ptr().cast();
        let buffer = Box::into_raw(Box::new(Buffer { magic: BUFFER_MAGIC, chunk }));
        // SAFETY: `private` is the caller's own variable.
        unsafe { *private = buffer.expose_provenance() };
        ptr
    })
}

/// Frees a buffer of [`allocbuf`].
pub(crate) unsafe extern "C" fn freebuf(_wrk: *mut RawWorker, stv: *const RawStorage, private: usize) {
    infallible("freebuf", || {
        // SAFETY: varnishd's own storage, of ours and open.
        let engine = unsafe { engine_of(Storage::new(stv)) };
        let buffer = std::ptr::with_exposed_provenance_mut::<Buffer>(private);
        // SAFETY: what `allocbuf` returned, once: varnishd takes it out of the buffer's head before it calls.
        let buffer = unsafe { Box::from_raw(buffer) };
        assert!(buffer.magic == BUFFER_MAGIC, "not a buffer of ours");
        buffer.chunk.free(&engine.account);
    });
}
