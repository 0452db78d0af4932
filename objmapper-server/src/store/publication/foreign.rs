//! Objects of v0.1 clients: "get" creates an empty file that is visible at once, and that the client writes without the store's
//! knowledge. The store measures such an object again until its last writer is gone, so that the limit holds. An object that
//! outgrows the tier is deleted.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::store::object::{Object, ObjectState, check_uri, now_ms};
use crate::store::tier::account::PAGE;
use crate::store::tier::journal::Op;
use crate::store::{Entry, Inner, StoreError, TierKind};
use crate::sys;

/// The maximum number of growing objects that one sweep measures.
const MAX_SWEEP: usize = 1000;

impl Inner {
    /// Carries out a v0.1 "get": opens the object, and creates an empty one if there is none. The
    /// creator's descriptor is writable. The next descriptor of an object that its creator left
    /// empty is writable too, because no client could fill the object otherwise. Any other is writable only if the store was
    /// opened with `legacy_writable`.
    pub(crate) fn get_or_create(&self, kind: Option<TierKind>, uri: &[u8]) -> Result<(Entry, OwnedFd), StoreError> {
        check_uri(uri)?;
        loop {
            if let Some((object, _)) = self.find(None, uri, false)? {
                match self.open_legacy(&object) {
                    Ok(file) => return Ok((object.entry(false), file)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        if object.state.lock().listed {
                            self.diagnostics.note_missing_file(&object);
                            self.discard(&object);
                        }
                        continue;
                    }
                    Err(source) => return Err(StoreError::Io { what: "opening a body", source }),
                }
            }
            if let Some(made) = self.create_foreign(kind, uri)? {
                return Ok(made);
            }
        }
    }

    fn open_legacy(&self, object: &Arc<Object>) -> std::io::Result<OwnedFd> {
        let files = &object.tier.files;
        if !object.foreign {
            return files.open_body(object.id);
        }
        let _measuring = self.measuring.lock();
        let abandoned = object.length.load(Relaxed) == 0 && !object.growing.load(Relaxed);
        if abandoned || self.legacy_writable {
            let file = files.open_writable(object.id)?;
            object.growing.store(true, Relaxed);
            self.foreign.lock().insert(object.id, object.clone());
            Ok(file)
        } else {
            files.open_body(object.id)
        }
    }

    /// Creates an empty object. Returns `None` if another client has created it in the meantime.
    fn create_foreign(&self, kind: Option<TierKind>, uri: &[u8]) -> Result<Option<(Entry, OwnedFd)>, StoreError> {
        let tier = self.reserve_in(kind, PAGE)?;
        let shard = self.index.shard(uri);
        let made = self.with_space(tier, || {
            let _publishing = shard.publish.lock();
            let now = now_ms();
            let current = shard.map.read().get(uri).cloned();
            if current.as_ref().is_some_and(|c| !c.expired(now)) {
                return Ok(None);
            }
            let (writer, reader) = tier.files.create().map_err(StoreError::io("creating a file"))?;
            let object = Arc::new(Object {
                id: self.link_new(tier, reader.as_fd())?,
                uri: Arc::from(uri),
                tier: tier.clone(),
                length: AtomicU64::new(0),
                charge: AtomicU64::new(PAGE),
                mtime: now,
                expires: 0,
                ephemeral: None,
                foreign: true,
                growing: AtomicBool::new(true),
                state: Mutex::new(ObjectState { pins: 0, listed: true }),
            });
            self.record(&object, None, current.as_deref()).inspect_err(|_| {
                let _ = tier.files.unlink(object.id);
            })?;
            self.foreign.lock().insert(object.id, object.clone());
            let old = self.enter(shard, &object);
            Ok(Some((object, writer, old)))
        });
        match made {
            Ok(Some((object, writer, old))) => {
                if let Some(old) = old {
                    self.replaced(&old);
                }
                Ok(Some((object.entry(false), writer)))
            }
            Ok(None) => {
                tier.account.sub(PAGE);
                Ok(None)
            }
            Err(e) => {
                tier.account.sub(PAGE);
                Err(e)
            }
        }
    }

    /// Updates length and charge of a growing object. Returns false if it is gone, or was deleted
    /// because the tier has no room for what its writer has written.
    pub(crate) fn remeasure(&self, object: &Arc<Object>) -> bool {
        // One thread at a time, so that a difference is charged once.
        let _measuring = self.measuring.lock();
        let tier = &object.tier;
        let file = match tier.files.open_body(object.id) {
            Ok(file) => file,
            Err(e) => {
                if e.kind() == std::io::ErrorKind::NotFound {
                    self.discard(object);
                } else {
                    log::warn!("measuring object {:016x}: {e}", object.id);
                }
                return false;
            }
        };
        // Before the measurement: what is measured after the last writer is gone is final.
        let settled = !self.legacy_writable && sys::has_no_writers(file.as_fd()).unwrap_or(false);
        let Ok(now) = tier.files.measure(file.as_fd()) else { return false };
        let before = object.charge();
        if now.charge > before && self.reserve(tier, now.charge - before).is_err() {
            self.diagnostics.foreign_overruns.fetch_add(1, Relaxed);
            self.discard(object);
            // The file may live on: with its writers, and with readers that have pinned it.
            self.cut(tier, file.as_fd(), before, "the object of a v0.1 client deleted");
            return false;
        }
        let changed = now.charge != before || now.length != object.length.load(Relaxed);
        {
            let state = object.state.lock();
            if !state.listed && state.pins == 0 {
                // The object was freed in the meantime, with its old charge.
                tier.account.sub(now.charge.saturating_sub(before));
                return false;
            }
            object.charge.store(now.charge, Relaxed);
            object.length.store(now.length, Relaxed);
            if state.pins > 0 {
                tier.account.pinned.fetch_add(now.charge.wrapping_sub(before), Relaxed);
            }
            tier.account.sub(before.saturating_sub(now.charge));
        }
        if changed {
            tier.record_later(Op::Resize { id: object.id, length: now.length, charge: now.charge });
        }
        if settled {
            object.growing.store(false, Relaxed);
            self.foreign.lock().remove(&object.id);
        }
        true
    }

    /// Measures growing objects in turn, at most [`MAX_SWEEP`] of them.
    pub(crate) fn sweep_foreign(&self) {
        let after = self.foreign_cursor.load(Relaxed);
        let some: Vec<_> = {
            let foreign = self.foreign.lock();
            foreign.range(after..).take(MAX_SWEEP).map(|(_, object)| object.clone()).collect()
        };
        let next = if some.len() < MAX_SWEEP { 0 } else { some.last().map_or(0, |o| o.id + 1) };
        self.foreign_cursor.store(next, Relaxed);
        for object in some {
            self.remeasure(&object);
        }
    }
}
