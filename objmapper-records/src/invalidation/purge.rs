//! Purging: deletes the record or the index at a key, and with the index's generation every variant. The delete moves
//! the key's fence, so that no response which was requested before is published after it.

use objmapper_client::{ConnectionState, Error, IfVersion};

use crate::core::Core;
use crate::outage::Outage;
use crate::record::key::Key;

impl Core {
    pub(crate) fn purge(&self, key: &Key) -> Result<bool, Outage> {
        if let ConnectionState::V01 { .. } = self.client.state() {
            return self.purge_v01(key);
        }
        let delete = || self.client.delete(key.uri(), IfVersion::Any);
        // It may be carried out twice: the second time there is nothing more to delete.
        let deleted = match delete() {
            Err(Error::Closed | Error::Io { .. }) if self.client.is_up() => delete(),
            outcome => outcome,
        };
        deleted.map_err(|why| Outage::from(&why))
    }
}
