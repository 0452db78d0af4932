//! The process's logger: lines of the store and the client go to the standard error of varnishd's child, at a bounded rate.

use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use objmapper_log::RateLimited;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        // The store and the client bound lines of theirs that can repeat, each kind by itself. This is for one that does not.
        static LINES: RateLimited = RateLimited::new(60, Duration::from_secs(60));
        if self.enabled(record.metadata())
            && let Some(left_out) = LINES.admit()
        {
            objmapper_engine::log::line(record.level().as_str(), &format!("{}{left_out}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Makes this the process's logger, unless there is one (another library of ours, loaded before).
pub(crate) fn install() {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
