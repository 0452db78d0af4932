//! Look-ups: from a URI to its object, and to a descriptor of its body.
//!
//! A look-up takes read locks around memory operations only, but for an object that a v0.1 client still writes: that is measured.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::object::{Object, now_ms};
use super::session::SessionCore;
use super::{Entry, Inner, StoreError};

impl Inner {
    /// Looks up the object of a URI. Pins it if `pin` is true, which needs a session.
    pub(crate) fn find(
        &self,
        session: Option<&Arc<SessionCore>>,
        uri: &[u8],
        pin: bool,
    ) -> Result<Option<(Arc<Object>, bool)>, StoreError> {
        loop {
            let Some(object) = self.index.get(uri) else { return Ok(None) };
            if object.expired(now_ms()) {
                return Ok(None); // the sweep for expired objects frees it
            }
            if object.growing.load(Relaxed) && !self.remeasure(&object) {
                return Ok(None);
            }
            match session {
                Some(session) if pin => {
                    if self.pin(session, &object)? {
                        return Ok(Some((object, true)));
                    }
                    // The object was replaced or removed in between: look up again.
                }
                Some(session) => {
                    let pinned = session.state.lock().pins.contains_key(&object.id);
                    object.tier.order.touch(object.id);
                    return Ok(Some((object, pinned)));
                }
                None => {
                    object.tier.order.touch(object.id);
                    return Ok(Some((object, false)));
                }
            }
        }
    }

    pub(crate) fn lookup_for(
        &self,
        session: &Arc<SessionCore>,
        uri: &[u8],
        pin: bool,
    ) -> Result<Option<Entry>, StoreError> {
        Ok(self.find(Some(session), uri, pin)?.map(|(object, pinned)| object.entry(pinned)))
    }

    pub(crate) fn open_for(
        &self,
        session: Option<&Arc<SessionCore>>,
        uri: &[u8],
        pin: bool,
    ) -> Result<Option<(Entry, OwnedFd)>, StoreError> {
        loop {
            let Some((object, pinned)) = self.find(session, uri, pin)? else { return Ok(None) };
            match object.tier.files.open_body(object.id) {
                Ok(file) => return Ok(Some((object.entry(pinned), file))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    // The object was evicted in between, or another process has removed its file: then it must not
                    // be found again.
                    if object.state.lock().listed {
                        self.diagnostics.note_missing_file(&object);
                        self.discard(&object);
                    }
                }
                Err(source) => return Err(StoreError::Io { what: "opening a body", source }),
            }
        }
    }
}
