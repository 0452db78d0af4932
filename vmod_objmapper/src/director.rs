//! A director of VCL's: its arguments, its backend, its second level and its counters; and the list of all directors.
//!
//! A director is shared by all threads. Its backend is set in vcl_init and given up when varnishd releases the director; everything
//! else does not change. A director is on the list from its making to its destruction, for the gauge of its store's state.

use std::ffi::{CStr, c_void};
use std::ptr::{self, null_mut};
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use objmapper_records::Counters;
use parking_lot::Mutex;
use varnishd::boundary::wrong;
use varnishd::counters::Segment;
use varnishd::director;
use varnishd::raw::Backend;

use crate::arguments::Arguments;
use crate::l1::Tagging;
use crate::store::Use;
use crate::store_address::StoreKey;

const DIRECTOR_MAGIC: u32 = 0x6f62_6d6f;

/// A director of VCL's, and what varnishd keeps for us with its own.
pub(crate) struct Director {
    magic: u32,
    /// varnishd's own, a [`Backend`].
    dir: AtomicPtr<c_void>,
    /// The real backend or a director, referenced; null before `.set_backend()`.
    inner: AtomicPtr<c_void>,
    pub(crate) name: String,
    pub(crate) arguments: Arguments,
    pub(crate) l2: Use,
    counters: Segment<Counters>,
    /// Has the objects of its tags known as long as it lives.
    _tagging: Option<Tagging>,
}

/// A director in the list of all.
struct Listed(*const Director);

// SAFETY: what is in the list is alive, as `destroy` takes it off first; an `Director` may be looked at by any thread.
unsafe impl Send for Listed {}

/// All directors of this process, for their gauges.
static ALL: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

/// Sets the gauge of the directors that use this store.
pub(crate) fn show_state(store: &StoreKey, up: bool) {
    for listed in ALL.lock().iter() {
        // SAFETY: see `Listed`.
        let director = unsafe { Director::checked(listed.0) };
        if director.l2.key == *store {
            director.show_state(up);
        }
    }
}

impl Director {
    /// Returns a director for varnishd's own, which its VCL gives this name, and varnishd's CLI `full_name`.
    pub(crate) fn new(dir: Backend, (name, full_name): (&CStr, &CStr), arguments: Arguments, l2: Use) -> Director {
        let tagging = Tagging::begin(&arguments.tags);
        Director {
            magic: DIRECTOR_MAGIC,
            dir: AtomicPtr::new(dir.cast_mut().cast()),
            inner: AtomicPtr::new(null_mut()),
            name: name.to_string_lossy().into_owned(),
            arguments,
            l2,
            counters: Segment::new(c"OBJM", full_name),
            _tagging: tagging,
        }
    }

    /// Puts the director into the list of all, with the state of its store.
    ///
    /// # Safety
    /// It must stay where it is until [`Director::delist`].
    pub(crate) unsafe fn enlist(&self) {
        // A change of state is shown under this lock, too: before or after this as a whole.
        let mut all = ALL.lock();
        all.push(Listed(self));
        self.show_state(self.l2.is_up());
    }

    /// Takes the director off that list.
    pub(crate) fn delist(&self) {
        ALL.lock().retain(|listed| !ptr::eq(listed.0, self));
    }

    /// Gives up the VCL's reference: the director goes with the last one.
    pub(crate) fn delete(&self) {
        // SAFETY: once, in the object's fini; from here on only `release` and `destroy` use `self`.
        unsafe { director::delete(self.as_backend()) };
    }

    /// Returns the director of a pointer that VCL's code or a task keeps. A pointer to anything else ends the child.
    ///
    /// # Safety
    /// `director` must be a director of ours, before varnishd has called `destroy`.
    pub(crate) unsafe fn checked<'a>(director: *const Director) -> &'a Director {
        // SAFETY: by contract.
        match unsafe { director.as_ref() } {
            Some(checked) if checked.magic == DIRECTOR_MAGIC => checked,
            _ => wrong("Director::checked", "not a director of ours"),
        }
    }

    /// Returns what VCL uses as a backend.
    pub(crate) fn as_backend(&self) -> Backend {
        self.dir.load(Acquire).cast_const().cast()
    }

    /// Returns the real backend; null before `.set_backend()`.
    pub(crate) fn inner(&self) -> Backend {
        self.inner.load(Acquire).cast_const().cast()
    }

    /// Sets the real backend. Called in vcl_init, in varnishd's CLI thread.
    pub(crate) fn set_inner(&self, backend: Backend) -> Result<(), String> {
        if ptr::eq(backend, self.as_backend()) {
            return Err(format!("backend = {}: a director cannot be its own backend; give the real one", self.name));
        }
        self.assign(backend);
        Ok(())
    }

    /// Refers to `backend`, which may be null, and no more to the one before.
    pub(crate) fn assign(&self, backend: Backend) {
        // SAFETY: `inner` holds a reference of ours; `backend` is null or varnishd's own.
        let inner = unsafe { director::exchange(self.inner(), backend) };
        self.inner.store(inner.cast_mut().cast(), Release);
    }

    /// Returns the director's counters.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn show_state(&self, up: bool) {
        self.counters().g_up.store(u64::from(up), Relaxed);
    }

    /// Returns what `backend.list -p` shows, or its part of the list as JSON.
    pub(crate) fn describe(&self, json: bool) -> String {
        let counters = self.counters();
        let instance = self.l2.instance().map_or_else(String::new, |i| i.iter().map(|b| format!("{b:02x}")).collect());
        let (state, prefix) = (self.l2.state(), self.arguments.prefix.escape_ascii().to_string());
        let (hits, misses) = (counters.c_hits.load(Relaxed), counters.c_misses.load(Relaxed));
        if json {
            let quoted = |text: String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            return format!(
                "{{ \"store\": {}, \"prefix\": {}, \"state\": {}, \"instance\": {}, \"hits\": {hits}, \"misses\": {misses} }},\n",
                quoted(self.l2.key.0.to_string()),
                quoted(prefix),
                quoted(state.to_string()),
                quoted(instance),
            );
        }
        let instance = if instance.is_empty() { "unknown".to_owned() } else { instance };
        format!(
            "\n  Store:    {}\n  Prefix:   {prefix}\n  State:    {state}\n  Instance: {instance}\n  Hits:     {hits}\n  Misses:   {misses}\n",
            self.l2.key.0
        )
    }
}
