//! The workspace of a transaction (Varnish: `struct ws`).

use std::ffi::{c_char, c_void};

use varnishd_sys::bindings::{WS_Copy, WS_Release, WS_ReserveAll, ws};

/// The number of bytes that are free in a workspace.
///
/// # Safety
/// `ws` must be the workspace of the calling thread's transaction, with nothing reserved.
pub unsafe fn free_room(ws: *mut ws) -> usize {
    // SAFETY: by contract; what is reserved is released at once.
    unsafe {
        let free = WS_ReserveAll(ws);
        WS_Release(ws, 0);
        free as usize
    }
}

/// A NUL-terminated copy in a workspace; `None` if it has no room. `text` must not contain NUL bytes.
///
/// # Safety
/// `ws` must be the workspace of the calling thread's transaction.
pub unsafe fn copy(ws: *mut ws, text: &[u8]) -> Option<*const c_char> {
    let mut text = text.to_vec();
    text.push(0);
    let len = i32::try_from(text.len()).ok()?;
    // SAFETY: by contract; WS_Copy copies `len` bytes, or returns NULL.
    let copied = unsafe { WS_Copy(ws, text.as_ptr().cast::<c_void>(), len) };
    (!copied.is_null()).then_some(copied.cast_const().cast())
}
