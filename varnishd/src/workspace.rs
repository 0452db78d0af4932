//! The workspace of a transaction (Varnish: `struct ws`): memory that lives as long as the transaction.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;

use varnishd_sys::bindings::{WS_Alloc, WS_Copy, WS_Release, WS_ReserveAll, ws};

/// The workspace of the calling thread's transaction, for `'a`, with nothing reserved.
#[derive(Clone, Copy)]
pub struct Workspace<'a>(*mut ws, PhantomData<&'a ws>);

impl<'a> Workspace<'a> {
    /// Returns the workspace at an address.
    ///
    /// # Safety
    /// `ws` must be the workspace of the calling thread's transaction for `'a`, with nothing reserved.
    pub(crate) unsafe fn new(ws: *mut ws) -> Workspace<'a> {
        Workspace(ws, PhantomData)
    }

    pub(crate) fn as_ptr(self) -> *mut ws {
        self.0
    }

    /// Returns the number of bytes that are free.
    pub fn free_room(self) -> usize {
        // SAFETY: by contract of `new`; what is reserved is released at once.
        unsafe {
            let free = WS_ReserveAll(self.0);
            WS_Release(self.0, 0);
            free as usize
        }
    }

    /// Returns a NUL-terminated copy; `None` if there is no room. `text` must not contain NUL bytes.
    pub fn copy(self, text: &[u8]) -> Option<*const c_char> {
        let mut text = text.to_vec();
        text.push(0);
        let len = i32::try_from(text.len()).ok()?;
        // SAFETY: by contract of `new`; `len` bytes are copied, or the result is null.
        let copied = unsafe { WS_Copy(self.0, text.as_ptr().cast::<c_void>(), len) };
        (!copied.is_null()).then_some(copied.cast_const().cast())
    }

    /// Returns a value's place; `None` if there is no room, which varnishd notes as an overflow. The value is not dropped.
    pub fn place<T: Copy>(self, value: T) -> Option<*mut T> {
        // Memory of a workspace is aligned to a pointer.
        const { assert!(align_of::<T>() <= align_of::<usize>()) };
        let len = u32::try_from(size_of::<T>()).ok()?;
        // SAFETY: by contract of `new`; the memory is as large as the value, and nothing else's.
        unsafe {
            let place = WS_Alloc(self.0, len).cast::<T>();
            if place.is_null() {
                return None;
            }
            place.write(value);
            Some(place)
        }
    }
}
