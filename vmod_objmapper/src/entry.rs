//! What VCL calls: the functions that `vmod_objmapper.vcc` declares. `ffi.rs` compares their types with it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use varnishd::boundary::{self, Constant};
use varnishd::cast::{busyobj_of, context};
use varnishd::esi;
use varnishd::http::View;
use varnishd::text::bytes;
use varnishd::vsl;
use varnishd::workspace;
use varnishd_sys::bindings::{
    VCL_BACKEND, VCL_BOOL, VCL_STRING, VMOD_PRIV_METHODS_MAGIC, busyobj, vcl_event_e, vmod_priv, vmod_priv_methods,
    vrt_ctx,
};

use crate::BOUNDARY;
use crate::arguments::{self, Arguments, DEFAULT_PREFIX, Raw};
use crate::ffi::{VCL_MET_HASH, VCL_MET_RECV, vmod_objmapper_director};
use crate::om::Om;
use crate::publish::Work;
use crate::transaction::{self, Status};
use crate::{deliver_place, director, fetch, refresh};

/// What a VCL has beyond its directors: the private of PRIV_VCL.
#[derive(Default)]
struct Vcl {
    prefix: Option<Vec<u8>>,
    /// In the order in which they were made. They live as long as the VCL.
    directors: Vec<*mut Om>,
}

// SAFETY: varnishd only reads a private's methods.
static VCL_METHODS: Constant<vmod_priv_methods> = unsafe {
    Constant::new(vmod_priv_methods {
        magic: VMOD_PRIV_METHODS_MAGIC,
        type_: c"objmapper VCL".as_ptr(),
        fini: Some(vcl_fini),
    })
};

unsafe extern "C" fn vcl_fini(_ctx: *const vrt_ctx, vcl: *mut c_void) {
    // SAFETY: `vcl_mut` leaked it, and varnishd calls this once.
    BOUNDARY.fallible("vcl_fini", (), || drop(unsafe { Box::from_raw(vcl.cast::<Vcl>()) }));
}

/// # Safety
/// `slot` must be the PRIV_VCL that varnishd called with, in vcl_init, where one thread alone uses the VCL.
unsafe fn vcl_mut<'a>(slot: *mut vmod_priv) -> &'a mut Vcl {
    // SAFETY: by contract.
    unsafe {
        if (*slot).priv_.is_null() {
            (*slot).priv_ = Box::into_raw(Box::<Vcl>::default()).cast();
            (*slot).methods = VCL_METHODS.address();
        }
        &mut *(*slot).priv_.cast::<Vcl>()
    }
}

/// # Safety
/// `slot` must be the PRIV_VCL that varnishd called with; after vcl_init nobody writes to it.
unsafe fn directors<'a>(slot: *const vmod_priv) -> impl Iterator<Item = &'a Om> {
    // SAFETY: by contract.
    let vcl = unsafe { (*slot).priv_.cast::<Vcl>().as_ref() };
    // SAFETY: a director lives as long as its VCL.
    vcl.into_iter().flat_map(|vcl| &vcl.directors).map(|om| unsafe { Om::checked(*om) })
}

/// # Safety
/// `object` must be what `vmod_director__init` made.
unsafe fn om<'a>(object: *const vmod_objmapper_director) -> &'a Om {
    // SAFETY: by contract; VCL's code does not use it after `vmod_director__fini`.
    unsafe { Om::checked(object.cast()) }
}

/// The key of the task's request, and its text.
///
/// # Safety
/// `ctx` must be varnishd's, of a client request or a fetch.
unsafe fn key(ctx: &vrt_ctx, om: &Om) -> Result<objmapper_records::Key, String> {
    // SAFETY: by contract.
    unsafe {
        // In vcl_pipe there are both, and the fetch's request is none that could have a record.
        if ctx.req.is_null() {
            let bo: *mut busyobj = busyobj_of(ctx);
            if bo.is_null() {
                return Err("there is no request here".to_owned());
            }
            let uri = transaction::with_known(ctx, Some(om), |turn| turn.uri.clone()).flatten();
            return Ok(fetch::key(om, bo, uri.as_deref()));
        }
        // Before vcl_hash has run, the digest is that of the connection's last request.
        let hashed = ctx.method & (VCL_MET_RECV | VCL_MET_HASH) == 0;
        Ok(fetch::key_of(om, View::new((*ctx.req).http), hashed.then_some(&(*ctx.req).digest)))
    }
}

/// # Safety
/// As for [`key`].
unsafe fn purge(ctx: &vrt_ctx, om: &Om, uri: &[u8]) -> Result<bool, String> {
    let key = if uri.is_empty() {
        // SAFETY: by contract.
        unsafe { key(ctx, om) }?
    } else {
        om.l2.key_from_text(arguments::uri(uri)?)
    };
    let (purged, text) = match om.l2.purge(&key, om.counters()) {
        Ok(true) => (true, "purged".to_owned()),
        Ok(false) => (true, "purged (absent)".to_owned()),
        Err(outage) => (false, format!("not purged: {outage}")),
    };
    // SAFETY: the task's own log.
    unsafe { vsl::decision(ctx.vsl, &format!("{} {text} {}", om.name, key.text().escape_ascii())) };
    Ok(purged)
}

fn status(status: Option<Status>) -> VCL_STRING {
    status.map_or(c"".as_ptr(), |status| status.text().as_ptr())
}

/// What happens to a VCL that imports us.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_event(ctx: *const vrt_ctx, _vcl: *mut vmod_priv, event: vcl_event_e) -> c_int {
    // SAFETY: varnishd's own arguments, in the CLI thread.
    BOUNDARY.fallible("event", 1, || unsafe { deliver_place::event(ctx, event) })
}

/// `objmapper.version()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_version(_ctx: *const vrt_ctx) -> VCL_STRING {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("VARNISH_NAME"), ")\0").as_ptr().cast()
}

/// `objmapper.set_uri_prefix()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_set_uri_prefix(ctx: *const vrt_ctx, vcl: *mut vmod_priv, prefix: VCL_STRING) {
    // SAFETY: varnishd's own arguments, in vcl_init.
    unsafe {
        boundary::vcl(ctx, "objmapper.set_uri_prefix()", (), || {
            let vcl = vcl_mut(vcl);
            if !vcl.directors.is_empty() {
                return Err("there is a director already: call it before the first objmapper.director()".to_owned());
            }
            vcl.prefix = Some(arguments::prefix("prefix", bytes(prefix))?);
            Ok(())
        });
    }
}

/// `objmapper.restore()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_restore(ctx: *const vrt_ctx, _vcl: *mut vmod_priv) -> VCL_BOOL {
    // SAFETY: varnishd's own arguments, in vcl_backend_response, where the fetch alone reads and writes the object's times.
    unsafe {
        boundary::vcl(ctx, "objmapper.restore()", 0, || {
            let ctx = context(ctx);
            let bo = busyobj_of(ctx);
            let oc = (*bo).fetch_objcore;
            let restored = transaction::with_known(ctx, None, |turn| match &turn.work {
                Work::Serving(serving) => {
                    let head = &serving.hit.head;
                    if esi::is_esi(head.flags) {
                        (*bo).set_do_esi(1);
                    }
                    if serving.renewed {
                        return false;
                    }
                    (*oc).t_origin = head.t_origin;
                    ((*oc).ttl, (*oc).grace, (*oc).keep) = (head.ttl, head.grace, head.keep);
                    true
                }
                _ => false,
            });
            Ok(VCL_BOOL::from(restored.unwrap_or(false)))
        })
    }
}

/// `objmapper.status()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_status(ctx: *const vrt_ctx, _vcl: *mut vmod_priv) -> VCL_STRING {
    // SAFETY: varnishd's own arguments, in a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.status()", null(), || {
            Ok(status(transaction::with_known(context(ctx), None, |turn| turn.status).flatten()))
        })
    }
}

/// `objmapper.refresh()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_refresh(ctx: *const vrt_ctx) {
    // SAFETY: varnishd's own arguments, in vcl_miss.
    unsafe { boundary::vcl(ctx, "objmapper.refresh()", (), || refresh::request(context(ctx))) };
}

/// `objmapper.deliver()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_deliver(ctx: *const vrt_ctx) {
    // SAFETY: varnishd's own arguments, in vcl_deliver.
    unsafe {
        boundary::vcl(ctx, "objmapper.deliver()", (), || {
            deliver_place::deliver(context(ctx));
            Ok(())
        });
    }
}

/// `objmapper.purge()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_purge(ctx: *const vrt_ctx, vcl: *mut vmod_priv) -> VCL_BOOL {
    // SAFETY: varnishd's own arguments, in a client request or a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.purge()", 0, || {
            let ctx = context(ctx);
            let mut all = true;
            for om in directors(vcl) {
                all &= purge(ctx, om, b"")?;
            }
            Ok(VCL_BOOL::from(all))
        })
    }
}

/// `new om = objmapper.director()`
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe extern "C" fn vmod_director__init(
    ctx: *const vrt_ctx,
    object: *mut *mut vmod_objmapper_director,
    name: *const c_char,
    vcl: *mut vmod_priv,
    socket: VCL_STRING,
    prefix: VCL_STRING,
    deadline: f64,
    wait: f64,
    hold: f64,
    uncacheable: f64,
    publish: VCL_BOOL,
) {
    // SAFETY: varnishd's own arguments, in vcl_init.
    unsafe {
        boundary::vcl(ctx, "objmapper.director()", (), || {
            let vcl = vcl_mut(vcl);
            let prefix_of_vcl = vcl.prefix.as_deref().unwrap_or(DEFAULT_PREFIX);
            let (socket, prefix, publish) = (bytes(socket), bytes(prefix), publish != 0);
            let raw = Raw { socket, prefix, deadline, wait, hold, uncacheable, publish };
            let name = CStr::from_ptr(name);
            let named = |error| format!("{}: {error}", name.to_string_lossy());
            let arguments = Arguments::parse(&raw, prefix_of_vcl).map_err(named)?;
            let om = director::create(ctx, name, arguments).map_err(named)?;
            vcl.directors.push(om);
            *object = om.cast();
            Ok(())
        });
    }
}

/// The VCL is discarded.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director__fini(object: *mut *mut vmod_objmapper_director) {
    BOUNDARY.fallible("director", (), || {
        // SAFETY: varnishd's variable, with what `vmod_director__init` stored there, if it did.
        unsafe {
            let director = std::mem::replace(&mut *object, null_mut());
            if !director.is_null() {
                om(director).delete();
            }
        }
    });
}

/// `om.set_backend()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_set_backend(
    ctx: *const vrt_ctx,
    object: *mut vmod_objmapper_director,
    backend: VCL_BACKEND,
) {
    // SAFETY: varnishd's own arguments, in vcl_init.
    unsafe { boundary::vcl(ctx, "objmapper.set_backend()", (), || om(object).set_inner(backend)) };
}

/// `om.backend()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_backend(
    ctx: *const vrt_ctx,
    object: *mut vmod_objmapper_director,
) -> VCL_BACKEND {
    // SAFETY: varnishd's own arguments.
    unsafe { boundary::vcl(ctx, "objmapper.backend()", null(), || Ok(om(object).director())) }
}

/// `om.set_uri()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_set_uri(
    ctx: *const vrt_ctx,
    object: *mut vmod_objmapper_director,
    uri: VCL_STRING,
) {
    // SAFETY: varnishd's own arguments, in vcl_backend_fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.set_uri()", (), || {
            let uri = arguments::uri(bytes(uri))?.to_vec();
            transaction::with(context(ctx), om(object), |turn| turn.uri = Some(uri))
        });
    }
}

/// `om.uri()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_uri(
    ctx: *const vrt_ctx,
    object: *mut vmod_objmapper_director,
) -> VCL_STRING {
    // SAFETY: varnishd's own arguments, in a client request or a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.uri()", null(), || {
            let ctx = context(ctx);
            let key = key(ctx, om(object))?;
            workspace::copy(ctx.ws, key.text()).ok_or_else(|| "the workspace is full".to_owned())
        })
    }
}

/// `om.purge()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_purge(
    ctx: *const vrt_ctx,
    object: *mut vmod_objmapper_director,
    uri: VCL_STRING,
) -> VCL_BOOL {
    // SAFETY: varnishd's own arguments, in a client request or a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.purge()", 0, || purge(context(ctx), om(object), bytes(uri)).map(VCL_BOOL::from))
    }
}

/// `om.publish()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_publish(
    ctx: *const vrt_ctx,
    object: *mut vmod_objmapper_director,
    publish: VCL_BOOL,
) {
    // SAFETY: varnishd's own arguments, in vcl_backend_response.
    unsafe {
        boundary::vcl(ctx, "objmapper.publish()", (), || {
            // A response that this director did not make is not published.
            transaction::with_known(context(ctx), Some(om(object)), |turn| {
                turn.work.pending().map(|pending| pending.set_publish(publish != 0))
            });
            Ok(())
        });
    }
}

/// `om.status()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_status(
    ctx: *const vrt_ctx,
    object: *mut vmod_objmapper_director,
) -> VCL_STRING {
    // SAFETY: varnishd's own arguments, in a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.status()", null(), || {
            Ok(status(transaction::with_known(context(ctx), Some(om(object)), |turn| turn.status).flatten()))
        })
    }
}
