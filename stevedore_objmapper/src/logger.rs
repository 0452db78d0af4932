//! What the store and the client say goes where varnishd's child says things: to its standard error.

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            objmapper_engine::log::line(record.level().as_str(), &record.args().to_string());
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
