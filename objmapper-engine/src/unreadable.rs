//! Bodies whose files cannot be read: each is logged, bounded in rate, and a record among them is remembered, so that
//! it is not adopted again.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use objmapper_client::RateLimited;
use objmapper_server::store::body_path;
use parking_lot::Mutex;

use crate::backing::StoredBody;
use crate::log;

/// The number of records that are remembered; the oldest are forgotten first. One that is forgotten costs another
/// failed delivery.
const MAX_RECORDS: usize = 1024;

/// Lines per interval, for each of the two kinds.
const LINES: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(60);

/// The store's instance and the object number of each unreadable record, of all storages of this process.
static RECORDS: Mutex<VecDeque<([u8; 16], u64)>> = Mutex::new(VecDeque::new());
/// True if `RECORDS` is not empty. Saves each look-up the lock: there are hardly ever any.
static ANY: AtomicBool = AtomicBool::new(false);

/// Enters a record of the store `instance` that cannot be read.
pub(crate) fn enter(instance: [u8; 16], object: u64) {
    let mut records = RECORDS.lock();
    if records.contains(&(instance, object)) {
        return;
    }
    if records.len() >= MAX_RECORDS {
        records.pop_front();
    }
    records.push_back((instance, object));
    ANY.store(true, Relaxed);
}

/// Returns true if a record of the store `instance` was found to be unreadable.
pub fn is_unreadable(instance: [u8; 16], object: u64) -> bool {
    ANY.load(Relaxed) && RECORDS.lock().contains(&(instance, object))
}

/// One storage's lines in the log about bodies that cannot be read.
pub(crate) struct ReadLog {
    ident: String,
    lost: RateLimited,
    shortage: RateLimited,
}

impl ReadLog {
    pub(crate) fn new(ident: &str) -> ReadLog {
        ReadLog {
            ident: ident.to_owned(),
            lost: RateLimited::new(LINES, INTERVAL),
            shortage: RateLimited::new(LINES, INTERVAL),
        }
    }

    /// Logs that a body cannot be read.
    pub(crate) fn lost(&self, stored: Option<&StoredBody>, error: &io::Error) {
        let Some(left_out) = self.lost.admit() else { return };
        let file = stored.map_or_else(|| "of a body that comes in".to_owned(), |stored| body_path(stored.object()));
        let message = format!(
            "cannot read the file {file} of the store: {error}; objects with this body leave the cache{left_out}"
        );
        log::line(&self.ident, &message);
    }

    /// Logs that a body cannot be read for want of descriptors or memory.
    pub(crate) fn shortage(&self, error: &io::Error) {
        if let Some(left_out) = self.shortage.admit() {
            let message =
                format!("a body is not delivered: {error}: raise the limit on open files, or lower fds{left_out}");
            log::line(&self.ident, &message);
        }
    }
}
