//! Published objects: look up, delete, evict, list; and the store's figures.

use std::os::fd::OwnedFd;

use objmapper_proto::ext::{Entry, EntryFlags, IfVersion, Op, Reply, Request, Stat, Want};
use objmapper_proto::{ObjUri, Status};

use crate::answer::{Answer, Body};
use crate::client::Client;
use crate::error::{Error, ProtocolError, Result};
use crate::state::Version;

/// A published object.
#[derive(Debug)]
pub struct Found {
    /// The object's attributes.
    pub entry: Entry,
    /// The body, read-only and close-on-exec, if the caller asked for it.
    pub fd: Option<OwnedFd>,
    /// The session of the request, see [`Session::id`](crate::Session::id); a pin belongs to it.
    pub session: u64,
}

impl Found {
    /// Returns true if the body never changes. A body that a v0.1 client wrote may be changed or shortened at any time.
    #[must_use]
    pub fn is_immutable(&self) -> bool {
        !self.entry.flags.contains(EntryFlags::FOREIGN)
    }

    pub(crate) fn from_answer(answer: Answer, want: Want, session: u64) -> Result<Self> {
        match answer.body {
            Body::Entry(entry) => Self::new(entry, answer.fds, want, session),
            _ => Err(ProtocolError::WrongKind.into()),
        }
    }

    pub(crate) fn new(entry: Entry, mut fds: crate::socket::Fds, want: Want, session: u64) -> Result<Self> {
        let expected = usize::from(want.fd);
        if fds.len() != expected {
            return Err(ProtocolError::FdCount { expected, got: fds.len() }.into());
        }
        Ok(Self { entry, fd: fds.pop(), session })
    }
}

/// Returns `None` if the status is "not found".
pub(crate) fn found_or_not<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Status { status: Status::NotFound, .. }) => Ok(None),
        Err(why) => Err(why),
    }
}

impl Client {
    /// Looks up an object without creating it. Returns `None` if there is none.
    ///
    /// Pins do not nest: one [`Client::release`] ends a pin, however often the object was looked up.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Unsupported`] from a v0.1 peer, which can only get-or-create.
    pub fn lookup(&self, uri: &ObjUri<'_>, want: Want) -> Result<Option<Found>> {
        let request = Request::Lookup { uri: uri.borrowed(), want };
        let Some((answer, connection)) = found_or_not(self.ask(&request, self.deadline()))? else {
            return Ok(None);
        };
        Found::from_answer(answer, want, connection.session_id()).map(Some)
    }

    /// Deletes an object. Returns false if there is none. Whatever the outcome, private objects created for the URI before can no
    /// longer be committed, and its [`Fence`](crate::Fence) moves.
    ///
    /// # Errors
    /// See [`Error`]; status [`Status::Conflict`] if `if_version` does not hold. A v0.1 peer only knows
    /// [`IfVersion::Any`].
    pub fn delete(&self, uri: &ObjUri<'_>, if_version: IfVersion) -> Result<bool> {
        let connection = self.inner.pool.pick()?;
        if connection.version != Version::Extended {
            return self.delete_v01(&connection, uri, if_version);
        }
        let request = Request::Delete { if_version, uri: uri.borrowed(), evict: false };
        Ok(found_or_not(self.call_on(&connection, &request, self.deadline()))?.is_some())
    }

    /// Deletes one object that is of no more use, such as one with a damaged body. Returns false if there is none. Unlike
    /// [`Client::delete`] it does not invalidate the URI: the fence stays, and private objects created
    /// for it can be committed.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Unsupported`] from a v0.1 peer; status [`Status::Conflict`] if `if_version` does not
    /// hold.
    pub fn evict(&self, uri: &ObjUri<'_>, if_version: IfVersion) -> Result<bool> {
        let request = Request::Delete { if_version, uri: uri.borrowed(), evict: true };
        Ok(found_or_not(self.call(&request, self.deadline()))?.is_some())
    }

    /// Returns the store's sizes and counts.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn stat(&self) -> Result<Stat> {
        let (answer, _) = self.ask(&Request::Stat, self.deadline())?;
        match answer.reply(Op::Stat)? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(ProtocolError::WrongKind.into()),
        }
    }

    /// Returns a page of the URIs that begin with `prefix`. `cursor` is empty for the first page; `max` is the maximum
    /// number of entries.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn list_page(&self, prefix: &[u8], cursor: &[u8], max: u16) -> Result<Page> {
        let (answer, _) = self.ask(&Request::List { prefix, cursor, max }, self.deadline())?;
        match answer.reply(Op::List)? {
            Reply::List(page) => {
                let items = page.items.into_iter().map(|(uri, entry)| (uri.into_owned(), entry)).collect();
                Ok(Page { items, cursor: page.cursor.to_vec() })
            }
            _ => Err(ProtocolError::WrongKind.into()),
        }
    }

    /// Iterates over all objects whose URI begins with `prefix`, in byte order. Each page is one request.
    #[must_use]
    pub fn list(&self, prefix: &[u8]) -> List {
        List {
            client: self.clone(),
            prefix: prefix.to_vec(),
            cursor: Vec::new(),
            page: Vec::new().into_iter(),
            done: false,
        }
    }
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In byte order of the URIs.
    pub items: Vec<(ObjUri<'static>, Entry)>,
    /// The cursor of the next page; empty if this is the last page.
    pub cursor: Vec<u8>,
}

/// The iterator of [`Client::list`]. It ends after an error.
#[derive(Debug)]
pub struct List {
    client: Client,
    prefix: Vec<u8>,
    cursor: Vec<u8>,
    page: std::vec::IntoIter<(ObjUri<'static>, Entry)>,
    done: bool,
}

/// Entries of a page: a few hundred KiB with usual URIs.
const PAGE_ENTRIES: u16 = 1000;

impl Iterator for List {
    type Item = Result<(ObjUri<'static>, Entry)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.page.next() {
                return Some(Ok(item));
            }
            if self.done {
                return None;
            }
            match self.client.list_page(&self.prefix, &self.cursor, PAGE_ENTRIES) {
                Ok(Page { items, cursor }) => {
                    // A cursor that does not advance would repeat for ever.
                    self.done = cursor.is_empty() || cursor == self.cursor;
                    self.page = items.into_iter();
                    self.cursor = cursor;
                }
                Err(why) => {
                    self.done = true;
                    return Some(Err(why));
                }
            }
        }
    }
}
