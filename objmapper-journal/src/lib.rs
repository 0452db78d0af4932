//! What a cache writes down of its objects, so that a restart finds them. This crate knows no varnishd and no store: an
//! object is an [`Entry`] of fixed size and a *record*, bytes that only the caller understands.
//!
//! ```text
//! DIR/objmapper-persist/
//!   header              layout, product, boot id; marks: clean, loading, broken
//!   entries             a table: 128 bytes per object (digest, times, ban, place of the record, body in the store)
//!   segment-00000000 …  records, appended: head and small body
//!   bans                specs of bans, appended, each with a checksum
//!   damaged/            what an earlier start could not use, if the operator keeps it
//! ```
//!
//! What is promised, and by what:
//!
//! | end of the process | what is found | by |
//! |---|---|---|
//! | SIGKILL, abort | all objects that were written (at most [`FLUSH_INTERVAL`] late), no object that was removed | a removal is one `pwrite` before [`Journal::remove`] returns, a ban one before [`Journal::append_ban`] returns; the page cache outlives the process |
//! | [`Journal::close`], then anything | all objects | `syncfs`, then the mark *clean* |
//! | power loss, crash of the system without a close | nothing: the cache starts empty | another boot id without the mark *clean* |
//! | death while objects are loaded | nothing | the mark *loading* |
//! | a removal or a ban that could not be written | nothing | the mark *broken*, or no header at all |
//!
//! Nothing here is synced while objects are served. A record is copied to a buffer by [`Journal::append`] and written by the
//! thread that calls [`Journal::flush`]; its entry is written after it, so that an entry never refers to bytes that are not there.
//!
//! | file | concept |
//! |---|---|
//! | `entry` | one object: its fixed-size entry |
//! | `ledger` | which slot of the table is used by which record, and how much of each segment is live |
//! | `inbox` | records that are not written yet |
//! | `journal` | the open journal: append, remove, flush, compact, close |
//! | `open` | opening one, and what is discarded then |
//! | `header`, `bans`, `directory` | the header, the log of bans, the directory |
//! | `reader` | reading entries and records, many in a row |
//!
//! Locks, in the order in which one may be taken while another is held: `flushing`, the inbox, the ledger. The log of bans and the
//! header have their own. The ledger's is held during one `pwrite`, no other during system calls but `flushing`.

mod bans;
mod directory;
mod entry;
mod header;
mod inbox;
mod journal;
mod ledger;
mod open;
mod reader;

use std::time::Duration;

pub use bans::BanRecord;
pub use entry::{ENTRY_LEN, Entry, RecordPlace, StoredBody, Times};
pub use journal::{Flushed, Journal, NotKept, Stats};
pub use open::{Config, Damaged, Discarded, Found, Opened, forget, open};
pub use reader::Reader;

/// How often [`Journal::flush`] should be called: what was appended within this time is lost with the process.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
