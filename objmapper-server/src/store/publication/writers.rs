//! Files that a client can still write, bounded by what the account is charged for them.
//!
//! The store cannot stop a client that has a writable descriptor from writing. So a file is measured until its last writer is
//! gone: at RESERVE, at COMMIT (which refuses a file with a writer, so that its measurement is final), and by the thread
//! `objm-maintain`. Between two measurements a writer can take more than is charged; on the memory tier the file system's size
//! bounds that.
//!
//! | file | charged to the account | bytes beyond that |
//! |---|---|---|
//! | private object | its reservation | charged, with evictions; if the tier has no room, the file is truncated and the session ends |
//! | aborted or deleted, with a writer left | the last charge, until the last writer is gone | truncated |
//! | object of a v0.1 client (`foreign`) | its last measurement | charged; if the tier has no room, the file is truncated and the object deleted |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use objmapper_log::RateLimited;

use super::private::Private;
use crate::store::Inner;
use crate::store::object::Object;
use crate::store::tier::Tier;
use crate::sys;

/// Interval at which such files are measured.
pub(in crate::store) const MEASURE_INTERVAL: Duration = Duration::from_millis(200);

static OVERRUNS: RateLimited = RateLimited::new(5, Duration::from_secs(60));
static FAILURES: RateLimited = RateLimited::new(5, Duration::from_secs(60));

/// A file without a name that a client can still write. It counts as a private object.
#[derive(Debug)]
pub(crate) struct GivenUp {
    tier: Arc<Tier>,
    file: Arc<OwnedFd>,
    /// Bytes that the tier's account is charged for it.
    charged: u64,
}

/// Returns true if a process has the file open for writing. Returns false on an error, which the opening of the tier rules
/// out: a file must not be charged for ever.
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
    /// Measures the files that clients can write, except objects of v0.1 clients.
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

    /// Charges what a private object takes beyond its reservation. Returns false if the tier has no room for it; the file is then
    /// truncated to the reservation.
    fn is_within_limit(&self, private: &Private) -> bool {
        // A running commit or reservation measures the file itself.
        let Some(mut state) = private.state.try_lock() else { return true };
        let tier = &private.tier;
        if !state.open {
            return true;
        }
        let file = private.reader.as_fd();
        let takes = match tier.files.measure(file) {
            Ok(measure) => measure.allocated,
            Err(e) => {
                log_failure("fstat", &e);
                return true;
            }
        };
        if takes <= state.reserved {
            return true;
        }
        if self.reserve(tier, takes - state.reserved).is_ok() {
            state.reserved = takes;
            return true;
        }
        !self.cut(tier, file, state.reserved, "its session is ended")
    }

    /// Truncates a file to `charged` bytes. Returns false if the surplus was only allocated beyond its end, which file systems do
    /// by themselves. `consequence` ends the log line: what else happens to the file.
    pub(crate) fn cut(&self, tier: &Tier, file: BorrowedFd<'_>, charged: u64, consequence: &str) -> bool {
        match tier.files.cut(file, charged) {
            Ok(None) => false,
            Ok(Some(took)) => {
                self.diagnostics.writer_overruns.fetch_add(1, Relaxed);
                if let Some(left_out) = OVERRUNS.admit() {
                    log::warn!(
                        "a client has written {took} bytes to a file that has {charged} bytes of the {} tier, which has no \
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

    /// Keeps the charge of an aborted private object, because a client can still write to its file.
    pub(crate) fn leave_private(&self, private: &Private, charged: u64) {
        self.given_up.lock().push(GivenUp { tier: private.tier.clone(), file: private.reader.clone(), charged });
    }

    /// Keeps the charge of a v0.1 client's removed object while a client can still write to its file. Returns false
    /// if there is no writer, or if there are too many such files; the file is then emptied.
    pub(crate) fn leave_foreign(&self, object: &Object) -> bool {
        let tier = &object.tier;
        let Ok(file) = tier.files.open_body(object.id) else { return false };
        if !has_writer(file.as_fd()) {
            return false;
        }
        if !self.count_private() {
            self.cut(tier, file.as_fd(), 0, "and its writer not watched any more (--max-private)");
            return false;
        }
        let given_up_file = GivenUp { tier: tier.clone(), file: Arc::new(file), charged: object.charge() };
        self.given_up.lock().push(given_up_file);
        true
    }

    /// Frees the charge of files without a writer, and truncates files that have grown. Returns true if a charge was freed.
    pub(crate) fn settle_leftovers(&self) -> bool {
        let mut given_up = self.given_up.lock();
        let before = given_up.len();
        given_up.retain(|given_up_file| {
            let tier = &given_up_file.tier;
            let file = given_up_file.file.as_fd();
            if !has_writer(file) {
                tier.account.sub(given_up_file.charged);
                self.private_count.fetch_sub(1, SeqCst);
                return false;
            }
            match tier.files.measure(file) {
                Ok(measure) if measure.allocated > given_up_file.charged => {
                    self.cut(tier, file, given_up_file.charged, "because nothing names it any more");
                }
                Ok(_) => {}
                Err(e) => log_failure("fstat", &e),
            }
            true
        });
        given_up.len() < before
    }
}
