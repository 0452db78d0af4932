//! The store of published bodies: inside this process, in an objmapperd, or absent, if the former could not be opened.
//!
//! [`Backing`] dispatches to one of the three. A body is a [`DraftFile`] (private, writable) until `Backing::publish`,
//! then a [`StoredBody`] (immutable, pinned) until `Backing::release`. A published body is opened below its tier's
//! directory, without a request.

mod embedded;
mod pins;
mod remote;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use objmapper_client::{Outage, Session};
use objmapper_proto::ext::{Fence, Tier};

use crate::maintenance::LossDomain;

pub use embedded::Embedded;
pub use remote::Remote;

/// Why a request to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The URI was deleted after its fence was read.
    #[error("the URI was deleted meanwhile")]
    Conflict,
    /// The request failed, with the kind by which it is counted, and the text for the log.
    #[error("{}{text}", prefix(*kind))]
    Outage {
        /// The kind.
        kind: Outage,
        /// The client's, the store's or the system's own words.
        text: String,
    },
}

/// Returns what the log says before the text of a failure.
fn prefix(kind: Outage) -> &'static str {
    match kind {
        Outage::Down => "objmapper is down: ",
        Outage::Full => "objmapper is full: ",
        Outage::Timeout => "objmapper did not answer in time: ",
        Outage::Io => "",
        Outage::Protocol => "objmapper refused: ",
    }
}

impl Failure {
    pub(crate) fn new(kind: Outage, text: impl std::fmt::Display) -> Failure {
        Failure::Outage { kind, text: text.to_string() }
    }

    /// Returns the kind by which it is counted. Only a record has a fence: for other bodies, a conflict is not to be expected.
    pub(crate) fn kind(&self) -> Outage {
        match self {
            Failure::Conflict => Outage::Protocol,
            Failure::Outage { kind, .. } => *kind,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::new(Outage::from(&error), &error)
    }
}

/// A published body: immutable, in a tier's directory under a name of its own.
#[derive(Debug, Clone)]
pub struct StoredBody {
    /// Identifies the body in this process; never used twice.
    pub(crate) key: u64,
    /// The object number in the store.
    pub(crate) object: u64,
    /// Bytes of body, from the file's first byte on.
    pub(crate) body_len: u64,
    /// Bytes of the file: longer than the body by a record's tail.
    pub(crate) file_len: u64,
    /// Set for a body that stays when this process ends: whoever releases it deletes it.
    kept: bool,
    /// Set for a record: its URI is known to other caches, and several bodies may need its pin.
    shared: bool,
    home: Home,
}

/// The URI under which a body is published, and the kind of publication.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Name<'a> {
    /// A URI of its own, known to this process alone. The body ends with this session or pin.
    Own(&'a str),
    /// A URI of its own, known to this process alone. The body stays when this process ends.
    Kept(&'a str),
    /// The URI of a record: other caches find it, and it stays when this process ends.
    Record {
        /// The URI.
        uri: &'a [u8],
        /// When the store may drop it, milliseconds since 1970; 0 is never.
        expires: i64,
        /// The URI's fence as it was read before the fetch; the commit is refused if it has moved.
        fence: Fence,
    },
}

impl<'a> Name<'a> {
    fn uri(&self) -> &'a [u8] {
        match *self {
            Name::Own(uri) | Name::Kept(uri) => uri.as_bytes(),
            Name::Record { uri, .. } => uri,
        }
    }
}

/// The lengths of a complete body and of its file, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) body: u64,
    pub(crate) file: u64,
}

/// The directory that a body's file is in. Holding it keeps a memory tier's file system alive, objmapperd or not.
#[derive(Debug, Clone)]
enum Home {
    /// A tier of the store in this process.
    Embedded(Arc<OwnedFd>),
    /// A tier of an objmapperd, as our session was given it, in this epoch of its memory tier.
    Remote(Arc<Session>, Tier, u64),
}

impl StoredBody {
    /// The body's number in objmapper.
    pub fn object(&self) -> u64 {
        self.object
    }

    /// Returns true if it is a record.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Opens its file, read-only, below the tier's directory. Sends no request: it works while objmapperd does not
    /// answer.
    pub(crate) fn open(&self) -> io::Result<File> {
        match &self.home {
            Home::Embedded(tier) => embedded::open(tier, self.object),
            Home::Remote(session, tier, _) => remote::open(session, *tier, self.object),
        }
    }

    /// Returns which losses of an objmapperd concern the body; `None` for the store in this process, which loses none.
    pub(crate) fn loss_domain(&self) -> Option<LossDomain> {
        match &self.home {
            Home::Embedded(_) => None,
            Home::Remote(session, tier, epoch) => {
                // A tier of a later store is taken for one that a restart empties.
                Some(LossDomain { session: session.id(), memory_epoch: (*tier != Tier::Disk).then_some(*epoch) })
            }
        }
    }
}

/// A body's file while it is private and writable: the protocol's private object.
pub struct DraftFile {
    /// `None` after [`DraftFile::close`].
    file: Option<File>,
    reservation: Reservation,
}

/// What the store has reserved for a draft. Dropping it aborts the draft, unless it was published.
enum Reservation {
    Embedded(embedded::Reservation),
    Remote(remote::Reservation),
}

impl DraftFile {
    /// The file, readable and writable; an error after [`DraftFile::close`].
    pub(crate) fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the draft is closed"))
    }

    /// Closes the writable descriptor, as publishing demands.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    /// Aborts the draft: the store frees its file and its reservation.
    pub(crate) fn abort(self) {
        drop(self);
    }
}

/// How many bytes a draft may need in total.
///
/// An objmapperd is asked for all that is expected: that is one round trip, and a body that does not fit there goes to
/// heap as a whole. The store in this process is asked for what the storage's limit has granted so far and no more,
/// because what the limit grants later is evicted later: for all of it the store would be full.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DraftSize {
    /// Bytes that the storage's limit has granted.
    pub(crate) granted: u64,
    /// Bytes that the origin announced; ignored if less than `granted`.
    pub(crate) expected: u64,
}

/// The store of one storage.
pub enum Backing {
    /// The store is in this process.
    Embedded(Embedded),
    /// The store is an objmapperd.
    Remote(Remote),
    /// The store in this process could not be opened, for this reason: it is down until varnishd starts another child.
    Absent(String),
}

impl Backing {
    /// Creates a private file, with room reserved.
    pub(crate) fn create(&self, size: DraftSize) -> Result<DraftFile, Failure> {
        match self {
            Backing::Embedded(store) => store.create(size.granted),
            Backing::Remote(store) => store.create(size.expected.max(size.granted)),
            Backing::Absent(why) => Err(Failure::new(Outage::Down, why)),
        }
    }

    /// Sets a draft's reservation.
    pub(crate) fn reserve(&self, draft: &mut DraftFile, size: DraftSize) -> Result<(), Failure> {
        match &mut draft.reservation {
            Reservation::Embedded(reservation) => reservation.reserve(size.granted),
            Reservation::Remote(reservation) => reservation.reserve(size.expected.max(size.granted)),
        }
    }

    /// Creates a draft of `size` in another tier than `draft`'s, which is full, and copies the first `written` bytes of
    /// `draft`'s file to it. `None` if there is no other tier.
    pub(crate) fn create_elsewhere(
        &self,
        draft: &DraftFile,
        size: DraftSize,
        written: u64,
    ) -> Option<Result<DraftFile, Failure>> {
        match (self, &draft.reservation, &draft.file) {
            (Backing::Remote(store), Reservation::Remote(reservation), Some(file)) => {
                store.create_on_disk(reservation, file, size.expected.max(size.granted), written)
            }
            _ => None,
        }
    }

    /// Publishes a draft that is closed. After a failure it is still a draft, unless the store did not answer or has lost it.
    pub(crate) fn publish(
        &self,
        draft: &mut DraftFile,
        name: Name<'_>,
        lengths: Lengths,
        key: u64,
    ) -> Result<StoredBody, Failure> {
        match (self, &mut draft.reservation) {
            (Backing::Embedded(store), Reservation::Embedded(reservation)) => {
                store.publish(reservation, name, lengths, key)
            }
            (Backing::Remote(store), Reservation::Remote(reservation)) => {
                store.publish(reservation, name, lengths, key)
            }
            _ => Err(Failure::new(Outage::Protocol, "a draft of another store")),
        }
    }

    /// Pins the record that is object number `object` under `uri`. `None`: it is not there any more.
    pub(crate) fn pin(
        &self,
        uri: &[u8],
        object: u64,
        lengths: Lengths,
        key: u64,
    ) -> Result<Option<StoredBody>, Failure> {
        match self {
            Backing::Embedded(store) => store.pin(uri, object, lengths, key),
            Backing::Remote(store) => store.pin(uri, object, lengths, key),
            Backing::Absent(why) => Err(Failure::new(Outage::Down, why)),
        }
    }

    /// Pins a body that an earlier process kept, or adopted, under `uri`. `None`: it is not there any more.
    pub(crate) fn restore(
        &self,
        uri: &[u8],
        object: u64,
        lengths: Lengths,
        key: u64,
        kept: bool,
    ) -> Result<Option<StoredBody>, Failure> {
        match self {
            Backing::Embedded(store) if kept => store.restore(uri, object, lengths, key),
            _ => self.pin(uri, object, lengths, key),
        }
    }

    /// Returns the URI of a body of the store in this process.
    pub(crate) fn uri(&self, stored: &StoredBody) -> Option<Arc<[u8]>> {
        match self {
            Backing::Embedded(store) => store.uri(stored),
            Backing::Remote(_) | Backing::Absent(_) => None,
        }
    }

    /// Returns the store's instance; `None` before the first connection. A record of another instance is in another
    /// store.
    pub fn instance(&self) -> Option<[u8; 16]> {
        match self {
            Backing::Embedded(store) => Some(store.instance()),
            Backing::Remote(store) => store.instance(),
            Backing::Absent(_) => None,
        }
    }

    /// Releases the pin of a published body. Does not block.
    pub(crate) fn release(&self, stored: &StoredBody) {
        match self {
            Backing::Embedded(store) => store.release(stored),
            Backing::Remote(store) => store.release(stored),
            Backing::Absent(_) => {}
        }
    }

    /// See [`crate::engine::Engine::tidy`].
    pub(crate) fn tidy(&self) {
        match self {
            Backing::Embedded(_) | Backing::Absent(_) => {}
            Backing::Remote(store) => store.tidy(),
        }
    }

    /// Returns true if the store is in this process, or is connected and has the protocol extensions.
    pub fn answers(&self) -> bool {
        match self {
            Backing::Embedded(_) => true,
            Backing::Remote(store) => store.answers(),
            Backing::Absent(_) => false,
        }
    }

    /// Releases all bodies at once, because the process is about to end. Bodies that are open or mapped stay readable.
    pub fn detach(&self) -> Result<(), Failure> {
        match self {
            // It ends with the process.
            Backing::Embedded(_) | Backing::Absent(_) => Ok(()),
            Backing::Remote(store) => store.detach(),
        }
    }

    /// Returns how often a connection was lost, and how often one was made again.
    pub(crate) fn connection_counts(&self) -> (u64, u64) {
        match self {
            Backing::Embedded(_) | Backing::Absent(_) => (0, 0),
            Backing::Remote(store) => store.connection_counts(),
        }
    }
}
