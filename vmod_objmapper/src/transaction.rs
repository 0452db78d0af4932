//! What is known of one task (a fetch, or a client request) beyond one call: kept as varnishd's PRIV_TASK, whose end in a
//! fetch is the end of the fetch, with the object complete and its boc still referenced.
//!
//! A task is one or more tries (`return (retry)`), each with a backend and a response of its own. What a director knows is
//! of one try: it is not lent to another one, whose response may be another backend's.

use std::ffi::c_void;
use std::ptr::NonNull;

use varnishd::boundary::Constant;
use varnishd::cast::{busyobj_of, context};
use varnishd_sys::bindings::{
    VMOD_PRIV_METHODS_MAGIC, VRT_priv_task, VRT_priv_task_get, vmod_priv, vmod_priv_methods, vrt_ctx,
};

use crate::BOUNDARY;
use crate::om::Om;
use crate::publish::{self, Work};

/// What a director did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Hit,
    Miss,
    Revalidated,
    Stale,
    Bypass,
    Error,
}

impl Status {
    /// As VCL sees it.
    pub(crate) fn text(self) -> &'static std::ffi::CStr {
        match self {
            Status::Hit => c"hit",
            Status::Miss => c"miss",
            Status::Revalidated => c"revalidated",
            Status::Stale => c"stale",
            Status::Bypass => c"bypass",
            Status::Error => c"error",
        }
    }
}

/// One director's part in a try.
pub(crate) struct Turn {
    om: NonNull<Om>,
    /// Which try: `busyobj.retries` when it began.
    attempt: u32,
    /// Set by `.set_uri()`.
    pub(crate) uri: Option<Vec<u8>>,
    pub(crate) status: Option<Status>,
    /// While the director asks its backend: who comes by again goes round in a circle.
    pub(crate) asking: bool,
    pub(crate) work: Work,
}

/// A task.
#[derive(Default)]
pub(crate) struct Task {
    turns: Vec<Turn>,
    /// Which turn has set its status last.
    last: Option<usize>,
}

// Its address is also the name of our tasks.
// SAFETY: varnishd only reads a private's methods.
static METHODS: Constant<vmod_priv_methods> = unsafe {
    Constant::new(vmod_priv_methods {
        magic: VMOD_PRIV_METHODS_MAGIC,
        type_: c"objmapper task".as_ptr(),
        fini: Some(fini),
    })
};

unsafe extern "C" fn fini(ctx: *const vrt_ctx, task: *mut c_void) {
    BOUNDARY.fallible("task", (), || {
        // SAFETY: `of` leaked it, and varnishd calls this once.
        let task = unsafe { Box::from_raw(task.cast::<Task>()) };
        // SAFETY: varnishd's own context of the task that ends, in its thread.
        unsafe { publish::settle(context(ctx), task.turns.into_iter().map(|turn| turn.work)) };
    });
}

impl Turn {
    fn new(om: &Om, attempt: u32) -> Turn {
        Turn { om: NonNull::from(om), attempt, uri: None, status: None, asking: false, work: Work::Nothing }
    }
}

/// The try that a context is of.
fn attempt(ctx: &vrt_ctx) -> u32 {
    // SAFETY: a context of varnishd's, in its thread.
    let bo = unsafe { busyobj_of(ctx) };
    // SAFETY: a checked busyobj of the calling thread's.
    if bo.is_null() { 0 } else { unsafe { (*bo).retries } }
}

/// # Safety
/// `slot` must be null or varnishd's slot for our tasks.
unsafe fn of_slot<'a>(slot: *mut vmod_priv) -> Option<&'a mut Task> {
    // SAFETY: by contract; what is in it is what `with` leaked there.
    unsafe { slot.as_ref()?.priv_.cast::<Task>().as_mut() }
}

/// Lends the director's part in the try of `ctx`, which begins with this call if it is the first.
///
/// # Safety
/// `ctx` must be the calling thread's, of a client request or a fetch; `call` must not come by here again.
pub(crate) unsafe fn with<T>(ctx: &vrt_ctx, om: &Om, call: impl FnOnce(&mut Turn) -> T) -> Result<T, String> {
    // SAFETY: by contract; varnishd's slot for this name in this task.
    let slot = unsafe { VRT_priv_task(ctx, METHODS.address().cast()) };
    if slot.is_null() {
        return Err("no room for the task's state: raise workspace_backend or workspace_client".to_owned());
    }
    // SAFETY: as above; the slot is this task's, and nobody else looks at it.
    let task = unsafe {
        if (*slot).priv_.is_null() {
            (*slot).priv_ = Box::into_raw(Box::<Task>::default()).cast();
            (*slot).methods = METHODS.address();
        }
        of_slot(slot)
    };
    let Some(task) = task else { return Err("no state".to_owned()) };
    let attempt = attempt(ctx);
    let index = task.turns.iter().position(|turn| std::ptr::eq(turn.om.as_ptr(), om)).unwrap_or_else(|| {
        task.turns.push(Turn::new(om, attempt));
        task.turns.len() - 1
    });
    let turn = &mut task.turns[index];
    if turn.attempt != attempt {
        *turn = Turn::new(om, attempt);
    }
    let before = turn.status;
    let value = call(turn);
    if turn.status != before {
        task.last = Some(index);
    }
    Ok(value)
}

/// Lends the director's part in the try of `ctx`, if there is one; without a director the one of whichever was asked last.
///
/// # Safety
/// As for [`with`].
pub(crate) unsafe fn with_known<T>(ctx: &vrt_ctx, om: Option<&Om>, call: impl FnOnce(&mut Turn) -> T) -> Option<T> {
    // SAFETY: by contract.
    let task = unsafe { of_slot(VRT_priv_task_get(ctx, METHODS.address().cast())) }?;
    let index = match om {
        Some(om) => task.turns.iter().position(|turn| std::ptr::eq(turn.om.as_ptr(), om)),
        None => task.last,
    };
    task.turns.get_mut(index?).filter(|turn| turn.attempt == attempt(ctx)).map(call)
}
