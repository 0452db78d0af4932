//! The functions that VCL calls, which `vmod_objmapper.vcc` declares. `ffi.rs` compares their types with it.
//!
//! Each is named for what VCL calls, and documented there. An error is a failure of the VCL.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::{null, null_mut};

use varnishd::boundary::{self, Boundary};
use varnishd::clock;
use varnishd::context::Context;
use varnishd::esi;
use varnishd::objcore::Lifetime;
use varnishd::private::{Key, Private};
use varnishd::raw::{Backend, RawContext, RawPrivate, VclBool, VclEvent, VclString};
use varnishd::text::bytes;

use crate::BOUNDARY;
use crate::arguments::{self, Arguments, DEFAULT_PREFIX, Raw};
use crate::delivery::placement;
use crate::director::Director;
use crate::ffi::vmod_objmapper_director;
use crate::publish::Answer;
use crate::transaction::{self, Status};
use crate::wishes::{self, Wish};
use crate::{director_callbacks, fetch, invalidate};

/// What a VCL has beyond its directors. Written in vcl_init, where one thread alone uses the VCL, and only read later.
#[derive(Default)]
struct Vcl {
    prefix: Option<Vec<u8>>,
    /// In the order in which they were made. They live as long as the VCL.
    directors: Vec<*mut Director>,
}

impl Private for Vcl {
    const NAME: &'static CStr = c"objmapper VCL";

    fn boundary() -> &'static Boundary {
        &BOUNDARY
    }
}

static VCL: Key<Vcl> = Key::new();

/// # Safety
/// `slot` must be the VCL's private that varnishd called with.
unsafe fn directors<'a>(slot: *const RawPrivate) -> impl Iterator<Item = &'a Director> {
    // SAFETY: by contract; after vcl_init it is only read.
    let vcl = unsafe { VCL.of_slot_if_any(slot) };
    // SAFETY: a director lives as long as its VCL.
    vcl.into_iter().flat_map(|vcl| &vcl.directors).map(|director| unsafe { Director::checked(*director) })
}

/// # Safety
/// `object` must be what `vmod_director__init` made.
unsafe fn director<'a>(object: *const vmod_objmapper_director) -> &'a Director {
    // SAFETY: by contract; VCL's code does not use it after `vmod_director__fini`.
    unsafe { Director::checked(object.cast()) }
}

/// Returns the key of the task's request.
///
/// # Safety
/// `ctx` must be of a client request or a fetch.
unsafe fn key(ctx: Context<'_>, director: &Director) -> Result<objmapper_records::Key, String> {
    // In vcl_pipe there are both, and the fetch's request is none that could have a record.
    if let Some(request) = ctx.request() {
        return Ok(fetch::key_of(director, request.head(), ctx.is_hashed().then(|| request.digest())));
    }
    let bo = ctx.fetch().ok_or("there is no request here")?;
    // SAFETY: not lent again by the call.
    let uri = unsafe { transaction::with_known(ctx, Some(director), |state| state.uri.clone()) }.flatten();
    Ok(fetch::key(director, bo, uri.as_deref()))
}

/// # Safety
/// As for [`key`].
unsafe fn purge(ctx: Context<'_>, director: &Director, uri: &[u8], soft: bool) -> Result<bool, String> {
    let key = if uri.is_empty() {
        // SAFETY: by contract.
        unsafe { key(ctx, director) }?
    } else {
        director.l2.key_from_text(arguments::uri(uri)?)
    };
    // SAFETY: by contract.
    Ok(unsafe { invalidate::key(ctx, director, &key, soft) })
}

fn status(status: Option<Status>) -> VclString {
    status.map_or(c"".as_ptr(), |status| status.text().as_ptr())
}

/// An event in the life of a VCL that imports us.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_event(ctx: *const RawContext, _vcl: *mut RawPrivate, event: VclEvent) -> c_int {
    // SAFETY: varnishd's own arguments, in the CLI thread.
    BOUNDARY.fallible("event", 1, || unsafe { placement::event(Context::new(ctx), event.into()) })
}

/// `objmapper.version()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_version(_ctx: *const RawContext) -> VclString {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("VARNISH_NAME"), ")\0").as_ptr().cast()
}

/// `objmapper.set_uri_prefix()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_set_uri_prefix(ctx: *const RawContext, vcl: *mut RawPrivate, prefix: VclString) {
    // SAFETY: varnishd's own arguments, in vcl_init.
    unsafe {
        boundary::vcl(ctx, "objmapper.set_uri_prefix()", (), || {
            let vcl = VCL.of_slot(vcl);
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
pub(crate) unsafe extern "C" fn vmod_restore(ctx: *const RawContext, _vcl: *mut RawPrivate) -> VclBool {
    // SAFETY: varnishd's own arguments, in vcl_backend_response, where the fetch alone reads and writes the object's times.
    unsafe {
        boundary::vcl(ctx, "objmapper.restore()", 0, || {
            let ctx = Context::new(ctx);
            let bo = ctx.fetch().ok_or("there is no fetch here")?;
            let restored = transaction::with_known(ctx, None, |state| match &state.answer {
                Answer::Record(serving) => {
                    let head = &serving.hit.head;
                    if esi::is_esi(head.flags) {
                        bo.set_esi();
                    }
                    if serving.renewed {
                        return false;
                    }
                    let (origin, ttl, grace, keep) = (head.t_origin, head.ttl, head.grace, head.keep);
                    bo.set_lifetime(Lifetime { origin, ttl, grace, keep });
                    true
                }
                _ => false,
            });
            Ok(VclBool::from(restored.unwrap_or(false)))
        })
    }
}

/// `objmapper.status()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_status(ctx: *const RawContext, _vcl: *mut RawPrivate) -> VclString {
    // SAFETY: varnishd's own arguments, in a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.status()", null(), || {
            Ok(status(transaction::with_known(Context::new(ctx), None, |state| state.status).flatten()))
        })
    }
}

/// `objmapper.refresh()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_refresh(ctx: *const RawContext) {
    // SAFETY: varnishd's own arguments, in vcl_miss.
    unsafe { boundary::vcl(ctx, "objmapper.refresh()", (), || wishes::request(Context::new(ctx), Wish::Refresh)) };
}

/// `objmapper.ignore_busy()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_ignore_busy(ctx: *const RawContext) {
    // SAFETY: varnishd's own arguments, in vcl_miss.
    unsafe {
        boundary::vcl(ctx, "objmapper.ignore_busy()", (), || wishes::request(Context::new(ctx), Wish::IgnoreBusy));
    };
}

/// `objmapper.is_fetch()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_is_fetch(ctx: *const RawContext, vcl: *mut RawPrivate) -> VclBool {
    // SAFETY: varnishd's own arguments, in a client request.
    unsafe {
        boundary::vcl(ctx, "objmapper.is_fetch()", 0, || {
            let Some(request) = Context::new(ctx).request().map(|request| request.received()) else { return Ok(0) };
            let (Some(token), Some(host)) = (request.header(fetch::FETCH_HEADER.name()), request.header(b"Host"))
            else {
                return Ok(0);
            };
            let is_fetch = |director: &Director| director.l2.is_fetch(token, host, request.url(), clock::now());
            Ok(VclBool::from(directors(vcl).any(is_fetch)))
        })
    }
}

/// `objmapper.deliver()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_deliver(ctx: *const RawContext) {
    // SAFETY: varnishd's own arguments, in vcl_deliver.
    unsafe {
        boundary::vcl(ctx, "objmapper.deliver()", (), || {
            placement::deliver(Context::new(ctx));
            Ok(())
        });
    }
}

/// `objmapper.purge()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_purge(ctx: *const RawContext, vcl: *mut RawPrivate, soft: VclBool) -> VclBool {
    // SAFETY: varnishd's own arguments, in a client request or a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.purge()", 0, || {
            let ctx = Context::new(ctx);
            let mut all = true;
            for director in directors(vcl) {
                all &= purge(ctx, director, b"", soft != 0)?;
            }
            Ok(VclBool::from(all))
        })
    }
}

/// `objmapper.purge_tags()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_purge_tags(
    ctx: *const RawContext,
    vcl: *mut RawPrivate,
    tags: VclString,
    soft: VclBool,
) -> i64 {
    // SAFETY: varnishd's own arguments, in a client request or a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.purge_tags()", -1, || {
            invalidate::tags(Context::new(ctx), directors(vcl), bytes(tags), soft != 0)
        })
    }
}

/// `new om = objmapper.director()`
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe extern "C" fn vmod_director__init(
    ctx: *const RawContext,
    object: *mut *mut vmod_objmapper_director,
    name: *const c_char,
    vcl: *mut RawPrivate,
    socket: VclString,
    prefix: VclString,
    deadline: f64,
    wait: f64,
    hold: f64,
    uncacheable: f64,
    publish: VclBool,
    log_size: i64,
    follow: VclBool,
    tags: VclString,
) {
    // SAFETY: varnishd's own arguments, in vcl_init.
    unsafe {
        boundary::vcl(ctx, "objmapper.director()", (), || {
            let vcl = VCL.of_slot(vcl);
            let prefix_of_vcl = vcl.prefix.as_deref().unwrap_or(DEFAULT_PREFIX);
            let (socket, prefix, tags) = (bytes(socket), bytes(prefix), bytes(tags));
            let (publish, follow) = (publish != 0, follow != 0);
            let raw = Raw { socket, prefix, deadline, wait, hold, uncacheable, publish, log_size, follow, tags };
            let name = CStr::from_ptr(name);
            let named = |error| format!("{}: {error}", name.to_string_lossy());
            let arguments = Arguments::parse(&raw, prefix_of_vcl).map_err(named)?;
            let director = director_callbacks::create(Context::new(ctx), name, arguments).map_err(named)?;
            vcl.directors.push(director);
            *object = director.cast();
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
            let object = std::mem::replace(&mut *object, null_mut());
            if !object.is_null() {
                director(object).delete();
            }
        }
    });
}

/// `om.set_backend()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_set_backend(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
    backend: Backend,
) {
    // SAFETY: varnishd's own arguments, in vcl_init.
    unsafe { boundary::vcl(ctx, "objmapper.set_backend()", (), || director(object).set_inner(backend)) };
}

/// `om.backend()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_backend(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
) -> Backend {
    // SAFETY: varnishd's own arguments.
    unsafe { boundary::vcl(ctx, "objmapper.backend()", null(), || Ok(director(object).as_backend())) }
}

/// `om.set_uri()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_set_uri(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
    uri: VclString,
) {
    // SAFETY: varnishd's own arguments, in vcl_backend_fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.set_uri()", (), || {
            let uri = arguments::uri(bytes(uri))?.to_vec();
            transaction::with(Context::new(ctx), director(object), |state| state.uri = Some(uri))
        });
    }
}

/// `om.set_wait()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_set_wait(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
    wait: f64,
) {
    // SAFETY: varnishd's own arguments, in vcl_backend_fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.set_wait()", (), || {
            let wait = arguments::wait(wait)?;
            transaction::with(Context::new(ctx), director(object), |state| state.wait = Some(wait))
        });
    }
}

/// `om.uri()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_uri(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
) -> VclString {
    // SAFETY: varnishd's own arguments, in a client request or a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.uri()", null(), || {
            let ctx = Context::new(ctx);
            let key = key(ctx, director(object))?;
            ctx.workspace().copy(key.text()).ok_or_else(|| "the workspace is full".to_owned())
        })
    }
}

/// `om.purge()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_purge(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
    uri: VclString,
    soft: VclBool,
) -> VclBool {
    // SAFETY: varnishd's own arguments, in a client request or a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.purge()", 0, || {
            purge(Context::new(ctx), director(object), bytes(uri), soft != 0).map(VclBool::from)
        })
    }
}

/// `om.publish()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_publish(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
    publish: VclBool,
) {
    // SAFETY: varnishd's own arguments, in vcl_backend_response.
    unsafe {
        boundary::vcl(ctx, "objmapper.publish()", (), || {
            // A response that this director did not make is not published.
            transaction::with_known(Context::new(ctx), Some(director(object)), |state| {
                state.answer.pending().map(|pending| pending.set_publish(publish != 0))
            });
            Ok(())
        });
    }
}

/// `om.status()`
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vmod_director_status(
    ctx: *const RawContext,
    object: *mut vmod_objmapper_director,
) -> VclString {
    // SAFETY: varnishd's own arguments, in a fetch.
    unsafe {
        boundary::vcl(ctx, "objmapper.status()", null(), || {
            Ok(status(
                transaction::with_known(Context::new(ctx), Some(director(object)), |state| state.status).flatten(),
            ))
        })
    }
}
