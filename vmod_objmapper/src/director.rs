//! The director: what varnishd calls, and what VCL made.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr::{self, null_mut};
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use objmapper_l2::{Counters, L2};
use parking_lot::Mutex;
use varnish::Vsc;
use varnish_stevedore_sys::bindings::{
    DIRECTOR_MAGIC, SC_TX_ERROR, VCL_BACKEND, VCL_BOOL, VCL_TIME, VDI_Http1Pipe, VDI_METHODS_MAGIC, VRT_AddDirector,
    VRT_Assign_Backend, VRT_DelDirector, VRT_Healthy, VSB_bcat, director, stream_close_t, vdi_methods, vrt_ctx, vsb,
};

use crate::arguments::Arguments;
use crate::boundary::{Constant, busyobj_of, bytes, context, fallible, wrong};
use crate::fetch;
use crate::store::{self, Name};

const OM_MAGIC: u32 = 0x6f62_6d6f;

/// A director of VCL's, and `director->priv`.
pub(crate) struct Om {
    magic: u32,
    /// What varnishd knows it by.
    dir: AtomicPtr<director>,
    /// The real backend or a director, referenced; null before `.set_backend()`.
    inner: AtomicPtr<director>,
    pub(crate) name: String,
    pub(crate) arguments: Arguments,
    pub(crate) l2: Arc<L2>,
    store: Name,
    counters: Segment,
}

/// The counters' segment in shared memory.
struct Segment(Vsc<Counters>);

// SAFETY: the counters are atomics in memory that stays where it is until the segment is dropped, by one thread.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

/// A director in the list of all.
struct Listed(*const Om);

// SAFETY: what is in the list is alive, as `destroy` takes it off first; an `Om` may be looked at by any thread.
unsafe impl Send for Listed {}

/// All directors of this process, for their gauges.
static ALL: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

/// Tells the directors that use a second level whether it is up.
pub(crate) fn show_state(store: &Name, up: bool) {
    for listed in ALL.lock().iter() {
        // SAFETY: see `Listed`.
        let om = unsafe { Om::checked(listed.0) };
        if om.store == *store {
            om.show_state(up);
        }
    }
}

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

impl Om {
    /// Makes a director of the VCL that is being loaded.
    ///
    /// # Safety
    /// `ctx` must be the context of vcl_init, `name` the name that VCL gives it.
    pub(crate) unsafe fn create(ctx: *const vrt_ctx, name: &CStr, arguments: Arguments) -> Result<*mut Om, String> {
        let (l2, store) = store::open(&arguments)?;
        // SAFETY: VRT_AddDirector (cache/cache_vrt_vcl.c) in vcl_init; the table and the name live long enough. The director
        // is given its priv below, before it is handed to anybody.
        let dir =
            unsafe { VRT_AddDirector(ctx, METHODS.address(), null_mut(), c"%s".as_ptr(), name.as_ptr()) }.cast_mut();
        if dir.is_null() {
            return Err("varnishd takes no more directors: the VCL is being discarded".to_owned());
        }
        // SAFETY: a live director, whose vcldir has its name as varnishd's CLI shows it.
        let full_name = unsafe { bytes((*(*dir).vdir).cli_name) };
        let om = Box::into_raw(Box::new(Om {
            magic: OM_MAGIC,
            dir: AtomicPtr::new(dir),
            inner: AtomicPtr::new(null_mut()),
            name: name.to_string_lossy().into_owned(),
            arguments,
            l2,
            store,
            // Names in VCL are letters, digits, '_' and '-': no format directive is in them.
            counters: Segment(Vsc::new("OBJM", &String::from_utf8_lossy(full_name))),
        }));
        // SAFETY: see above.
        unsafe { (*dir).priv_ = om.cast::<c_void>() };
        // SAFETY: made above, and alive until `destroy` takes it off the list.
        let made = unsafe { Om::checked(om) };
        // A change of state is told to the list, and so before or after this as a whole.
        let mut all = ALL.lock();
        all.push(Listed(om));
        made.show_state(made.l2.is_up());
        Ok(om)
    }

    /// VCL is discarded: the director goes as soon as nobody refers to it.
    pub(crate) fn delete(&self) {
        let mut dir: VCL_BACKEND = self.dir.load(Acquire);
        // SAFETY: once, in the object's fini; from here on only `release` and `destroy` use `self`.
        unsafe { VRT_DelDirector(&raw mut dir) };
    }

    /// The object of a pointer that VCL's code or a task keeps.
    ///
    /// # Safety
    /// `om` must be what [`Om::create`] made, before varnishd has called `destroy`.
    pub(crate) unsafe fn checked<'a>(om: *const Om) -> &'a Om {
        // SAFETY: by contract.
        match unsafe { om.as_ref() } {
            Some(checked) if checked.magic == OM_MAGIC => checked,
            _ => wrong("Om::checked", "not a director of ours"),
        }
    }

    /// # Safety
    /// `dir` must be a director that varnishd calls us for.
    unsafe fn of<'a>(dir: VCL_BACKEND) -> &'a Om {
        // SAFETY: by contract.
        match unsafe { dir.as_ref() } {
            // SAFETY: `create` stored it there; it lives until `destroy`.
            Some(checked) if checked.magic == DIRECTOR_MAGIC => unsafe { Om::checked(checked.priv_.cast::<Om>()) },
            _ => wrong("Om::of", "not a director"),
        }
    }

    /// What VCL uses as a backend.
    pub(crate) fn director(&self) -> VCL_BACKEND {
        self.dir.load(Acquire)
    }

    /// The real backend; null before `.set_backend()`.
    pub(crate) fn inner(&self) -> VCL_BACKEND {
        self.inner.load(Acquire)
    }

    /// Sets the real backend. Called in vcl_init, in varnishd's CLI thread.
    pub(crate) fn set_inner(&self, backend: VCL_BACKEND) -> Result<(), String> {
        if ptr::eq(backend, self.director()) {
            return Err(format!("backend = {}: a director cannot be its own backend; give the real one", self.name));
        }
        self.assign(backend);
        Ok(())
    }

    fn assign(&self, backend: VCL_BACKEND) {
        let mut inner: VCL_BACKEND = self.inner.load(Acquire);
        // SAFETY: gives up the reference to what `inner` holds and takes one to `backend`, which may be null.
        unsafe { VRT_Assign_Backend(&raw mut inner, backend) };
        self.inner.store(inner.cast_mut(), Release);
    }

    /// Its counters.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters.0
    }

    fn show_state(&self, up: bool) {
        self.counters().g_up.store(u64::from(up), Relaxed);
    }

    fn describe(&self, json: bool) -> String {
        let counters = self.counters();
        let instance = self.l2.instance().map_or_else(String::new, |i| i.iter().map(|b| format!("{b:02x}")).collect());
        let (state, prefix) = (self.l2.state(), self.arguments.prefix.escape_ascii().to_string());
        let (hits, misses) = (counters.c_hits.load(Relaxed), counters.c_misses.load(Relaxed));
        if json {
            let quoted = |text: String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            return format!(
                "{{ \"store\": {}, \"prefix\": {}, \"state\": {}, \"instance\": {}, \"hits\": {hits}, \"misses\": {misses} }},\n",
                quoted(self.store.0.to_string()),
                quoted(prefix),
                quoted(state.to_string()),
                quoted(instance),
            );
        }
        let instance = if instance.is_empty() { "unknown".to_owned() } else { instance };
        format!(
            "\n  Store:    {}\n  Prefix:   {prefix}\n  State:    {state}\n  Instance: {instance}\n  Hits:     {hits}\n  Misses:   {misses}\n",
            self.store.0
        )
    }
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
    fallible("gethdrs", -1, || {
        // SAFETY: varnishd's own context and director, for this call.
        let (checked, om) = unsafe { (context(ctx), Om::of(dir)) };
        // SAFETY: VDI_GetHdr calls us in the fetch thread, with the context of its busyobj.
        unsafe { fetch::gethdrs(checked, om) }
    })
}

unsafe extern "C" fn finish(ctx: *const vrt_ctx, _dir: VCL_BACKEND) {
    fallible("finish", (), || {
        // SAFETY: varnishd's own context. Only responses from a record are ours to finish (others are finished by the backend
        // that made them); such a response's http_conn is memory of the workspace, with nothing behind it.
        unsafe { (*busyobj_of(context(ctx))).htc = null_mut() };
    });
}

unsafe extern "C" fn http1pipe(ctx: *const vrt_ctx, dir: VCL_BACKEND) -> stream_close_t {
    let failure = (&raw const SC_TX_ERROR).cast();
    fallible("http1pipe", failure, || {
        // SAFETY: varnishd's own context and director, for this call.
        let (checked, om) = unsafe { (context(ctx), Om::of(dir)) };
        let bo = busyobj_of(checked);
        fetch::through(bo, om, |bo| {
            // SAFETY: VDI_Http1Pipe called us with both.
            unsafe { VDI_Http1Pipe(checked.req, bo) }
        })
    })
}

unsafe extern "C" fn healthy(ctx: *const vrt_ctx, dir: VCL_BACKEND, changed: *mut VCL_TIME) -> VCL_BOOL {
    // SAFETY: varnishd's own context and director.
    fallible("healthy", 0, || unsafe { is_healthy(ctx, Om::of(dir), changed) })
}

unsafe extern "C" fn release(dir: VCL_BACKEND) {
    // SAFETY: varnishd's own director.
    fallible("release", (), || unsafe { Om::of(dir) }.assign(ptr::null()));
}

unsafe extern "C" fn destroy(dir: VCL_BACKEND) {
    fallible("destroy", (), || {
        // SAFETY: the last reference to our director is gone; `create` made the box.
        unsafe {
            let om = (*dir).priv_.cast::<Om>();
            ALL.lock().retain(|listed| !ptr::eq(listed.0, om));
            drop(Box::from_raw(om));
        }
    });
}

unsafe extern "C" fn panic(dir: VCL_BACKEND, vsb: *mut vsb) {
    fallible("panic", (), || {
        // SAFETY: varnishd's own director.
        let om = unsafe { Om::of(dir) };
        let text = format!("store = {},\nstate = {},\n", om.store.0, om.l2.state());
        // SAFETY: varnishd's own vsb.
        unsafe { VSB_bcat(vsb, text.as_ptr().cast(), isize::try_from(text.len()).unwrap_or(0)) };
    });
}

unsafe extern "C" fn list(ctx: *const vrt_ctx, dir: VCL_BACKEND, vsb: *mut vsb, pflag: c_int, jflag: c_int) {
    fallible("list", (), || {
        // SAFETY: varnishd's own context and director.
        let (om, healthy) = unsafe {
            let om = Om::of(dir);
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
