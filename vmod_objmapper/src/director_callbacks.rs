//! How a director is made, and what varnishd calls it for.
//!
//! create (vcl_init) → used by fetches, CLI and health checks of any thread → deleted with its VCL → destroyed with the last reference.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr::{self, null_mut};

use varnishd::boundary::Constant;
use varnishd::context::Context;
use varnishd::director::{self, DirectorCallbacks, DirectorMethods};
use varnishd::raw::{Backend, CloseReason, RawContext, RawText, VclBool, VclTime};
use varnishd::text;

use crate::BOUNDARY;
use crate::arguments::Arguments;
use crate::director::Director;
use crate::{fetch, store};

// SAFETY: varnishd only reads a director's methods.
static METHODS: Constant<DirectorMethods> = unsafe {
    Constant::new(
        DirectorCallbacks { get_response, finish, pipe, healthy, release, destroy, panic, list }.table(c"objmapper"),
    )
};

/// Makes a director of the VCL that is being loaded.
///
/// # Safety
/// `ctx` must be the context of vcl_init, `name` the name that VCL gives it.
pub(crate) unsafe fn create(ctx: Context<'_>, name: &CStr, arguments: Arguments) -> Result<*mut Director, String> {
    let l2 = store::open(&arguments)?;
    // SAFETY: by contract. The director is given its private below, before it is passed on.
    let dir = unsafe { director::create(ctx, &METHODS, name) }
        .ok_or("varnishd takes no more directors: the VCL is being discarded")?;
    // SAFETY: a live director of ours.
    let full_name = unsafe { director::full_name(dir) };
    let ours = Box::into_raw(Box::new(Director::new(dir, (name, full_name), arguments, l2)));
    // SAFETY: a new director; the box is not moved before `destroy`, which takes it off the list.
    unsafe {
        director::set_private(dir, ours.cast::<c_void>());
        Director::checked(ours).enlist();
    }
    Ok(ours)
}

/// # Safety
/// `dir` must be a director that varnishd calls us for.
unsafe fn director_of<'a>(dir: Backend) -> &'a Director {
    // SAFETY: by contract; `create` stored the private, and it lives until `destroy`.
    unsafe { Director::checked(director::private(dir).cast::<Director>()) }
}

/// The number of directors before a backend, at most: a longer chain goes round in a circle.
const MAX_DIRECTORS: u32 = 16;

thread_local! {
    /// The number of directors whose health depends on the answer that this thread is asked for.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// # Safety
/// `ctx` and `changed` must be varnishd's.
unsafe fn is_healthy(ctx: *const RawContext, ours: &Director, changed: *mut VclTime) -> VclBool {
    DEPTH.with(|depth| {
        if depth.get() >= MAX_DIRECTORS {
            return 0;
        }
        depth.set(depth.get() + 1);
        // SAFETY: by contract; our director keeps a reference to its backend.
        let healthy = unsafe { director::is_healthy(ctx, ours.inner(), changed) };
        depth.set(depth.get() - 1);
        healthy
    })
}

unsafe extern "C" fn get_response(ctx: *const RawContext, dir: Backend) -> c_int {
    BOUNDARY.fallible("get_response", -1, || {
        // SAFETY: varnishd's own context and director, for this call, in the fetch's thread.
        unsafe { if fetch::get_response(Context::new(ctx), director_of(dir)) { 0 } else { -1 } }
    })
}

unsafe extern "C" fn finish(ctx: *const RawContext, _dir: Backend) {
    BOUNDARY.fallible("finish", (), || {
        // SAFETY: varnishd's own context. Only responses from a record are ours to finish: others are finished by the backend
        // that made them.
        unsafe {
            if let Some(bo) = Context::new(ctx).fetch() {
                bo.clear_connection();
            }
        }
    });
}

unsafe extern "C" fn pipe(ctx: *const RawContext, dir: Backend) -> CloseReason {
    let failure = director::close_after_error();
    BOUNDARY.fallible("pipe", failure, || {
        // SAFETY: varnishd's own context and director, for this call; our director keeps a reference to its backend.
        unsafe {
            let ctx = Context::new(ctx);
            ctx.fetch().map_or(failure, |bo| bo.pipe(ctx, director_of(dir).inner()))
        }
    })
}

unsafe extern "C" fn healthy(ctx: *const RawContext, dir: Backend, changed: *mut VclTime) -> VclBool {
    // SAFETY: varnishd's own context and director.
    BOUNDARY.fallible("healthy", 0, || unsafe { is_healthy(ctx, director_of(dir), changed) })
}

unsafe extern "C" fn release(dir: Backend) {
    // SAFETY: varnishd's own director.
    BOUNDARY.fallible("release", (), || unsafe { director_of(dir) }.assign(ptr::null()));
}

unsafe extern "C" fn destroy(dir: Backend) {
    BOUNDARY.fallible("destroy", (), || {
        // SAFETY: the last reference to our director is gone; `create` made the box.
        unsafe {
            let ours = director::private(dir).cast::<Director>();
            Director::checked(ours).delist();
            drop(Box::from_raw(ours));
        }
    });
}

unsafe extern "C" fn panic(dir: Backend, to: *mut RawText) {
    BOUNDARY.fallible("panic", (), || {
        // SAFETY: varnishd's own director and text.
        unsafe {
            let ours = director_of(dir);
            text::append(to, &format!("store = {},\nstate = {},\n", ours.l2.key.0, ours.l2.state()));
        }
    });
}

unsafe extern "C" fn list(ctx: *const RawContext, dir: Backend, to: *mut RawText, pflag: c_int, jflag: c_int) {
    BOUNDARY.fallible("list", (), || {
        // SAFETY: varnishd's own context and director.
        let (ours, healthy) = unsafe {
            let ours = director_of(dir);
            (ours, is_healthy(ctx, ours, null_mut()))
        };
        let (up, word) = (c_uint::from(healthy != 0), if healthy != 0 { "healthy" } else { "sick" });
        let line = match (pflag != 0, jflag != 0) {
            (true, json) => ours.describe(json),
            (false, true) => format!("[{up}, 1, \"{word}\"]"),
            (false, false) => format!("{up}/1\t{word}"),
        };
        // SAFETY: varnishd's own text.
        unsafe { text::append(to, &line) };
    });
}
