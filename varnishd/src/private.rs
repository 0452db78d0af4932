//! What a library keeps with a task (a client request or a fetch) or with a VCL: varnishd's private pointers (`PRIV_TASK`,
//! `PRIV_VCL`), each with one type.
//!
//! The end of a fetch's task is the end of the fetch: its object is complete and its boc still referenced.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;

use varnishd_sys::bindings::{VMOD_PRIV_METHODS_MAGIC, VRT_priv_task, VRT_priv_task_get, vmod_priv_methods};

use crate::boundary::Boundary;
use crate::context::Context;
use crate::raw::{RawContext, RawPrivate};

/// A value that is kept.
pub trait Private: Sized + 'static {
    /// What varnishd's panic message calls it.
    const NAME: &'static CStr;

    /// Returns the boundary of the library.
    fn boundary() -> &'static Boundary;

    /// Called when the task or the VCL ends, in the task's thread or the CLI thread.
    fn end(self: Box<Self>, ctx: Option<Context<'_>>) {
        let _ = ctx;
    }
}

/// The workspace has no room for varnishd's part of a private.
#[derive(Debug, Clone, Copy)]
pub struct NoRoom;

/// The key of a value, which must be a `static`: its address is the value's name.
pub struct Key<T: Private> {
    methods: vmod_priv_methods,
    value: PhantomData<fn() -> T>,
}

// SAFETY: varnishd only reads the methods, which are a name and a function.
unsafe impl<T: Private> Sync for Key<T> {}

unsafe extern "C" fn fini<T: Private>(ctx: *const RawContext, value: *mut c_void) {
    T::boundary().fallible("private", (), || {
        // SAFETY: `Key::store` leaked it, and varnishd calls this once, with its own context or none.
        unsafe { Box::from_raw(value.cast::<T>()).end(Context::at(ctx)) };
    });
}

impl<T: Private> Key<T> {
    /// Returns a key.
    #[must_use]
    pub const fn new() -> Key<T> {
        let methods =
            vmod_priv_methods { magic: VMOD_PRIV_METHODS_MAGIC, type_: T::NAME.as_ptr(), fini: Some(fini::<T>) };
        Key { methods, value: PhantomData }
    }

    fn name(&'static self) -> *const c_void {
        (&raw const self.methods).cast()
    }

    /// Stores a value. Returns the one that was there.
    ///
    /// # Safety
    /// `slot` must be varnishd's for this key, which the calling thread alone uses.
    unsafe fn store(&'static self, slot: *mut RawPrivate, value: Box<T>) -> Option<Box<T>> {
        // SAFETY: by contract; what is there was stored here.
        unsafe {
            let former = std::mem::replace(&mut (*slot).priv_, Box::into_raw(value).cast());
            (*slot).methods = &raw const self.methods;
            (!former.is_null()).then(|| Box::from_raw(former.cast::<T>()))
        }
    }

    /// Returns the value of the task of `ctx`, which is made if there is none.
    ///
    /// # Errors
    /// The workspace is full.
    ///
    /// # Safety
    /// There must be no other reference to the value while this one is used.
    pub unsafe fn of_task<'a>(&'static self, ctx: Context<'a>) -> Result<&'a mut T, NoRoom>
    where
        T: Default,
    {
        // SAFETY: the calling thread's context; the slot is this task's.
        unsafe {
            let slot = VRT_priv_task(ctx.as_ptr(), self.name());
            if slot.is_null() {
                return Err(NoRoom);
            }
            Ok(self.of_slot(slot))
        }
    }

    /// Returns the value of the task of `ctx`, if it has one.
    ///
    /// # Safety
    /// As for [`Key::of_task`].
    pub unsafe fn of_task_if_any<'a>(&'static self, ctx: Context<'a>) -> Option<&'a mut T> {
        // SAFETY: as in `of_task`.
        unsafe { VRT_priv_task_get(ctx.as_ptr(), self.name()).as_ref()?.priv_.cast::<T>().as_mut() }
    }

    /// Sets the value of the task of `ctx`, and drops the one that was there.
    ///
    /// # Errors
    /// The workspace is full: the value is dropped.
    ///
    /// # Safety
    /// As for [`Key::of_task`].
    pub unsafe fn set_of_task(&'static self, ctx: Context<'_>, value: T) -> Result<(), NoRoom> {
        // SAFETY: as in `of_task`.
        unsafe {
            let slot = VRT_priv_task(ctx.as_ptr(), self.name());
            if slot.is_null() {
                return Err(NoRoom);
            }
            drop(self.store(slot, Box::new(value)));
        }
        Ok(())
    }

    /// Returns the value in a slot that varnishd called with, which is made if there is none.
    ///
    /// # Safety
    /// `slot` must be varnishd's for this key. There must be no other reference to the value while this one is used.
    pub unsafe fn of_slot<'a>(&'static self, slot: *mut RawPrivate) -> &'a mut T
    where
        T: Default,
    {
        // SAFETY: by contract; what is there was stored here.
        unsafe {
            if (*slot).priv_.is_null() {
                self.store(slot, Box::default());
            }
            &mut *(*slot).priv_.cast::<T>()
        }
    }

    /// Returns the value in a slot that varnishd called with, if it has one.
    ///
    /// # Safety
    /// `slot` must be varnishd's for this key. The value must not be written to while the reference is used.
    pub unsafe fn of_slot_if_any<'a>(&'static self, slot: *const RawPrivate) -> Option<&'a T> {
        // SAFETY: by contract.
        unsafe { (*slot).priv_.cast::<T>().as_ref() }
    }
}

impl<T: Private> Default for Key<T> {
    fn default() -> Key<T> {
        Key::new()
    }
}
