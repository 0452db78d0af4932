//! What an operator has to know of a running store: counters of failures, and lines of the log whose rate is bounded.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use objmapper_log::RateLimited;

use super::StoreError;
use super::object::Object;

/// Minimum interval between two log lines of one kind.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A store's counters of failures, since the start, and the limiters of its log lines.
#[derive(Debug)]
pub(crate) struct Diagnostics {
    /// Operations that found a file system full.
    pub(crate) no_space: AtomicU64,
    /// Other storage errors.
    pub(crate) storage_errors: AtomicU64,
    /// Files without a row that had the name for a new body.
    pub(crate) orphan_names: AtomicU64,
    /// Objects whose file was missing.
    pub(crate) lost_files: AtomicU64,
    /// Objects of v0.1 clients deleted because they outgrew the tier.
    pub(crate) foreign_overruns: AtomicU64,
    /// Files truncated because a client had written more than was charged for them.
    pub(crate) writer_overruns: AtomicU64,
    errors: RateLimited,
    missing: RateLimited,
    unsaved: RateLimited,
}

impl Default for Diagnostics {
    fn default() -> Self {
        let limiter = || RateLimited::new(1, LOG_INTERVAL);
        Diagnostics {
            no_space: AtomicU64::new(0),
            storage_errors: AtomicU64::new(0),
            orphan_names: AtomicU64::new(0),
            lost_files: AtomicU64::new(0),
            foreign_overruns: AtomicU64::new(0),
            writer_overruns: AtomicU64::new(0),
            errors: limiter(),
            missing: limiter(),
            unsaved: limiter(),
        }
    }
}

impl Diagnostics {
    /// Counts and logs an error that an operator has to know of.
    pub(crate) fn note_error(&self, error: &StoreError) {
        match error {
            StoreError::NoSpace { .. } => warn(&self.errors, error),
            StoreError::Io { .. } | StoreError::Index(_) => {
                self.storage_errors.fetch_add(1, Relaxed);
                warn(&self.errors, error);
            }
            _ => {}
        }
    }

    /// Logs an object whose file was removed by another process.
    pub(crate) fn note_missing_file(&self, object: &Object) {
        warn(&self.missing, &format_args!("object {:016x} has lost its file", object.id));
    }

    /// Logs a pin or a session that a journal could not record, and that a restart loses.
    pub(crate) fn note_unsaved(&self, what: &dyn Display, error: &StoreError) {
        warn(&self.unsaved, &format_args!("{what} will not survive a restart: {error}"));
    }
}

/// Logs a warning, unless its kind was logged a short time ago.
pub(crate) fn warn(kind: &RateLimited, message: &dyn Display) {
    if let Some(left_out) = kind.admit() {
        log::warn!("{message}{left_out}");
    }
}
