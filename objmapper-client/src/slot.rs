//! One outstanding request: where its answer arrives and its caller waits.

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
    /// Its caller has gone.
    abandoned: bool,
    promoted: bool,
}

/// Shared by the caller and the connection's table.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: u32,
    pub(crate) expect: Expect,
    state: Mutex<State>,
    cv: Condvar,
    /// Its caller sleeps on `cv`. Changes only under the table's lock.
    pub(crate) waiting: AtomicBool,
}

/// Why a sleeping caller woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Done,
    /// To read for all.
    Promoted,
    TimedOut,
}

impl Slot {
    pub(crate) fn new(id: u32, expect: Expect) -> Arc<Self> {
        Arc::new(Self { id, expect, state: Mutex::default(), cv: Condvar::new(), waiting: AtomicBool::new(false) })
    }

    /// Delivers the answer. The first one counts; one whose caller has gone comes back.
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

    /// Makes its sleeping caller the one that reads.
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

    /// The answer, once. If it is not there, the caller gives up: nobody will ask again.
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

    /// Whether `promote` came although it was not acted on: then someone else must be promoted.
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
