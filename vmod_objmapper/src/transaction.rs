//! The state of one task (a fetch, or a client request) beyond one call: kept with varnishd's task ([`varnishd::private`]), whose end
//! in a fetch is the end of the fetch, with the object complete and its boc still referenced.
//!
//! A task is one or more tries (`return (retry)`), each with a backend and a response of its own. A director's state is
//! of one try: it is not lent to another one, whose response may be another backend's.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::time::Duration;

use varnishd::boundary::Boundary;
use varnishd::context::Context;
use varnishd::private::{Key, Private};

use crate::BOUNDARY;
use crate::director::Director;
use crate::publish::{self, Answer};

/// The outcome of a director's look-up.
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
    /// Returns the word that VCL sees.
    pub(crate) fn text(self) -> &'static CStr {
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

/// One director's state in a try.
pub(crate) struct TaskState {
    director: NonNull<Director>,
    /// The number of the try (`bereq.retries`) that it is of.
    attempt: u32,
    /// Set by `.set_uri()`.
    pub(crate) uri: Option<Vec<u8>>,
    pub(crate) status: Option<Status>,
    /// Set by `.set_wait()`.
    pub(crate) wait: Option<Duration>,
    /// The record that was looked up.
    pub(crate) looked_up: Option<LookedUp>,
    /// Set while the director asks its backend: a second call is from a circle of directors.
    pub(crate) asking: bool,
    pub(crate) answer: Answer,
}

/// A record that a director has looked up: the store's instance, and the key's text.
pub(crate) type LookedUp = (Option<[u8; 16]>, Vec<u8>);

/// A task.
#[derive(Default)]
struct Task {
    states: Vec<TaskState>,
    /// The index of the state whose status was set last.
    last: Option<usize>,
}

impl Private for Task {
    const NAME: &'static CStr = c"objmapper task";

    fn boundary() -> &'static Boundary {
        &BOUNDARY
    }

    fn end(self: Box<Task>, ctx: Option<Context<'_>>) {
        if let Some(bo) = ctx.and_then(Context::fetch) {
            publish::settle(bo, self.states.into_iter().map(|state| state.answer));
        }
    }
}

static TASK: Key<Task> = Key::new();

impl TaskState {
    fn new(director: &Director, attempt: u32) -> TaskState {
        let director = NonNull::from(director);
        let (uri, status, wait, looked_up) = (None, None, None, None);
        TaskState { director, attempt, uri, status, wait, looked_up, asking: false, answer: Answer::None }
    }
}

/// Returns the number of the try that a context is of.
fn attempt(ctx: Context<'_>) -> u32 {
    ctx.fetch().map_or(0, |bo| bo.retries())
}

/// Lends the director's state in the try of `ctx`, which begins with this call if it is the first.
///
/// # Safety
/// `call` must not lend it again.
pub(crate) unsafe fn with<T>(
    ctx: Context<'_>,
    director: &Director,
    call: impl FnOnce(&mut TaskState) -> T,
) -> Result<T, String> {
    // SAFETY: by contract the only reference.
    let task = unsafe { TASK.of_task(ctx) }
        .map_err(|_| "no room for the task's state: raise workspace_backend or workspace_client".to_owned())?;
    let attempt = attempt(ctx);
    let index =
        task.states.iter().position(|state| std::ptr::eq(state.director.as_ptr(), director)).unwrap_or_else(|| {
            task.states.push(TaskState::new(director, attempt));
            task.states.len() - 1
        });
    let state = &mut task.states[index];
    if state.attempt != attempt {
        *state = TaskState::new(director, attempt);
    }
    let before = state.status;
    let value = call(state);
    if state.status != before {
        task.last = Some(index);
    }
    Ok(value)
}

/// Returns true if and only if another director asks its backend in this try for the same record: the caller is that
/// backend, and what it could wait for is its own task.
///
/// # Safety
/// As for [`with`].
pub(crate) unsafe fn is_asked_for(ctx: Context<'_>, director: &Director, wanted: &LookedUp) -> bool {
    // SAFETY: by contract the only reference.
    let task = unsafe { TASK.of_task_if_any(ctx) };
    let asks = |state: &TaskState| {
        state.asking
            && state.attempt == attempt(ctx)
            && !std::ptr::eq(state.director.as_ptr(), director)
            && state.looked_up.as_ref() == Some(wanted)
    };
    task.is_some_and(|task| task.states.iter().any(asks))
}

/// Lends the director's state in the try of `ctx`, if there is one; without a director the one whose status was set last.
///
/// # Safety
/// As for [`with`].
pub(crate) unsafe fn with_known<T>(
    ctx: Context<'_>,
    director: Option<&Director>,
    call: impl FnOnce(&mut TaskState) -> T,
) -> Option<T> {
    // SAFETY: by contract the only reference.
    let task = unsafe { TASK.of_task_if_any(ctx) }?;
    let index = match director {
        Some(director) => task.states.iter().position(|state| std::ptr::eq(state.director.as_ptr(), director)),
        None => task.last,
    };
    task.states.get_mut(index?).filter(|state| state.attempt == attempt(ctx)).map(call)
}
