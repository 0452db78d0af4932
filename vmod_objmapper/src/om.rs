//! What a director of VCL's is and has, and the list of all of them.

use std::ffi::CStr;
use std::ptr::{self, null_mut};
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use objmapper_records::{Counters, L2};
use parking_lot::Mutex;
use varnishd::boundary::wrong;
use varnishd_sys::bindings::{VCL_BACKEND, VRT_Assign_Backend, VRT_DelDirector, director};
use varnishd_sys::vsc::Segment;

use crate::arguments::Arguments;
use crate::place::Name;

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
    pub(crate) store: Name,
    counters: Segment<Counters>,
}

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

impl Om {
    /// Around varnishd's director, which its VCL gives this name, and varnishd's CLI `full_name`. It is for [`Om::enlist`].
    pub(crate) fn new(
        dir: *mut director,
        (name, full_name): (&CStr, &CStr),
        arguments: Arguments,
        (l2, store): (Arc<L2>, Name),
    ) -> Om {
        Om {
            magic: OM_MAGIC,
            dir: AtomicPtr::new(dir),
            inner: AtomicPtr::new(null_mut()),
            name: name.to_string_lossy().into_owned(),
            arguments,
            l2,
            store,
            counters: Segment::new(c"OBJM", full_name),
        }
    }

    /// Puts it into the list of all, with its state as it is.
    ///
    /// # Safety
    /// It must stay where it is until [`Om::delist`].
    pub(crate) unsafe fn enlist(&self) {
        // A change of state is told to the list, and so before or after this as a whole.
        let mut all = ALL.lock();
        all.push(Listed(self));
        self.show_state(self.l2.is_up());
    }

    /// Takes it off that list.
    pub(crate) fn delist(&self) {
        ALL.lock().retain(|listed| !ptr::eq(listed.0, self));
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
    /// `om` must be a director's `Om`, before varnishd has called `destroy`.
    pub(crate) unsafe fn checked<'a>(om: *const Om) -> &'a Om {
        // SAFETY: by contract.
        match unsafe { om.as_ref() } {
            Some(checked) if checked.magic == OM_MAGIC => checked,
            _ => wrong("Om::checked", "not a director of ours"),
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

    /// Refers to `backend`, which may be null, and no more to what was there.
    pub(crate) fn assign(&self, backend: VCL_BACKEND) {
        let mut inner: VCL_BACKEND = self.inner.load(Acquire);
        // SAFETY: gives up the reference to what `inner` holds and takes one to `backend`, which may be null.
        unsafe { VRT_Assign_Backend(&raw mut inner, backend) };
        self.inner.store(inner.cast_mut(), Release);
    }

    /// Its counters.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn show_state(&self, up: bool) {
        self.counters().g_up.store(u64::from(up), Relaxed);
    }

    /// What `backend.list -p` shows, or its part of the list as JSON.
    pub(crate) fn describe(&self, json: bool) -> String {
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
