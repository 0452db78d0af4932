//! A record that was found: its head, its body, and the state of the store that the look-up has read.
//!
//! The file of a record never changes, so that it stays readable after the record was removed or replaced.
//! [`Hit::still_valid`] returns whether it may still be served.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use objmapper_client::{Entry, Fence, ObjUri, Session};

use crate::invalidation::index::{Judged, Verdict};
use crate::invalidation::journal::Position;
use crate::l2::L2;
use crate::lookup::request::RequestView;
use crate::outage::Outage;
use crate::record::file_io::read_exact_at;
use crate::record::head::{BodySum, Head};
use crate::record::stored::Mark;
use crate::record::vary::VaryKey;

/// The state of the store that a look-up has read. A publication is valid against the same state.
#[derive(Debug, Clone)]
pub(crate) enum ReadView {
    /// The session, the key's fence on its board, and the position in the invalidation log, all read before the record.
    Board { session: Arc<Session>, fence: Fence, position: Position },
    /// With a v0.1 peer: the newest entry of the log that was read before the record.
    V01 { mark: Mark },
}

/// A record that answers a request.
#[derive(Debug)]
pub struct Hit {
    /// The head; that of its last renewal, if it was renewed.
    pub head: Head,
    /// The body.
    pub record: RecordFile,
    /// True if the look-up waited for another cache's fetch.
    pub waited: bool,
    /// True if it was found fresh: a soft purge ends that.
    pub(crate) is_fresh: bool,
    /// The key's digest.
    pub(crate) digest: [u8; 32],
    pub(crate) vary: Option<VaryKey>,
    pub(crate) mark: Mark,
    pub(crate) tags: Vec<Box<[u8]>>,
    pub(crate) view: ReadView,
}

impl Hit {
    /// Returns its age in seconds, at least 0.
    #[must_use]
    pub fn age(&self, now: f64) -> f64 {
        self.head.age(now)
    }

    /// Returns true if it may be served while the origin does not answer.
    #[must_use]
    pub fn in_grace(&self, now: f64) -> bool {
        self.head.in_grace(now)
    }

    /// Returns what the invalidation log judges of it.
    pub(crate) fn judged(&self) -> Judged<'_> {
        Judged { mark: &self.mark, digest: self.digest, tags: &self.tags }
    }

    /// Returns true if no purge and no ban has invalidated the record since it was found, and no soft purge has made it
    /// stale. Atomic loads only, if there was none. `client` is that of the [`Lookup`](crate::Lookup).
    #[must_use]
    pub fn still_valid(&self, l2: &L2, client: &dyn RequestView) -> bool {
        let core = &l2.core;
        let ReadView::Board { session, fence, position } = &self.view else {
            return self
                .is_valid_by(|| Some(core.journal.current_v01().ok()?.judge(self.judged(), &self.head, client)));
        };
        let Some(board) = session.board() else { return false };
        // The fences of a board that is not in use any more do not move.
        let current = core.store.client.session();
        let in_use = current.and_then(|s| s.board().map(|b| b.id())) == Some(board.id());
        let judge = || {
            core.journal.current(session).ok()?;
            Some(core.journal.judge(self.judged(), &self.head, client))
        };
        in_use && board.is_current(*fence) && (core.journal.is_newest(session, position) || self.is_valid_by(judge))
    }

    fn is_valid_by(&self, judge: impl FnOnce() -> Option<Verdict>) -> bool {
        match judge() {
            Some(Verdict::Valid) => true,
            Some(Verdict::Stale(_)) => !self.is_fresh,
            Some(Verdict::Invalid | Verdict::Ahead) | None => false,
        }
    }

    /// Returns true if it can be revalidated by a conditional request.
    #[must_use]
    pub fn has_validator(&self) -> bool {
        self.head.has_validator()
    }
}

/// The body of a record: the first [`Self::body_len`] bytes of a file of which no byte ever changes.
#[derive(Debug)]
pub struct RecordFile {
    pub(crate) uri: ObjUri<'static>,
    pub(crate) entry: Entry,
    pub(crate) instance: [u8; 16],
    pub(crate) file: Option<OwnedFd>,
    pub(crate) bytes: Option<Box<[u8]>>,
    pub(crate) body_len: u64,
    pub(crate) sum: Option<BodySum>,
}

impl RecordFile {
    /// A body of at most so many bytes is read and verified before it is returned as a hit.
    pub const READ_LIMIT: u64 = 1 << 20;

    /// Returns its URI in the store: the key's, or that of a variant.
    #[must_use]
    pub fn uri(&self) -> &ObjUri<'static> {
        &self.uri
    }

    /// Returns the store's entry; its `length` is the file's, the tail included.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Returns the instance of its store; zeros for a store without instances.
    #[must_use]
    pub fn instance(&self) -> [u8; 16] {
        self.instance
    }

    /// Returns the length of the body in bytes.
    #[must_use]
    pub fn body_len(&self) -> u64 {
        self.body_len
    }

    /// Returns the whole body, verified, if it has been read.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref()
    }

    /// Returns the body's checksum, if its publisher computed one. A caller that reads the body in pieces compares it
    /// at the end.
    #[must_use]
    pub fn sum(&self) -> Option<BodySum> {
        self.sum
    }

    /// Reads from the body at an offset, as much as there is up to `buf`'s length. Returns the bytes read; 0 only at
    /// its end.
    ///
    /// # Errors
    /// [`Outage::Io`] if the file cannot be read or is shorter than it was.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Outage> {
        let left = self.body_len.saturating_sub(offset);
        let n = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let buf = &mut buf[..n];
        if let Some(bytes) = &self.bytes {
            // At most `body_len`, which is how many there are.
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            buf.copy_from_slice(bytes.get(from..from + n).ok_or(Outage::Io)?);
        } else {
            let file = self.file.as_ref().ok_or(Outage::Io)?;
            read_exact_at(file, buf, offset).map_err(|_| Outage::Io)?;
        }
        Ok(n)
    }
}
