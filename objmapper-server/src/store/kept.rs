//! Bodies that a client in this process keeps over a restart: it remembers their URIs by itself.

use std::sync::Arc;

use super::object::ObjectId;
use super::session::Session;
use super::{Store, StoreError};

impl Session {
    /// Returns the URI of an object that the session pins.
    pub fn pinned_uri(&self, object: ObjectId) -> Option<Arc<[u8]>> {
        self.core.state.lock().pins.get(&object).map(|pin| pin.object.uri.clone())
    }

    /// Drops the pin of an object, and deletes the object. Unknown ids are ignored. The disk index follows later: after a crash the
    /// object may be there again.
    pub fn discard(&self, object: ObjectId) {
        let pin = self.core.state.lock().pins.remove(&object);
        if let Some(pin) = pin {
            self.store.inner.discard(&pin.object);
            self.released(&pin.object);
        }
    }
}

impl Store {
    /// Writes the tiers to disk, and marks their journals as clean, as the drop of the last handle does. For a process that ends
    /// without dropping it. What fails is logged.
    pub fn close_cleanly(&self) {
        self.inner.tiers.iter().for_each(|tier| tier.mark_clean());
    }

    /// Deletes the objects whose URIs begin with `prefix` and that no session pins. Returns their number.
    ///
    /// # Errors
    /// The prefix is empty.
    pub fn discard_unpinned(&self, prefix: &[u8]) -> Result<u64, StoreError> {
        if prefix.is_empty() {
            return Err(StoreError::InvalidUri("it is empty"));
        }
        let mut discarded = 0;
        for object in self.inner.index.with_prefix(prefix) {
            if object.state.lock().pins == 0 {
                self.inner.discard(&object);
                discarded += 1;
            }
        }
        Ok(discarded)
    }
}
