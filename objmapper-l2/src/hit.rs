//! A record that was found.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use objmapper_client::{Entry, Fence, ObjUri, Session};

use crate::bans::keeper::BanLogSnapshot;
use crate::head::{BodySum, Head};
use crate::outage::Outage;
use crate::reading::read_exact_at;
use crate::stored::Mark;
use crate::vary::VaryKey;

/// What a look-up is based on.
#[derive(Debug, Clone)]
pub(crate) enum ReadView {
    /// The store's board, as it was, and the bans that were known.
    Board { session: Arc<Session>, fence: Fence, bans: Arc<BanLogSnapshot> },
    /// With a v0.1 peer: the newest ban that was known.
    V01 { mark: Mark },
}

/// A record.
#[derive(Debug)]
pub struct Hit {
    /// The head: of its last renewal, if it was renewed.
    pub head: Head,
    /// The body.
    pub record: RecordFile,
    /// Whether another's fetch was waited for.
    pub waited: bool,
    /// The key's text.
    pub(crate) text: Vec<u8>,
    pub(crate) vary: Option<VaryKey>,
    pub(crate) mark: Mark,
    pub(crate) view: ReadView,
}

impl Hit {
    /// Seconds since the origin made it, at least 0.
    #[must_use]
    pub fn age(&self, now: f64) -> f64 {
        self.head.age(now)
    }

    /// Whether it may be served while the origin does not answer.
    #[must_use]
    pub fn in_grace(&self, now: f64) -> bool {
        self.head.in_grace(now)
    }

    /// Whether it has something by which the origin can be asked to confirm it.
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
    /// Bodies of at most so many bytes are read and verified before they are a hit.
    pub const READ_LIMIT: u64 = 1 << 20;

    /// Under which URI the store has it: the key's, or that of a variant.
    #[must_use]
    pub fn uri(&self) -> &ObjUri<'static> {
        &self.uri
    }

    /// What the store knows of it; its `length` is the file's, the tail included.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The instance of the store that it is in; zeros for one without instances.
    #[must_use]
    pub fn instance(&self) -> [u8; 16] {
        self.instance
    }

    /// Bytes of body.
    #[must_use]
    pub fn body_len(&self) -> u64 {
        self.body_len
    }

    /// The whole body, verified, if it has been read.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref()
    }

    /// The body's checksum, if its publisher computed one: who reads it piece by piece can compare in the end.
    #[must_use]
    pub fn sum(&self) -> Option<BodySum> {
        self.sum
    }

    /// Reads from the body at an offset, as much as there is up to `buf`'s length; 0 only at its end.
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
