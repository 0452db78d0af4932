//! Files that a client can still write, held to what the account carries for them.
//!
//! Nothing can stop a client that has a writable descriptor from writing. So a file is weighed until its last writer is
//! gone: at RESERVE, at COMMIT (which refuses a file with a writer, so what it weighs is final), and by the store's thread.
//! Between two weighings a writer can take more than it is charged for; on the memory tier the file system's size bounds that.
//!
//! | file | carried by the account | what it takes beyond that |
//! |---|---|---|
//! | private object | its reservation | charged, and others evicted for it; where the tier has no room, cut off, and the session ends |
//! | given up, with a writer left | what was carried before, until the last writer is gone | cut off |
//! | object of a v0.1 client (`foreign`) | what it took when it was weighed | charged; where the tier has no room, cut off, and the object deleted |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use objmapper_log::RateLimited;

use super::object::Object;
use super::private::Private;
use super::tier::Tier;
use super::{Inner, TierKind};
use crate::sys;

/// How often such files are weighed.
pub(super) const MEASURE_INTERVAL: Duration = Duration::from_millis(200);

static OVERRUNS: RateLimited = RateLimited::new(5, Duration::from_secs(60));
static FAILURES: RateLimited = RateLimited::new(5, Duration::from_secs(60));

/// A file that nothing names any more and that a client can still write. It counts as a private object.
#[derive(Debug)]
pub(crate) struct GivenUp {
    tier: TierKind,
    file: Arc<OwnedFd>,
    /// Bytes that the tier's account carries for it.
    carried: u64,
}

/// Returns true if the file is open for writing somewhere. A kernel that does not say (which the opening of the tier rules
/// out) counts as "no": a file must not be carried for ever.
pub(super) fn has_writer(file: BorrowedFd<'_>) -> bool {
    let without = sys::has_no_writers(file).unwrap_or_else(|e| {
        log_failure("asking for a lease", &e);
        true
    });
    !without
}

fn log_failure(what: &str, error: &io::Error) {
    if let Some(left_out) = FAILURES.admit() {
        log::error!("a file that a client can write: {what}: {error}{left_out}");
    }
}

impl Inner {
    /// Weighs what clients can write, except objects of v0.1 clients.
    pub(crate) fn measure_writers(&self) {
        let sessions: Vec<_> = self.sessions.lock().values().cloned().collect();
        for session in sessions {
            let privates: Vec<_> = session.state.lock().privates.values().cloned().collect();
            if !privates.iter().all(|private| self.is_within_limit(private)) {
                self.end_session(&session);
            }
        }
        self.settle_leftovers();
    }

    /// Charges what a private object takes beyond its reservation. False if the tier has no room for it: then it is cut to
    /// its reservation.
    fn is_within_limit(&self, private: &Private) -> bool {
        // A commit or a reservation that is under way weighs it.
        let Some(mut state) = private.state.try_lock() else { return true };
        let Ok(tier) = self.tier(private.tier) else { return true };
        if !state.open {
            return true;
        }
        let file = private.reader.as_fd();
        let takes = match tier.measure(file) {
            Ok(measure) => measure.allocated,
            Err(e) => {
                log_failure("fstat", &e);
                return true;
            }
        };
        if takes <= state.reserved {
            return true;
        }
        if self.make_room(tier, takes - state.reserved).is_ok() {
            state.reserved = takes;
            return true;
        }
        !self.cut(tier, file, state.reserved, "its session is ended")
    }

    /// Cuts a file to `carried` bytes. Returns false if it took more only beyond its end, where the file system allocates
    /// ahead by itself. `consequence` is what else becomes of it.
    pub(crate) fn cut(&self, tier: &Tier, file: BorrowedFd<'_>, carried: u64, consequence: &str) -> bool {
        match tier.cut(file, carried) {
            Ok(None) => false,
            Ok(Some(took)) => {
                self.writer_overruns.fetch_add(1, Relaxed);
                if let Some(left_out) = OVERRUNS.admit() {
                    log::warn!(
                        "a client has written {took} bytes to a file that has {carried} bytes of the {} tier, which has no \
                         room for more: the file is cut, {consequence}{left_out}",
                        tier.kind
                    );
                }
                true
            }
            Err(e) => {
                log_failure("cutting it to its reservation", &e);
                true
            }
        }
    }

    /// Keeps a private object that is given up in the account, because a client can still write to its file.
    pub(crate) fn leave_private(&self, private: &Private, carried: u64) {
        self.given_up.lock().push(GivenUp { tier: private.tier, file: private.reader.clone(), carried });
    }

    /// Keeps the file of a v0.1 client's object that is removed in the account while a client can still write to it. False
    /// if there is no writer, and where there are too many such files: then this one is emptied.
    pub(crate) fn leave_foreign(&self, tier: &Tier, object: &Object) -> bool {
        let Ok(file) = tier.open_body(object.id) else { return false };
        if !has_writer(file.as_fd()) {
            return false;
        }
        if !self.count_private() {
            self.cut(tier, file.as_fd(), 0, "and its writer not watched any more (--max-private)");
            return false;
        }
        let given_up_file = GivenUp { tier: tier.kind, file: Arc::new(file), carried: object.charge() };
        self.given_up.lock().push(given_up_file);
        true
    }

    /// Gives back what has no writer any more, and cuts what has grown. Returns true if something was given back.
    pub(crate) fn settle_leftovers(&self) -> bool {
        let mut given_up = self.given_up.lock();
        let before = given_up.len();
        given_up.retain(|given_up_file| {
            let Ok(tier) = self.tier(given_up_file.tier) else { return false };
            let file = given_up_file.file.as_fd();
            if !has_writer(file) {
                tier.account.sub(given_up_file.carried);
                self.private_count.fetch_sub(1, SeqCst);
                return false;
            }
            match tier.measure(file) {
                Ok(measure) if measure.allocated > given_up_file.carried => {
                    self.cut(tier, file, given_up_file.carried, "because nothing names it any more");
                }
                Ok(_) => {}
                Err(e) => log_failure("fstat", &e),
            }
            true
        });
        given_up.len() < before
    }
}
