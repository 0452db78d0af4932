//! Looking into a store without caching: what a file contains, whether it is whole, and what a cache would make of a
//! record now. Nothing here changes the store, waits for a lease, or begins a ban log.

use std::os::fd::OwnedFd;

use objmapper_client::{Client, ConnectionState, Entry, EntryFlags, Error, ObjUri, UriError, UriSpace, V01Tier, Want};

use crate::invalidation::file::{LogFile, Unusable};
use crate::invalidation::index::Judged;
use crate::invalidation::snapshot::{Snapshot, Statement};
use crate::lookup::request::RequestView;
use crate::outage::Outage;
use crate::record::file_io::read_exact_at;
use crate::record::head::{BodySum, Head, Summer};
use crate::record::key::{Key, without_scheme};
use crate::record::reading::{Opened, Unreadable};
use crate::record::stored::{Mark, Stored, Target};
use crate::record::tail::{Kind, TRAILER_LEN, has_magic};
use crate::record::vary::Index;
use crate::regex::Regexes;

/// Bytes of a body that are read at a time.
const READ_SIZE: usize = 256 << 10;

/// What a file contains, by its tail.
#[derive(Debug, Clone, PartialEq)]
pub enum Contents {
    /// No record: it does not end with a trailer.
    Plain,
    /// A response.
    Record(Response),
    /// The new head of a record whose response a 304 has confirmed.
    Renewal(Response),
    /// The index of a key whose responses vary.
    Index(Variants),
    /// The log of what was invalidated.
    Log,
    /// It ends with a trailer, or must, and does not validate. The text names the invalid field.
    Damaged(String),
}

/// The head of a record or of a renewal.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The key's text.
    pub text: Vec<u8>,
    /// The headers of the request that the response was selected by, and their values; `None` if it does not vary.
    pub vary: Option<Vec<Selector>>,
    /// The response's head.
    pub head: Head,
    /// The length of the body in bytes; 0 for a renewal.
    pub body_len: u64,
    /// The body's checksum, if its publisher computed one.
    pub sum: Option<BodySum>,
    /// Object and version of the record that is renewed; `None` for a record.
    pub renews: Option<(u64, u64)>,
    /// False if an older version has published it, which did not record all that a cache must know. It is a miss.
    pub is_complete: bool,
    /// The tags (surrogate keys).
    pub tags: Vec<Box<[u8]>>,
    mark: Mark,
}

/// A header of a request that selects among the responses of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The header's name, in lower case.
    pub name: Vec<u8>,
    /// Its value; `None` if the request has no such header.
    pub value: Option<Vec<u8>>,
}

/// The index of a key whose responses vary.
#[derive(Debug, Clone, PartialEq)]
pub struct Variants {
    index: Index,
}

impl Variants {
    /// Returns the key's text.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.index.text
    }

    /// Returns, for each kind of variant, the names of the headers that select among them; the newest first.
    #[must_use]
    pub fn specs(&self) -> Vec<Vec<&[u8]>> {
        self.index.specs().iter().map(|spec| spec.names().collect()).collect()
    }
}

/// What a cache would make of a record now.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// It is served.
    Fresh,
    /// Its ttl has passed: it is served while it is revalidated or the origin is down.
    Grace,
    /// Its grace has passed: it is kept for revalidation, for which it has a validator.
    Renewable,
    /// It is too old, also for revalidation, or has no validator: a miss.
    Expired,
    /// It was made in the future, by this machine's clock: a miss.
    FromTheFuture,
    /// An older version has published it: a miss.
    Outdated,
    /// A v0.1 client has put it into a store with extensions, and may still change it: a miss.
    Foreign,
    /// A ban or a purge, or the loss of the log of them, invalidates it: a miss. The text says which.
    Invalidated(String),
}

/// What a cache would make of a record, and by which head.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The head that counts: the record's own, or that of its renewal. A soft purge has ended its ttl.
    pub response: Response,
    /// True if it is that of the renewal.
    pub renewed: bool,
    /// What a cache would make of it.
    pub standing: Standing,
    /// The soft purge that has ended its freshness, in words.
    pub soft_purge: Option<String>,
}

/// An object that was found and opened.
#[derive(Debug)]
pub struct Object {
    /// The store's entry; `None` with a v0.1 peer.
    pub entry: Option<Entry>,
    /// The file; `None` if it cannot be opened.
    pub file: Option<OwnedFd>,
    /// The length of the file in bytes.
    pub length: u64,
    /// What it contains.
    pub contents: Contents,
}

/// The records that caches with one prefix keep in a store.
#[derive(Debug)]
pub struct Inspector {
    client: Client,
    space: UriSpace,
    prefix: Vec<u8>,
}

/// Why a file or a record cannot be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The store has deleted or replaced the object meanwhile.
    #[error("the object was deleted or replaced meanwhile")]
    Gone,
    /// The request to the store failed.
    #[error(transparent)]
    Store(#[from] Error),
    /// The file cannot be read now, for a reason that is not the file's: descriptors, memory or a permission are lacking.
    #[error("the file cannot be read now ({0})")]
    Read(Outage),
}

/// Divides what [`Unreadable`] means for an inspection: an answer, or a failure.
fn damage(why: Unreadable) -> Result<String, InspectError> {
    match why {
        Unreadable::Damaged(why) => Ok(why.to_string()),
        Unreadable::Gone => Err(InspectError::Gone),
        Unreadable::Outage(outage) => Err(InspectError::Read(outage)),
    }
}

impl Contents {
    /// Reads what a file of `length` bytes contains. Of the body only as much is read as comes with the tail.
    ///
    /// # Errors
    /// See [`InspectError`]; a file that is damaged is no error.
    pub fn of_file(file: &OwnedFd, length: u64) -> Result<Self, InspectError> {
        let mut last = [0; TRAILER_LEN];
        let Some(at) = length.checked_sub(TRAILER_LEN as u64) else { return Ok(Self::Plain) };
        if let Err(why) = read_exact_at(file, &mut last, at) {
            return damage(why).map(Self::Damaged);
        }
        if !has_magic(&last) {
            return Ok(Self::Plain);
        }
        let copy = file.try_clone().map_err(|_| InspectError::Read(Outage::Io))?;
        match Opened::of_file(copy, length) {
            Ok(opened) => Ok(Self::of_opened(&opened)),
            Err(why) => damage(why).map(Self::Damaged),
        }
    }

    fn of_opened(opened: &Opened) -> Self {
        let kind = opened.kind();
        let decoded = match kind {
            Kind::Record | Kind::Renewal => Stored::decode(opened.head(), kind == Kind::Renewal).map(|stored| {
                let response = Response {
                    text: stored.text,
                    vary: stored.vary.map(|vary| {
                        let pairs = vary.pairs().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)));
                        pairs.map(|(name, value)| Selector { name, value }).collect()
                    }),
                    head: stored.head,
                    body_len: opened.trailer.body_len,
                    sum: opened.trailer.sum,
                    renews: stored.target.map(|target| (target.object, target.version)),
                    is_complete: stored.flags_known,
                    tags: stored.tags,
                    mark: stored.mark,
                };
                if kind == Kind::Renewal { Self::Renewal(response) } else { Self::Record(response) }
            }),
            Kind::Vary => Index::decode(opened.head()).map(|index| Self::Index(Variants { index })),
            Kind::Log | Kind::LogPart => Ok(Self::Log),
        };
        decoded.unwrap_or_else(|why| Self::Damaged(why.to_string()))
    }
}

impl Object {
    /// Returns the length of the body: of a record without its tail, of all other objects the file's.
    #[must_use]
    pub fn body_len(&self) -> u64 {
        match &self.contents {
            Contents::Plain | Contents::Damaged(_) => self.length,
            Contents::Record(response) => response.body_len,
            Contents::Renewal(_) | Contents::Index(_) | Contents::Log => 0,
        }
    }

    /// Reads the body, and compares its checksum, if it has one. `part` is called for each part. Returns the name of what is
    /// damaged, if anything is.
    ///
    /// # Errors
    /// The first error of `part`, and see [`InspectError`]; a file that is damaged is no error.
    pub fn read_body<E: From<InspectError>>(
        &self,
        mut part: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<String>, E> {
        let Some(file) = &self.file else { return Ok(self.damage()) };
        let length = self.body_len();
        let mut summer = Summer::new();
        let mut buffer = vec![0; READ_SIZE];
        let mut at = 0;
        while at < length {
            let n = usize::try_from(length - at).map_or(READ_SIZE, |left| left.min(READ_SIZE));
            let bytes = &mut buffer[..n];
            if let Err(why) = read_exact_at(file, bytes, at) {
                return Ok(Some(damage(why)?));
            }
            summer.update(bytes);
            part(bytes)?;
            at += n as u64;
        }
        let Contents::Record(response) = &self.contents else { return Ok(self.damage()) };
        if response.sum.is_some_and(|sum| sum != summer.sum()) {
            return Ok(Some("invalid checksum of the body".to_owned()));
        }
        let mut last = [0; 4];
        let last = match length.checked_sub(last.len() as u64) {
            Some(at) => read_exact_at(file, &mut last, at).map(|()| Some(last)),
            None => Ok(None),
        };
        match last.and_then(|last| Ok(response.head.validate_gzip(length, last)?)) {
            Ok(()) => Ok(None),
            Err(why) => Ok(Some(damage(why)?)),
        }
    }

    fn damage(&self) -> Option<String> {
        match &self.contents {
            Contents::Damaged(why) => Some(why.clone()),
            _ => None,
        }
    }
}

impl Inspector {
    /// Makes one for the caches with this prefix.
    ///
    /// # Errors
    /// If the prefix is empty, or too long.
    pub fn new(client: Client, prefix: &[u8]) -> Result<Self, UriError> {
        let prefix = prefix.trim_ascii();
        let prefix = without_scheme(prefix.strip_suffix(b"/").unwrap_or(prefix)).to_vec();
        let parts: Vec<&[u8]> = prefix.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
        let space = UriSpace::new(&parts)?;
        Ok(Self { client, space, prefix })
    }

    /// Returns the prefix, without a scheme.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Returns what the URIs of all records begin with.
    #[must_use]
    pub fn uri_prefix(&self) -> Vec<u8> {
        self.space.prefix()
    }

    /// Returns the key of a host and a URL that are given as one text, without a scheme.
    #[must_use]
    pub fn key(&self, host_and_url: &[u8]) -> Key {
        self.key_from_text(&[&self.prefix[..], b"/", host_and_url].concat())
    }

    /// Returns the key that has this text; see [`Key::text`].
    #[must_use]
    pub fn key_from_text(&self, text: &[u8]) -> Key {
        Key::of_text(&self.space, &self.prefix, text)
    }

    /// Returns true if only a record, a renewal, an index or a log can be at this URI (`RECORD.md`, "URIs").
    #[must_use]
    pub fn is_for_records(&self, uri: &ObjUri<'_>) -> bool {
        let Some(rest) = uri.as_bytes().strip_prefix(&self.space.prefix()[..]) else { return false };
        let mut parts = rest.split(|b| *b == b'/');
        let (kind, more) = (parts.next(), parts.count());
        matches!(
            (kind, more),
            (Some(b"r"), 2) | (Some(b"d" | b"u" | b"v" | b"n" | b"l" | b"%h"), 1) | (Some(b"log"), 0)
        )
    }

    /// Finds an object. Returns `None` if there is none. A v0.1 peer cannot look up without creating: with it, an empty object is
    /// taken for an absent one, and an absent one becomes an empty one.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn find(&self, uri: &ObjUri<'_>) -> Result<Option<Object>, InspectError> {
        let ConnectionState::V01 { .. } = self.client.state() else {
            let Some(found) = self.client.lookup(uri, Want::ENTRY)? else { return Ok(None) };
            return self.open(uri, found.entry).map(Some);
        };
        let object = self.client.get_or_create(uri, V01Tier::Default)?;
        if object.is_empty() {
            return Ok(None);
        }
        let (length, file) = (object.len(), object.into_fd());
        let contents = self.contents(uri, &file, length)?;
        Ok(Some(Object { entry: None, file: Some(file), length, contents }))
    }

    /// Opens the object of an entry.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn open(&self, uri: &ObjUri<'_>, entry: Entry) -> Result<Object, InspectError> {
        let session = self.client.session().ok_or(Error::SessionLost)?;
        let damaged =
            |file, length, why| Ok(Object { entry: Some(entry), file, length, contents: Contents::Damaged(why) });
        let file = match session.open_entry(&entry) {
            Ok(file) => file,
            Err(Error::Io { errno, .. }) => return damaged(None, 0, damage(Unreadable::of_errno(errno))?),
            Err(why) => return Err(why.into()),
        };
        let length = length_of(&file)?;
        let is_foreign = entry.flags.contains(EntryFlags::FOREIGN);
        if length != entry.length && !is_foreign {
            let why = format!("invalid length: {length} bytes, where {} were published", entry.length);
            return damaged(Some(file), length, why);
        }
        // A record is never ephemeral. What is may be a body of a storage engine, whose URIs can look like a record's.
        let contents = if entry.flags.contains(EntryFlags::EPHEMERAL) {
            Contents::of_file(&file, length)?
        } else {
            self.contents(uri, &file, length)?
        };
        Ok(Object { entry: Some(entry), file: Some(file), length, contents })
    }

    fn contents(&self, uri: &ObjUri<'_>, file: &OwnedFd, length: u64) -> Result<Contents, InspectError> {
        Ok(match Contents::of_file(file, length)? {
            Contents::Plain if self.is_for_records(uri) => Contents::Damaged("invalid trailer".to_owned()),
            contents => contents,
        })
    }

    /// Returns the URIs at which the variants for a request are, the newest kind first.
    #[must_use]
    pub fn variants(&self, variants: &Variants, request: &dyn RequestView) -> Vec<ObjUri<'static>> {
        let keys = variants.index.specs().iter().filter_map(|spec| spec.key(request).ok());
        keys.map(|key| self.space.uri(&[b"v", &variants.index.variant(&key)])).collect()
    }

    /// Returns the renewal of a record, if it has one.
    fn renewal(&self, uri: &ObjUri<'_>, record: &Object) -> Result<Option<Response>, InspectError> {
        // A v0.1 store has none: its records are replaced.
        let Some(entry) = &record.entry else { return Ok(None) };
        let target = Target { object: entry.object, version: entry.version };
        match self.find(&target.renewal_uri(&self.space, uri))?.map(|found| found.contents) {
            Some(Contents::Renewal(response)) if response.renews == Some((target.object, target.version)) => {
                Ok(Some(response))
            }
            _ => Ok(None),
        }
    }

    /// Returns what a cache would make of a record now, for a request; `None` for what is no record. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn judge(
        &self,
        uri: &ObjUri<'_>,
        record: &Object,
        request: &dyn RequestView,
        regexes: &dyn Regexes,
        now: f64,
    ) -> Result<Option<Judgement>, InspectError> {
        let Contents::Record(response) = &record.contents else { return Ok(None) };
        if record.entry.is_some_and(|entry| entry.flags.contains(EntryFlags::FOREIGN)) {
            let (response, standing) = (response.clone(), Standing::Foreign);
            return Ok(Some(Judgement { response, renewed: false, standing, soft_purge: None }));
        }
        let log = self.log()?;
        let own = self.judge_response(&log, response.clone(), request, regexes, now);
        let is_final = match &own.standing {
            Standing::Fresh => true,
            Standing::Invalidated(_) => response.head.is_fresh(now),
            // A record like these is not used, whether or not it has a renewal.
            standing => matches!(standing, Standing::Outdated | Standing::FromTheFuture),
        };
        // Its renewal may be newer than what has ended its freshness.
        let renewal = if is_final { None } else { self.renewal(uri, record)? };
        Ok(Some(match renewal {
            Some(renewal) => Judgement { renewed: true, ..self.judge_response(&log, renewal, request, regexes, now) },
            None => own,
        }))
    }

    fn judge_response(
        &self,
        log: &Result<Snapshot, String>,
        mut response: Response,
        request: &dyn RequestView,
        regexes: &dyn Regexes,
        now: f64,
    ) -> Judgement {
        let digest = self.key_from_text(&response.text).digest();
        let judged = Judged { mark: &response.mark, digest, tags: &response.tags };
        let statement = match log {
            Ok(log) => log.judge(judged, &response.head, request, regexes),
            Err(why) => Statement::Invalid(why.clone()),
        };
        let mut soft_purge = None;
        if let Statement::Stale(at, why) = &statement {
            response.head.end_freshness(*at);
            soft_purge = Some(why.clone());
        }
        let head = &response.head;
        let standing = match statement {
            _ if !response.is_complete => Standing::Outdated,
            _ if head.is_from_the_future(now) => Standing::FromTheFuture,
            Statement::Invalid(why) => Standing::Invalidated(why),
            Statement::Valid if head.is_fresh(now) => Standing::Fresh,
            _ if head.in_grace(now) => Standing::Grace,
            _ if head.is_renewable(now) => Standing::Renewable,
            _ => Standing::Expired,
        };
        Judgement { response, renewed: false, standing, soft_purge }
    }

    /// Reads the invalidation log. The inner error says why it cannot be used: all records are invalidated then.
    fn log(&self) -> Result<Result<Snapshot, String>, InspectError> {
        let found = self.find(&self.space.uri(&[b"log"]))?;
        let Some(Object { file: Some(file), length, contents: Contents::Log, .. }) = found else {
            return Ok(Err("the invalidation log is lost, and with it all records".to_owned()));
        };
        let head = match Opened::of_file(file, length) {
            Ok(opened) => LogFile::decode(opened.head(), &self.space.prefix()),
            Err(why) => return damage(why).map(|why| Err(format!("the invalidation log is damaged: {why}"))),
        };
        let head = match head {
            Ok(head) => head,
            Err(Unusable::Damaged(why)) => return Ok(Err(format!("the invalidation log is damaged: {why}"))),
            Err(Unusable::Newer(version)) => {
                return Ok(Err(format!("the invalidation log has version {version}, which this build does not know")));
            }
        };
        let mut log = Snapshot { entries: Vec::new(), floor: (head.floor, head.floor_at), head };
        for part in &log.head.parts {
            let entries = match self.find(&part.uri(&self.space))? {
                Some(Object { file: Some(file), length, contents: Contents::Log, .. }) => {
                    let opened = Opened::of_file(file, length);
                    opened.and_then(|opened| Ok(part.decode(opened.head(), log.head.nonce)?)).ok()
                }
                _ => None,
            };
            match entries {
                Some(entries) => log.entries.extend(entries),
                // Whatever the lost entries said, older records may be invalid.
                None => {
                    log.entries.clear();
                    log.floor = (part.last, part.at);
                }
            }
        }
        log.entries.extend(log.head.entries.iter().cloned());
        Ok(Ok(log))
    }
}

fn length_of(file: &OwnedFd) -> Result<u64, InspectError> {
    let stat = nix::sys::stat::fstat(file).map_err(|_| InspectError::Read(Outage::Io))?;
    Ok(u64::try_from(stat.st_size).unwrap_or_default())
}
