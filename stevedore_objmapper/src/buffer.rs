//! Plain buffers that varnishd takes from a storage (Varnish: `STV_AllocBuf`, for the receive window of HTTP/2).

use std::ffi::c_void;
use std::ptr::null_mut;

use objmapper_engine::heap::HeapChunk;
use varnishd::boundary::infallible;
use varnishd::cast::stevedore_ref;
use varnishd_sys::stevedore::Stevedore;
use varnishd_sys::worker;

use crate::BOUNDARY;
use crate::object::alloc_exactly;
use crate::storage::engine_of;

const BUFFER_MAGIC: u32 = 0x6f62_6275;

struct Buffer {
    magic: u32,
    chunk: HeapChunk,
}

pub(crate) unsafe extern "C" fn allocbuf(
    wrk: *mut worker,
    stv: *const Stevedore,
    size: usize,
    ppriv: *mut usize,
) -> *mut c_void {
    BOUNDARY.fallible("allocbuf", null_mut(), || {
        // SAFETY: varnishd hands us its own stevedore.
        let (checked, engine) = unsafe { (stevedore_ref(stv), engine_of(stv)) };
        if u32::try_from(size).is_err() {
            return null_mut();
        }
        // SAFETY: `wrk` is varnishd's.
        let Some(chunk) = (unsafe { alloc_exactly(wrk, checked, engine, size) }) else { return null_mut() };
        let ptr = chunk.ptr().as_ptr().cast();
        let buffer = Box::into_raw(Box::new(Buffer { magic: BUFFER_MAGIC, chunk }));
        // SAFETY: `ppriv` is STV_AllocBuf's own variable.
        unsafe { *ppriv = buffer.expose_provenance() };
        ptr
    })
}

pub(crate) unsafe extern "C" fn freebuf(_wrk: *mut worker, stv: *const Stevedore, priv_: usize) {
    infallible("freebuf", || {
        // SAFETY: varnishd hands us its own stevedore.
        let engine = unsafe { engine_of(stv) };
        let buffer = std::ptr::with_exposed_provenance_mut::<Buffer>(priv_);
        // SAFETY: what `allocbuf` returned, once (STV_FreeBuf takes it out of the buffer's head before it calls).
        let buffer = unsafe { Box::from_raw(buffer) };
        assert!(buffer.magic == BUFFER_MAGIC, "not a buffer of ours");
        buffer.chunk.free(&engine.account);
    });
}
