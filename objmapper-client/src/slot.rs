//! The slot of an outstanding request: it receives the answer, and its caller waits on it.
//!
//! A slot is completed at most once. A caller that leaves before marks it abandoned, and the answer then goes back to the thread
//! that delivers it. A sleeping caller is woken by its answer, or promoted to read for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::answer::{Answer, Expect};
use crate::error::Result;

#[derive(Debug, Default)]
struct State {
    answer: Option<Result<Answer>>,
    done: bool,
    /// True once the caller has gone.
    abandoned: bool,
    promoted: bool,
}

/// A slot, shared by the caller and the connection's table.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: u32,
    pub(crate) expect: Expect,
    state: Mutex<State>,
    cv: Condvar,
    /// True while the caller sleeps on `cv`. Changes only under the table's lock.
    pub(crate) waiting: AtomicBool,
}

/// The reason why a sleeping caller woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Done,
    /// The caller is to read for all.
    Promoted,
    TimedOut,
}

impl Slot {
    pub(crate) fn new(id: u32, expect: Expect) -> Arc<Self> {
        Arc::new(Self { id, expect, state: Mutex::default(), cv: Condvar::new(), waiting: AtomicBool::new(false) })
    }

    /// Delivers the answer; only the first one counts. Returns the answer if its caller has gone.
    pub(crate) fn complete(&self, answer: Result<Answer>) -> Option<Answer> {
        let mut state = self.state.lock();
        if state.done {
            return None;
        }
        state.done = true;
        if state.abandoned {
            return answer.ok();
        }
        state.answer = Some(answer);
        self.cv.notify_one();
        None
    }

    /// Makes the sleeping caller the leader.
    pub(crate) fn promote(&self) {
        self.state.lock().promoted = true;
        self.cv.notify_one();
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.state.lock().abandoned
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state.lock().done
    }

    /// Takes the answer. If there is none, marks the slot abandoned: the caller does not come back.
    pub(crate) fn take_or_abandon(&self) -> Option<Result<Answer>> {
        let mut state = self.state.lock();
        state.abandoned = state.answer.is_none();
        state.answer.take()
    }

    pub(crate) fn sleep(&self, deadline: Instant) -> Woken {
        let mut state = self.state.lock();
        loop {
            if state.done {
                return Woken::Done;
            }
            if std::mem::take(&mut state.promoted) {
                return Woken::Promoted;
            }
            if self.cv.wait_until(&mut state, deadline).timed_out() {
                return match (state.done, std::mem::take(&mut state.promoted)) {
                    (true, _) => Woken::Done,
                    (false, true) => Woken::Promoted,
                    (false, false) => Woken::TimedOut,
                };
            }
        }
    }

    /// Returns true if `promote` was called and the caller has not led: another caller must then be promoted.
    pub(crate) fn unused_promotion(&self) -> bool {
        std::mem::take(&mut self.state.lock().promoted)
    }

    pub(crate) fn set_waiting(&self, waiting: bool) -> bool {
        self.waiting.swap(waiting, Ordering::Relaxed)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }
}
