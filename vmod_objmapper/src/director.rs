//! A director as varnishd knows it: how it is made, and what varnishd calls.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr::{self, null_mut};

use varnishd::boundary::Constant;
use varnishd::cast::{busyobj_of, context, director_ref};
use varnishd::fetch::with_director;
use varnishd_sys::bindings::{
    SC_TX_ERROR, VCL_BACKEND, VCL_BOOL, VCL_TIME, VDI_Http1Pipe, VDI_METHODS_MAGIC, VRT_AddDirector, VRT_Healthy,
    VSB_bcat, stream_close_t, vdi_methods, vrt_ctx, vsb,
};

use crate::BOUNDARY;
use crate::arguments::Arguments;
use crate::om::Om;
use crate::{fetch, store};

// SAFETY: varnishd only reads a director's methods.
static METHODS: Constant<vdi_methods> = unsafe {
    Constant::new(vdi_methods {
        magic: VDI_METHODS_MAGIC,
        type_: c"objmapper".as_ptr(),
        http1pipe: Some(http1pipe),
        healthy: Some(healthy),
        // None: a fetch is ours until it has failed to find a record, and `backend.list` shows a line and no tree.
        resolve: None,
        gethdrs: Some(gethdrs),
        // Asked for responses from a record only: there is no peer.
        getip: None,
        finish: Some(finish),
        // Nothing runs for one director that should rest while its VCL is cold.
        event: None,
        release: Some(release),
        destroy: Some(destroy),
        panic: Some(panic),
        list: Some(list),
    })
};

/// Makes a director of the VCL that is being loaded.
///
/// # Safety
/// `ctx` must be the context of vcl_init, `name` the name that VCL gives it.
pub(crate) unsafe fn create(ctx: *const vrt_ctx, name: &CStr, arguments: Arguments) -> Result<*mut Om, String> {
    let (l2, store) = store::open(&arguments)?;
    // SAFETY: VRT_AddDirector (cache/cache_vrt_vcl.c) in vcl_init; the table and the name live long enough. The director
    // is given its priv below, before it is handed to anybody.
    let dir = unsafe { VRT_AddDirector(ctx, METHODS.address(), null_mut(), c"%s".as_ptr(), name.as_ptr()) }.cast_mut();
    if dir.is_null() {
        return Err("varnishd takes no more directors: the VCL is being discarded".to_owned());
    }
    // SAFETY: a live director, whose vcldir has its name as varnishd's CLI shows it.
    let full_name = unsafe { CStr::from_ptr((*(*dir).vdir).cli_name) };
    let om = Box::into_raw(Box::new(Om::new(dir, (name, full_name), arguments, (l2, store))));
    // SAFETY: a live director; the box is not moved before `destroy`, which takes it off the list.
    unsafe {
        (*dir).priv_ = om.cast::<c_void>();
        Om::checked(om).enlist();
    }
    Ok(om)
}

/// # Safety
/// `dir` must be a director that varnishd calls us for.
unsafe fn om_of<'a>(dir: VCL_BACKEND) -> &'a Om {
    // SAFETY: by contract; `create` stored the private, and it lives until `destroy`.
    unsafe { Om::checked(director_ref(dir).priv_.cast::<Om>()) }
}

/// Directors before a backend, at most: who has gone through more goes round in a circle.
const MOST_DIRECTORS: u32 = 16;

thread_local! {
    /// How many directors' health depends on the answer that this thread is asked for.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// # Safety
/// `ctx` must be varnishd's.
unsafe fn is_healthy(ctx: *const vrt_ctx, om: &Om, changed: *mut VCL_TIME) -> VCL_BOOL {
    DEPTH.with(|depth| {
        if depth.get() >= MOST_DIRECTORS {
            return 0;
        }
        depth.set(depth.get() + 1);
        // SAFETY: by contract; VRT_Healthy takes any backend, and null is sick.
        let healthy = unsafe { VRT_Healthy(ctx, om.inner(), changed) };
        depth.set(depth.get() - 1);
        healthy
    })
}

unsafe extern "C" fn gethdrs(ctx: *const vrt_ctx, dir: VCL_BACKEND) -> c_int {
    BOUNDARY.fallible("gethdrs", -1, || {
        // SAFETY: varnishd's own context and director, for this call.
        let (checked, om) = unsafe { (context(ctx), om_of(dir)) };
        // SAFETY: VDI_GetHdr calls us in the fetch thread, with the context of its busyobj.
        unsafe { fetch::gethdrs(checked, om) }
    })
}

unsafe extern "C" fn finish(ctx: *const vrt_ctx, _dir: VCL_BACKEND) {
    BOUNDARY.fallible("finish", (), || {
        // SAFETY: varnishd's own context. Only responses from a record are ours to finish (others are finished by the backend
        // that made them); such a response's http_conn is memory of the workspace, with nothing behind it.
        unsafe { (*busyobj_of(context(ctx))).htc = null_mut() };
    });
}

unsafe extern "C" fn http1pipe(ctx: *const vrt_ctx, dir: VCL_BACKEND) -> stream_close_t {
    let failure = (&raw const SC_TX_ERROR).cast();
    BOUNDARY.fallible("http1pipe", failure, || {
        // SAFETY: varnishd's own context and director, for this call.
        let (checked, om) = unsafe { (context(ctx), om_of(dir)) };
        // SAFETY: VDI_Http1Pipe called us with both; our director keeps a reference to its backend.
        unsafe { with_director(busyobj_of(checked), om.inner(), |bo| VDI_Http1Pipe(checked.req, bo)) }
    })
}

unsafe extern "C" fn healthy(ctx: *const vrt_ctx, dir: VCL_BACKEND, changed: *mut VCL_TIME) -> VCL_BOOL {
    // SAFETY: varnishd's own context and director.
    BOUNDARY.fallible("healthy", 0, || unsafe { is_healthy(ctx, om_of(dir), changed) })
}

unsafe extern "C" fn release(dir: VCL_BACKEND) {
    // SAFETY: varnishd's own director.
    BOUNDARY.fallible("release", (), || unsafe { om_of(dir) }.assign(ptr::null()));
}

unsafe extern "C" fn destroy(dir: VCL_BACKEND) {
    BOUNDARY.fallible("destroy", (), || {
        // SAFETY: the last reference to our director is gone; `create` made the box.
        unsafe {
            let om = (*dir).priv_.cast::<Om>();
            Om::checked(om).delist();
            drop(Box::from_raw(om));
        }
    });
}

unsafe extern "C" fn panic(dir: VCL_BACKEND, vsb: *mut vsb) {
    BOUNDARY.fallible("panic", (), || {
        // SAFETY: varnishd's own director.
        let om = unsafe { om_of(dir) };
        let text = format!("store = {},\nstate = {},\n", om.store.0, om.l2.state());
        // SAFETY: varnishd's own vsb.
        unsafe { VSB_bcat(vsb, text.as_ptr().cast(), isize::try_from(text.len()).unwrap_or(0)) };
    });
}

unsafe extern "C" fn list(ctx: *const vrt_ctx, dir: VCL_BACKEND, vsb: *mut vsb, pflag: c_int, jflag: c_int) {
    BOUNDARY.fallible("list", (), || {
        // SAFETY: varnishd's own context and director.
        let (om, healthy) = unsafe {
            let om = om_of(dir);
            (om, is_healthy(ctx, om, null_mut()))
        };
        let (up, word) = (c_uint::from(healthy != 0), if healthy != 0 { "healthy" } else { "sick" });
        let text = match (pflag != 0, jflag != 0) {
            (true, json) => om.describe(json),
            (false, true) => format!("[{up}, 1, \"{word}\"]"),
            (false, false) => format!("{up}/1\t{word}"),
        };
        // SAFETY: varnishd's own vsb.
        unsafe { VSB_bcat(vsb, text.as_ptr().cast(), isize::try_from(text.len()).unwrap_or(0)) };
    });
}
