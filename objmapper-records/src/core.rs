//! The state that all parts of a second level share: the store, the invalidation log, and what a tag is.

use std::sync::Arc;

use objmapper_client::{ConnectionState, Error, IfVersion};

use crate::invalidation::entry::Invalidation;
use crate::invalidation::journal::Journal;
use crate::outage::Outage;
use crate::record::key::Key;
use crate::store::Store;

/// The state of one second level; shared by its [`Ticket`](crate::Ticket)s, which may outlive the [`L2`](crate::L2).
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) store: Arc<Store>,
    pub(crate) journal: Arc<Journal>,
    /// The names of the headers that hold a response's tags.
    pub(crate) tags: Vec<Vec<u8>>,
}

impl Core {
    /// Invalidates the records of a key. A hard purge deletes the record or the index at the key, too, and with the
    /// index's generation every variant. The delete moves the key's fence, so that no response which was requested
    /// before is published after it. Returns true if it has deleted something.
    pub(crate) fn purge(&self, key: &Key, soft: bool) -> Result<bool, Outage> {
        // Records of the same digest may be at another URI: the log invalidates all of them.
        self.journal.append(vec![Invalidation::Purge { digest: key.digest(), soft }])?;
        if soft {
            return Ok(true);
        }
        let client = &self.store.client;
        let delete = || client.delete(key.uri(), IfVersion::Any);
        if let ConnectionState::V01 { .. } = client.state() {
            // The record is invalidated already. The deletion only saves room; if it hits a newer record, that is a miss.
            return Ok(delete().unwrap_or(false));
        }
        // It may be carried out twice: the second time there is nothing more to delete.
        let deleted = match delete() {
            Err(Error::Closed | Error::Io { .. }) if client.is_up() => delete(),
            outcome => outcome,
        };
        deleted.map_err(|why| Outage::from(&why))
    }

    /// Invalidates the records with at least one of these tags.
    pub(crate) fn purge_tags(&self, tags: &[&[u8]], soft: bool) -> Result<(), Outage> {
        let entry = |tag: &&[u8]| Invalidation::Tag { tag: (*tag).into(), soft };
        let entries: Vec<_> = tags.iter().filter(|tag| !tag.is_empty()).map(entry).collect();
        if entries.is_empty() { Ok(()) } else { self.journal.append(entries) }
    }
}
